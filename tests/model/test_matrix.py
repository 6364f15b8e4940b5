"""A linear layer multiplies by any matrix: in every format, products and rows are those of the weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels_numba.cpu.panels import pack
from minivllm.executor.runners.compiled import PanelMatrix
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.model.layers import DenseMatrix, StackedLinear
from minivllm.model.matrix import Matrix
from minivllm.model.packed import OneDnnMatrix, as_array

CPU = torch.device("cpu")


def in_panels(weight: Tensor) -> PanelMatrix:
    return PanelMatrix(pack(as_array(weight)), weight)


FORMATS: dict[str, Callable[[Tensor], Matrix]] = {"dense": DenseMatrix, "panels": in_panels}
if torch.backends.mkldnn.is_available():
    FORMATS["onednn"] = OneDnnMatrix


@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    in_size=st.integers(1, 70),
    num_tokens=st.integers(1, 9),
    has_bias=st.booleans(),
    has_added=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
@pytest.mark.parametrize("name", FORMATS)
def test_products_and_rows_are_those_of_the_weights(
    name: str,
    rows: list[int],
    in_size: int,
    num_tokens: int,
    has_bias: bool,
    has_added: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    sizes = {f"part_{number}": size for number, size in enumerate(rows)}
    linear = StackedLinear(in_size, sizes, has_bias, torch.float32, CPU)
    stored = {view_name: view.normal_().clone() for view_name, view in linear.views("layer")}
    before = linear.num_bytes
    linear.matrix = FORMATS[name](linear.matrix.dense().clone())
    read = dict(linear.views("layer"))
    assert read.keys() == stored.keys()
    for view_name, view in stored.items():
        assert torch.equal(read[view_name], view), view_name
    assert linear.num_bytes == before == 4 * sum(view.numel() for view in stored.values())

    x, added = torch.randn(num_tokens, in_size), torch.randn(num_tokens, sum(rows))
    weights = torch.cat([stored[f"layer.{part}.weight"] for part in sizes]).double()
    expected = x.double() @ weights.T
    if has_bias:
        expected += torch.cat([stored[f"layer.{part}.bias"] for part in sizes])
    if has_added:
        expected += added
    product = linear(x, added.clone() if has_added else None)
    torch.testing.assert_close(product.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_a_converted_decoder_has_the_same_weights_and_bytes(name: str, tied: bool) -> None:
    config = ModelConfig.from_dict(
        {"architectures": ["Qwen3ForCausalLM"], "vocab_size": 30, "hidden_size": 16, "intermediate_size": 8,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
         "attention_bias": True, "tie_word_embeddings": tied}
    )  # fmt: skip
    decoder = Decoder(config, torch.float32, CPU)
    stored = {view_name: view.normal_().clone() for view_name, view in decoder.views()}
    assert decoder.num_bytes == 4 * config.num_parameters
    hidden = torch.randn(3, 16)
    logits = decoder.compute_logits(hidden)
    for _ in range(2):  # a second conversion starts from the first one's format
        decoder.convert(FORMATS[name])
        assert decoder.num_bytes == 4 * config.num_parameters
        read = dict(decoder.views())
        assert read.keys() == stored.keys()
        for view_name, view in stored.items():
            assert torch.equal(read[view_name], view), view_name
        torch.testing.assert_close(decoder.compute_logits(hidden), logits, atol=1e-5, rtol=1e-5)
    assert (decoder.lm_head is decoder.embedding) == tied
