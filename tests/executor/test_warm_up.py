"""An engine waits for a compiler only if that was asked for; one process compiles, however many start."""

import errno
import os
import subprocess

import pytest
import torch

from kernels_numba import kept_code
from kernels_numba.kept_code import is_complete, mark_complete, write_sealed
from minivllm.executor import warm_up
from minivllm.executor.attention.choose import backend_factory
from minivllm.executor.attention.numba_cpu_backend import NumbaCpuAttention
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.cpu_hazards import FUSED, QUANTIZED, STEP
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.warm_up import ALL_KINDS, MOST_ATTEMPTS, can_start_compiled, compile_kind, kinds_needed
from minivllm.model.config import ModelConfig

KIND = "float32-step"


def config_of(**changes):
    return ModelConfig.from_dict(
        {"architectures": ["MistralForCausalLM"], "vocab_size": 9, "hidden_size": 64, "intermediate_size": 8,
         "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
         "max_position_embeddings": 50} | changes
    )  # fmt: skip


CONFIG = config_of()


class Worker:
    """Stands for the process that compiles: it holds the lock until it ends."""

    def __init__(self, kinds, lock):
        self.kinds = kinds
        self.lock = os.dup(lock.fileno())

    def end(self):
        os.close(self.lock)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where compiled code is kept: none yet."""
    monkeypatch.delenv("MINIVLLM_WAIT_FOR_COMPILER", raising=False)
    monkeypatch.setattr(warm_up, "usual_folder", lambda: tmp_path / "kept")
    monkeypatch.setattr(warm_up, "_start", Worker)
    monkeypatch.setattr(warm_up, "_processes", [])
    kept_code.say_damaged.cache_clear()
    return tmp_path / "kept"


def complete(folder, kind=KIND):
    folder.mkdir(exist_ok=True)
    write_sealed(folder / "code", b"code")
    mark_complete(folder, kind, [folder / "code"])


def test_without_compiled_code_one_process_is_started_however_many_engines_start(folder, caplog):
    for number in range(1, 4):
        assert not can_start_compiled(CONFIG, torch.float32)
        assert len(warm_up._processes) == 1 and len(caplog.messages) == number
    assert all("compiled beside this run" in line for line in caplog.messages)
    (worker,) = warm_up._processes
    assert worker.kinds == [KIND]
    worker.end()
    assert not can_start_compiled(CONFIG, torch.float32)
    assert len(warm_up._processes) == 2, "the first one has ended without success"
    warm_up._processes[1].end()


def test_with_compiled_code_the_kernels_are_used_without_a_word(folder, caplog):
    complete(folder)
    assert can_start_compiled(CONFIG, torch.float32)
    assert not warm_up._processes and not caplog.records
    assert not can_start_compiled(CONFIG, torch.bfloat16), "which is another kind"
    warm_up._processes[0].end()


def test_damaged_code_is_compiled_beside_the_run(folder, caplog):
    complete(folder)
    (folder / "code").write_bytes(b"")
    assert not can_start_compiled(CONFIG, torch.float32)
    assert "is damaged" in caplog.messages[0] and len(caplog.messages) == 2
    warm_up._processes[0].end()


def test_where_nothing_can_be_kept_the_engine_compiles_itself(folder, monkeypatch):
    folder.write_text("no folder")
    assert can_start_compiled(CONFIG, torch.float32)
    folder.unlink()

    def no_process(*_):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(warm_up, "_start", no_process)
    assert can_start_compiled(CONFIG, torch.float32)


def test_with_the_variable_the_engine_compiles_itself(folder, monkeypatch):
    monkeypatch.setenv("MINIVLLM_WAIT_FOR_COMPILER", "1")
    assert can_start_compiled(CONFIG, torch.float32) and not folder.exists()


def test_what_ends_without_success_is_tried_a_few_times_only(folder, monkeypatch, caplog):
    def broken(kind):
        raise RuntimeError("no\nspace")

    folder.mkdir()
    monkeypatch.setattr(warm_up, "make_runner", broken)
    for _ in range(MOST_ATTEMPTS):
        with pytest.raises(RuntimeError):
            compile_kind(folder, KIND)
    for _ in range(2):
        assert not can_start_compiled(CONFIG, torch.float32)
    assert not warm_up._processes
    assert set(caplog.messages) == {
        "kernels cannot be compiled here (RuntimeError: no space): plain torch computes, which gives the "
        "same and takes longer; `minivllm doctor --warm-up` tries again"
    }


def test_a_process_that_is_killed_has_made_an_attempt_and_success_forgets_them(folder, monkeypatch):
    class KilledError(BaseException):
        pass

    def killed(kind):
        raise KilledError

    folder.mkdir()
    monkeypatch.setattr(warm_up, "make_runner", killed)
    with pytest.raises(KilledError):
        compile_kind(folder, KIND)
    assert warm_up._attempts(folder, KIND) == ["it was ended before it was done"]
    monkeypatch.setattr(warm_up, "make_runner", lambda kind: complete(folder, kind))
    compile_kind(folder, KIND)
    assert is_complete(folder, KIND) and warm_up._attempts(folder, KIND) == []


def test_code_that_is_not_kept_is_an_attempt_without_success(folder, monkeypatch):
    folder.mkdir()
    monkeypatch.setattr(warm_up, "make_runner", lambda kind: None)
    with pytest.raises(OSError, match="cannot be kept"):
        compile_kind(folder, KIND)
    assert "cannot be kept" in warm_up._attempts(folder, KIND)[0]


def test_the_process_is_detached_and_silent(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(subprocess, "Popen", lambda command, **more: asked.update(more, command=command))
    with open(tmp_path / "lock", "ab") as lock:
        warm_up._start([KIND], lock)
        assert asked["pass_fds"] == [lock.fileno()]
    assert asked["command"][1:] == ["-m", "minivllm.executor.warm_up", KIND]
    assert asked["start_new_session"]
    assert {asked[stream] for stream in ("stdin", "stdout", "stderr")} == {subprocess.DEVNULL}


@pytest.mark.parametrize(
    ("changes", "dtype", "has_units", "expected"),
    [
        ({}, torch.float32, False, ["float32-step"]),
        ({}, torch.bfloat16, False, ["bfloat16-step"]),
        ({}, torch.bfloat16, True, ["bfloat16-step", "bfloat16-fused"]),
        ({"hidden_act": "gelu"}, torch.float32, False, ["float32-fused"]),
        ({"hidden_act": "gelu"}, torch.bfloat16, True, ["bfloat16-fused"]),
        ({"hidden_act": "swish", "sliding_window": 4}, torch.float32, False, ["float32-step"]),
    ],
)
def test_only_what_the_model_needs_is_compiled(monkeypatch, changes, dtype, has_units, expected):
    monkeypatch.setattr(
        "minivllm.executor.attention.numba_cpu_backend.has_matrix_units", lambda dtype: has_units
    )
    assert kinds_needed(config_of(**changes), dtype) == expected


def test_a_cache_in_8_bits_needs_code_of_its_own(monkeypatch):
    monkeypatch.setattr("minivllm.executor.attention.numba_cpu_backend.has_matrix_units", lambda _: True)

    def needed(dtype, kind, runners=()):
        return kinds_needed(config_of(), dtype, runners, kind)

    assert needed(torch.float32, "int8_per_token_head") == ["float32-int8step"]
    whole = ["bfloat16-int8step", "bfloat16-int8fused"]
    assert needed(torch.bfloat16, "int8_per_token_head") == whole
    assert needed(torch.bfloat16, "fp8") == ["bfloat16-fp8step", "bfloat16-fp8fused"]
    assert needed(torch.float32, "fp8", [STEP]) == ["float32-fp8step"]
    assert needed(torch.float32, "fp8", [FUSED, QUANTIZED]) == ["float32-fp8fused", "float32-quantized"]
    assert needed(torch.float32, "int8_per_token_head", [STEP]) == ["float32-int8step"]


def test_a_quantised_model_says_itself_what_it_needs():
    for runner in (STEP, FUSED):
        needed = kinds_needed(CONFIG, torch.bfloat16, (runner, QUANTIZED))
        assert needed == [f"bfloat16-{runner}", "bfloat16-quantized"]
        assert set(needed) <= set(ALL_KINDS)


def test_a_quantised_copy_needs_what_multiplies_it_besides(monkeypatch):
    monkeypatch.setattr("minivllm.executor.attention.numba_cpu_backend.has_matrix_units", lambda _: True)
    needed = kinds_needed(CONFIG, torch.bfloat16, further=(STEP, QUANTIZED))
    assert needed == ["bfloat16-step", "bfloat16-fused", "bfloat16-quantized"]


def test_auto_is_plain_torch_until_then_and_a_name_is_obeyed(folder):
    storage = KVStorage(CONFIG, 2, 4, torch.float32, torch.device("cpu"))
    assert type(backend_factory("auto")(CONFIG, storage)) is TorchAttention
    assert type(backend_factory("numba-cpu")(CONFIG, storage)) is NumbaCpuAttention
    complete(folder)
    assert type(backend_factory("auto")(CONFIG, storage)) is NumbaCpuAttention
    warm_up._processes[0].end()
