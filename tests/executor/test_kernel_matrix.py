"""Quantised matrices times a few rows by a GPU's kernel, interpreted, are their plain twins."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.executor.attention.kernel_backend import MicroscopeAttention
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.runners.kernel_matrix import KernelMatrix, by_kernels, has_kernel
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.model.quantization.activations import ActivationRounding
from minivllm.model.quantization.integer_matrix import IntegerMatrix
from minivllm.model.quantization.stacked_matrix import StackedMatrix
from tests.executor.test_attention import CPU, model
from tests.model.conftest import Runner, make_checkpoint, one_thread, random_tokens
from tests.model.quantization.conftest import MakeQuantized, make_quantized
from tests.model.quantization.test_packing import random_weights

__all__ = ["make_checkpoint", "make_quantized", "one_thread"]


def microscope() -> MicroscopeAttention:
    config = model((1, 1), 32, [None])
    return MicroscopeAttention(config, KVStorage(config, 2, 4, torch.float32, CPU))


def matrix_of(bits, group_size=32, *, zeros="any", is_ordered=False, dtype=torch.float32, **more):
    weights = random_weights(5, 64, bits, group_size, 3, zeros=zeros, is_ordered=is_ordered)
    return IntegerMatrix(weights, dtype, CPU, **more)


@given(
    bits=st.sampled_from([4, 8]),
    group_size=st.sampled_from([8, 32, -1]),
    zeros=st.sampled_from(["middle", "any"]),
    is_ordered=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    num_rows=st.sampled_from([0, 1, 3, 17]),
    has_bias=st.booleans(),
    has_added=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_the_kernel_is_the_plain_twin(
    bits, group_size, zeros, is_ordered, dtype, num_rows, has_bias, has_added
):
    plain = matrix_of(bits, group_size, zeros=zeros, is_ordered=is_ordered, dtype=dtype)
    fast = by_kernels(plain, microscope())
    assert isinstance(fast, KernelMatrix) and fast.is_quantized
    assert torch.equal(fast.dense(), plain.dense())
    random = torch.Generator().manual_seed(num_rows)
    x, added = (torch.randn(num_rows, size, generator=random).to(dtype) for size in (64, 5))
    bias = torch.randn(5, generator=random).to(dtype) if has_bias else None
    found = fast.product(x, bias, added.clone() if has_added else None)
    expected = plain.product(x, bias, added.clone() if has_added else None)
    assert found.dtype == dtype
    tolerance = (1e-5 if dtype == torch.float32 else 2e-2) * float(plain.dense().abs().max()) * 64
    assert num_rows == 0 or (found - expected).abs().max() <= tolerance


def test_matrices_without_a_kernel_stay_what_they_are():
    others = [matrix_of(3), matrix_of(4, 2), matrix_of(8, activations=ActivationRounding())]
    for matrix in others:
        assert not has_kernel(matrix) and by_kernels(matrix, microscope()) is matrix
    stacked = by_kernels(StackedMatrix([matrix_of(4), others[0]], [5, 5]), microscope())
    assert isinstance(stacked, StackedMatrix)
    assert [type(part) for part in stacked.parts] == [KernelMatrix, IntegerMatrix]


def test_the_engine_multiplies_by_the_kernel_and_says_the_same(make_quantized: MakeQuantized):
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}  # the kernels' heads are of 32 or more
    folder, _ = make_quantized("gptq-4", num_hidden_layers=1, head_dim=32, **heads)
    logits = []
    for backend in (TorchAttention, MicroscopeAttention):
        executor = TorchExecutor.from_folder(folder, num_blocks=8, backend=backend, device="cpu")
        runner = Runner(executor)
        runner.step({0: random_tokens(3, 1, vocab_size=96)})
        runner.step({0: [3]})
        logits.append(runner.result(0))
    assert isinstance(executor.decoder.layers[0].mlp.down.matrix, KernelMatrix)
    assert (logits[0] - logits[1]).abs().max() <= 1e-4
