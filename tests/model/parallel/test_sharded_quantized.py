"""Quantised weights keep their values when they are shared, wherever edges fall among their groups."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from minivllm.model.config import ModelConfig
from minivllm.model.decoder import KVScales
from minivllm.model.layers import DenseMatrix
from minivllm.model.load import load_decoder
from minivllm.model.parallel.layout import Grid, share_of
from minivllm.model.parallel.load import load_share
from minivllm.model.parallel.peers import Alone
from minivllm.model.quantization.float8_matrix import Float8Matrix
from minivllm.model.quantization.float8_weights import round_to_float8
from minivllm.model.quantization.integer_matrix import IntegerMatrix
from minivllm.model.weights import SINGLE_FILE
from tests.executor.distributed.thread_ranks import run_ranks
from tests.model.parallel.test_sharded_decoder import CPU, make_plans, run
from tests.model.quantization.checkpoints import RECIPES, on_grid
from tests.model.quantization.conftest import make_quantized

__all__ = ["make_quantized"]


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "bytes-dynamic"])
def test_shares_of_a_quantised_checkpoint_compute_what_the_whole_does(make_quantized, name):
    folder, _ = make_quantized(name)
    config, plans = ModelConfig.from_folder(folder), make_plans()
    plans = [
        plan for plan in plans if all(max(item.token_ids) < config.vocab_size for item in plan.scheduled)
    ]
    whole = load_decoder(folder, config, torch.float64, CPU)
    expected, grid = run(whole, plans), Grid(tensor=2)

    def work(rank, peers):
        decoder = load_share(folder, share_of(config, grid, rank, 4), torch.float64, CPU, peers)
        return run(decoder, plans), decoder.num_bytes

    (logits, num_bytes), _ = run_ranks(grid, work)
    alone = load_share(folder, share_of(config, Grid(), 0, 4), torch.float64, CPU, Alone())
    # Rounded activations are multiplied in float32.
    tolerance = 1e-4 if name.startswith("bytes") else 1e-9
    for ours, one, theirs in zip(logits, run(alone, plans), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
        assert torch.equal(ours, one)
    assert num_bytes < 0.75 * whole.num_bytes
    assert alone.quantization == whole.quantization


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
def test_a_plain_checkpoint_is_rounded_as_a_whole_and_then_shared(make_checkpoint, quantization):
    folder, _ = make_checkpoint("qwen2")
    config, plans = ModelConfig.from_folder(folder), make_plans()
    whole = load_decoder(folder, config, torch.float64, CPU, quantization)
    share = share_of(config, Grid(), 0, 4)
    alone = load_share(folder, share, torch.float64, CPU, Alone(), quantization)
    for ours, theirs in zip(run(alone, plans), run(whole, plans), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_activations_that_are_rounded_by_their_largest_cannot_be_shared(make_quantized):
    folder, _ = make_quantized("bytes-dynamic")
    config = ModelConfig.from_folder(folder)
    with pytest.raises(ValueError, match=r"rounds each token's activations .* cannot be shared among ranks"):
        load_share(folder, share_of(config, Grid(), 0, 2), torch.float32, CPU, Alone())


def test_scales_of_the_kv_cache_go_to_the_layers_that_a_rank_keeps(make_quantized):
    folder, _ = make_quantized("gptq-4")
    tensors = load_file(folder / SINGLE_FILE)
    for layer, scale in enumerate((0.5, 0.25)):
        tensors[f"model.layers.{layer}.self_attn.k_scale"] = torch.tensor(scale)
        tensors[f"model.layers.{layer}.self_attn.v_scale"] = torch.tensor(2 * scale)
    save_file(tensors, folder / SINGLE_FILE, {"format": "pt"})
    config = ModelConfig.from_folder(folder)
    first, second = KVScales(0.5, 1.0), KVScales(0.25, 0.5)
    for grid, rank, expected in (
        (Grid(), 0, (first, second) * 2),
        (Grid(1, 2, 2), 1, (first,)),
        (Grid(1, 2, 1), 1, (second, second)),
    ):
        decoder = load_share(folder, share_of(config, grid, rank, 2), torch.float32, CPU, Alone())
        assert decoder.kv_scales == expected


@given(data=st.data())
def test_a_piece_of_a_matrix_has_the_values_of_its_place(data):
    num_outputs, num_inputs = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 40))
    weight = torch.randn(num_outputs, num_inputs, generator=torch.Generator().manual_seed(0))
    kind = data.draw(st.sampled_from(["dense", "integer", "float8"]))
    if kind == "dense":
        matrix = DenseMatrix(weight)
    elif kind == "integer":
        order = data.draw(st.sampled_from([None, 1, 2]))
        bits, group_size = data.draw(st.integers(2, 8)), data.draw(st.integers(1, 16))
        symmetric = data.draw(st.booleans())
        weights = on_grid(weight, bits, group_size, symmetric=symmetric, order=order)
        matrix = IntegerMatrix(weights, torch.float32, CPU)
    else:
        block = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 48))
        matrix = Float8Matrix(round_to_float8(weight, block), torch.float32, CPU)
    rows = slice(*sorted(data.draw(st.tuples(*[st.integers(0, num_outputs)] * 2))))
    columns = sorted(data.draw(st.tuples(*[st.integers(0, num_inputs - 1)] * 2)))
    columns = slice(columns[0], columns[1] + 1)
    piece = matrix.shard(rows, columns)
    assert torch.equal(piece.dense(), matrix.dense()[rows, columns])
    x = torch.ones(2, columns.stop - columns.start)
    torch.testing.assert_close(piece.product(x), x @ matrix.dense()[rows, columns].T)
