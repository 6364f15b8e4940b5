"""What goes wrong between threads, compilers and processes is met, or said clearly."""

import logging
import os
import subprocess
import sys
from types import ModuleType

import numba
import pytest
import torch

import kernels_numba.cpu
from kernels_numba.cpu import cache
from kernels_numba.kept_code import complete_kinds, write_sealed
from minivllm import environment
from minivllm.executor import cpu_hazards as hazards
from tests import patience


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, environment.SPIN_COUNT),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_idle_threads_are_told_to_sleep_unless_somebody_has_decided_already(monkeypatch, before, after):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    monkeypatch.delitem(sys.modules, "torch")
    assert environment.set_environment()
    assert os.environ.get("GOMP_SPINCOUNT") == after
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)


def test_once_torch_is_loaded_it_is_too_late(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert not environment.set_environment()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_too_many_threads_are_a_warning_that_says_what_to_do(monkeypatch, caplog):
    monkeypatch.setattr(hazards, "usable_cores", lambda: 3)
    hazards.warn_of_threads(3)
    assert not caplog.records
    hazards.warn_of_threads(4)
    assert "torch has 4 threads, but this process may use 3 cores" in caplog.text
    assert "OMP_NUM_THREADS=3" in caplog.text


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_a_type_without_a_fast_path_works_and_says_so(dtype, caplog):
    from minivllm.executor.torch_executor import TorchExecutor
    from minivllm.model.tiny import MODEL_PATH

    executor = TorchExecutor.from_folder(MODEL_PATH, dtype=dtype, num_blocks=4, device="cpu")
    assert executor.attention.name == "torch"
    assert f"{dtype} has no fast path" in caplog.text


FORKING = """
import os, torch
from minivllm import LLM, SamplingParams
from minivllm.model.tiny import MODEL_PATH
torch.set_num_threads(2)
llm = LLM(MODEL_PATH, num_gpu_blocks_override=8, attention_backend="torch")
if os.fork() == 0:
    short = SamplingParams(max_tokens=2)
    for work in (lambda: llm.generate("a", short, use_tqdm=False), lambda: LLM(MODEL_PATH)):
        try:
            work()
        except RuntimeError as error:
            print("refused:", error, flush=True)
    os._exit(0)
os.wait()
print(len(llm.generate("a", SamplingParams(max_tokens=2), use_tqdm=False)), "still here")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_is_told_what_to_do_instead_of_hanging():
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", FORKING],
        capture_output=True,
        text=True,
        timeout=patience.SECONDS,
        env=environment,
    )
    lines = done.stdout.splitlines()
    assert [
        line for line in lines if "spawn" in line and line.startswith("refused: this process was")
    ] == lines[:2]
    assert lines[2:] == ["1 still here"], done.stderr


def test_only_a_layer_that_bears_one_caller_makes_steps_wait(monkeypatch):
    layers = ModuleType("numba.np.ufunc.parallel")
    monkeypatch.setitem(sys.modules, "numba.np.ufunc.parallel", layers)
    layers.threading_layer = lambda: "workqueue"
    assert hazards.one_at_a_time() is hazards.one_at_a_time() is hazards._alone
    layers.threading_layer = lambda: "omp"
    assert hazards.one_at_a_time() is not hazards._alone

    def not_started():
        raise ValueError("Threading layer is not initialized.")

    layers.threading_layer = not_started
    assert hazards.one_at_a_time() is not hazards._alone


def test_compiling_leaves_the_number_of_threads_as_it_was(monkeypatch):
    before = torch.get_num_threads()
    try:
        with hazards.compiling("a-kind"):
            torch.set_num_threads(before + 1)
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)


def test_compiling_is_announced_once_and_only_if_something_is_compiled(caplog):
    with caplog.at_level(logging.INFO), hazards.compiling("a-kind"):
        pass
    assert not caplog.records
    with hazards.compiling("a-kind"):
        for _ in range(2):  # as Numba does whenever it compiles a function that it has not found
            with numba.core.event.trigger_event("numba:compile"):
                pass
    assert caplog.messages == [
        "compiling kernels for this machine (a-kind); it takes ten to twenty seconds, once"
    ]


def test_what_was_compiled_or_found_is_complete_from_then_on(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels_numba.cpu, "FOLDER", tmp_path)
    monkeypatch.setattr(cache, "prepare", lambda name: {tmp_path / name})
    for name in ("code", "more"):
        write_sealed(tmp_path / name, b"")
    with hazards.compiling("a-kind") as prepare:
        prepare("code")
        prepare("more")
    assert complete_kinds(tmp_path) == ["a-kind"]
    with pytest.raises(ZeroDivisionError), hazards.compiling("another-kind") as prepare:
        prepare("code")
        _ = 1 / 0
    with hazards.compiling("a-third-kind") as prepare:
        prepare("code")
        prepare("not kept")
    assert complete_kinds(tmp_path) == ["a-kind"]
    with hazards.compiling("a-fourth-kind") as prepare:  # in this process it was found before
        prepare("code")
    (tmp_path / "more").unlink()
    assert complete_kinds(tmp_path) == ["a-fourth-kind"]
