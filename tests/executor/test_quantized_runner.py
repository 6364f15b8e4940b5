"""Quantised models on every runner: the fast one is its plain twin, and company changes no tokens."""

from __future__ import annotations

import tracemalloc
import weakref
from pathlib import Path

import pytest
import torch

from minivllm import LLM, SamplingParams
from minivllm.executor.attention.numba_cpu_backend import NumbaCpuAttention
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.cpu_hazards import FUSED, QUANTIZED, STEP
from minivllm.executor.runners.choose import quantized_runners
from minivllm.executor.runners.compiled import CompiledRunner
from minivllm.executor.runners.fused import FusedRunner
from minivllm.executor.runners.packed_matrix import PackedMatrix
from minivllm.executor.runners.quantized_panels import in_panels
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.model.matrix import Matrix
from minivllm.sampling_params import BeamSearchParams
from minivllm.trace.events import TraceHeader
from minivllm.trace.recorder import Recorder
from tests.model.conftest import Runner, make_checkpoint, one_thread, random_tokens
from tests.model.quantization.checkpoints import RECIPES
from tests.model.quantization.conftest import MakeQuantized, make_quantized

__all__ = ["make_checkpoint", "make_quantized", "one_thread"]

KINDS = ["gptq-4", "gptq-4-order", "gptq-3", "packed-8-order", "bytes-dynamic", "fp8-block", "mixed"]


def logits_of(folder: Path, backend: type, **settings: str) -> tuple[TorchExecutor, torch.Tensor]:
    executor = TorchExecutor.from_folder(folder, num_blocks=16, backend=backend, **settings)
    runner = Runner(executor)
    first, second = random_tokens(17, 1, vocab_size=96), random_tokens(9, 2, vocab_size=96)
    runner.step({0: first})
    runner.step({0: [3], 1: second})
    return executor, torch.cat([runner.result(0), runner.result(1)])


@pytest.mark.parametrize("name", KINDS)
def test_panels_and_their_plain_twin_have_the_same_logits(name: str, make_quantized: MakeQuantized) -> None:
    folder, _ = make_quantized(name)
    plain, expected = logits_of(folder, TorchAttention)
    fast, found = logits_of(folder, NumbaCpuAttention)
    # Others have parts of several kinds or orders.
    is_whole = name in ("gptq-4", "gptq-3", "bytes-dynamic", "fp8-block")
    assert isinstance(fast.runner, CompiledRunner if is_whole else FusedRunner)
    assert quantized_runners(plain.decoder) == (STEP if is_whole else FUSED, QUANTIZED)
    assert isinstance(fast.decoder.layers[0].mlp.down.matrix, PackedMatrix)
    # A number that is rounded to 8 bits may be rounded the other way where sums are in another order.
    assert (found - expected).abs().max() <= (0.05 if name == "bytes-dynamic" else 1e-4)


def test_a_plain_checkpoint_is_rounded_on_every_runner(make_checkpoint: object) -> None:
    folder, _ = make_checkpoint("llama", hidden_size=128, intermediate_size=128)  # type: ignore[operator]
    for quantization, bits in (("int8", 8), ("int4", 4), ("fp8", 8)):
        plain, expected = logits_of(folder, TorchAttention, quantization=quantization)
        fast, found = logits_of(folder, NumbaCpuAttention, quantization=quantization)
        assert isinstance(fast.runner, CompiledRunner)
        assert (found - expected).abs().max() <= 1e-4
        assert plain.decoder.quantization == fast.decoder.quantization == quantization
        matrix = plain.decoder.layers[0].mlp.down.matrix
        assert matrix.num_bytes < 128 * 128 * bits / 8 * 1.1


@pytest.mark.parametrize("backend", ["torch", "numba-cpu"])
@pytest.mark.parametrize("name", RECIPES)
def test_tokens_are_the_same_in_any_company_and_however_they_are_computed(
    name: str, backend: str, make_quantized: MakeQuantized
) -> None:
    if backend == "numba-cpu" and name not in KINDS:
        pytest.skip("one of each kind will do")
    folder, _ = make_quantized(name)
    prompts = [random_tokens(size, size, vocab_size=96) for size in (3, 17, 40)]
    prompts.append([*prompts[2][:32], 5, 6])  # a prefix that it shares
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)

    def generate(prompts: list[list[int]], **settings: object) -> list[list[int]]:
        llm = LLM(
            folder,
            skip_tokenizer_init=True,
            num_gpu_blocks_override=40,
            attention_backend=backend,
            **settings,
        )
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    together = generate(prompts)
    assert generate(prompts, max_num_batched_tokens=8, prefix_cache="hash", max_num_seqs=2) == together
    assert generate(prompts[1:2]) == together[1:2]


def test_forks_and_beams_of_a_quantised_model(make_quantized: MakeQuantized) -> None:
    folder, _ = make_quantized("awq")
    llm = LLM(folder, skip_tokenizer_init=True, num_gpu_blocks_override=40, attention_backend="torch")
    prompt = random_tokens(9, vocab_size=96)
    output = llm.generate(
        [prompt], SamplingParams(n=3, seed=1, max_tokens=5, ignore_eos=True), use_tqdm=False
    )[0]
    assert [len(choice.token_ids) for choice in output.outputs] == [5, 5, 5]
    found = llm.beam_search([{"prompt_token_ids": prompt}], BeamSearchParams(beam_width=2, max_tokens=4))[0]
    assert len(found.sequences) == 2
    llm.engine.check_invariants()


@pytest.mark.parametrize(
    ("settings", "name"), [({"dtype": "int8"}, "int8"), ({"quantization": "int4"}, "int4")]
)
def test_settings_reach_the_weights(settings: dict[str, str], name: str, make_checkpoint: object) -> None:
    folder, _ = make_checkpoint()  # type: ignore[operator]
    recorder, limits = Recorder(), {"skip_tokenizer_init": True, "num_gpu_blocks_override": 8}
    llm = LLM(folder, attention_backend="torch", trace=recorder, **limits, **settings)
    decoder = llm.engine.executor.decoder
    assert decoder.quantization == name and decoder.dtype == torch.float32
    header = recorder.events[0]
    assert isinstance(header, TraceHeader) and header.config["quantization"] == name


def test_matrices_move_into_panels_one_after_the_other(make_quantized: MakeQuantized) -> None:
    """What is held meanwhile is the quantised model and what one layer takes, not the model twice."""
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 12, "vocab_size": 50}
    folder, _ = make_quantized("gptq-4", **sizes)
    executor = TorchExecutor.from_folder(folder, num_blocks=2, backend=TorchAttention)
    linears = [linear for layer in executor.decoder.layers for linear in layer.linears]
    before = sum(linear.matrix.num_bytes for linear in linears)
    refs = [weakref.ref(linear.matrix) for linear in linears]
    held = []

    def watched(matrix: Matrix) -> Matrix:
        panels = in_panels(matrix)
        rest = sum(old.num_bytes for ref in refs if (old := ref()) is not None)
        held.append(rest + tracemalloc.get_traced_memory()[0])
        return panels

    tracemalloc.start()
    executor.decoder.replace(watched)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    layer = 4 * 3 * 128 * 512  # the largest part of it, as floats
    assert max(held) <= max(before, after) + layer and peak <= after + layer
    assert not any(ref() is not None for ref in refs)
