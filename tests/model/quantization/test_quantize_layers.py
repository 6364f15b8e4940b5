"""Whole decoders quantised: what folding and calibration may not change, and what every method gives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.executor.torch_executor import load_decoder
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.model.quantization.algorithms.folding import (
    fold_into_norm,
    fold_into_up,
    fold_into_values,
    tie_query_heads,
)
from minivllm.model.quantization.calibration import InputStatistics, LayerRunner, LayerSamples
from minivllm.model.quantization.judge import judge
from minivllm.model.quantization.quantize_layers import Run, Samples, split
from minivllm.model.quantization.settings import METHODS, make_settings
from tests.model.conftest import FAMILIES, TINY, expected_logits, random_tokens

each_family = pytest.mark.parametrize("family", FAMILIES)
BIASES = {"llama": {"attention_bias": True, "mlp_bias": True}, "qwen3": {"attention_bias": True}}
SAMPLES = [random_tokens(length, seed=length) for length in (40, 9, 31, 2, 25, 17, 12, 33, 20)]


def small_config(family, **changes):
    return ModelConfig.from_dict({**FAMILIES[family](**{**TINY, **changes}).to_dict(), "architectures": [
        {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
         "qwen3": "Qwen3ForCausalLM"}[family]]})  # fmt: skip


def random_decoder(family="llama", seed=0, dtype=torch.float32, **changes):
    decoder = Decoder(small_config(family, **BIASES.get(family, {}), **changes), dtype, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    for name, view in decoder.views():
        view.copy_(torch.randn(view.shape, generator=generator) * 0.15 + ("norm" in name))
    return decoder


@torch.inference_mode()
def logits(decoder, token_ids):
    runner = LayerRunner(decoder)
    hidden = runner.embed(token_ids)
    for layer in decoder.layers:
        hidden = runner.layer(layer, hidden)
    return decoder.compute_logits(decoder.norm(hidden))


@each_family
def test_a_sample_run_layer_by_layer_has_the_logits_of_transformers(family, make_checkpoint):
    changes = {"sliding_window": 8} if family == "mistral" else {}
    folder, model = make_checkpoint(family, **changes)
    decoder = load_decoder(folder, ModelConfig.from_folder(folder), torch.float32, torch.device("cpu"))
    tokens = random_tokens(30)
    assert torch.allclose(logits(decoder, tokens), expected_logits(model, tokens), atol=1e-4, rtol=1e-4)


@settings(max_examples=6)
@each_family
@given(
    seed=st.integers(0, 1000),
    heads=st.sampled_from(((4, 4), (4, 2), (4, 1))),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
)
def test_folding_alone_changes_no_logit(family, seed, heads, dtype):
    """Every family, with biases, norms of heads, and any grouping of heads; norms stored as bfloat16."""
    decoder = random_decoder(family, seed, num_attention_heads=heads[0], num_key_value_heads=heads[1])
    tokens = random_tokens(20, seed)
    before = logits(decoder, tokens)
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        for layer in decoder.layers:
            attention, mlp = layer.attention, layer.mlp
            for norm, linear in ((layer.input_norm, attention.qkv), (layer.post_attention_norm, mlp.gate_up)):
                fold_into_norm(norm, linear, some_scales(len(norm.weight), generator), dtype)
                assert torch.equal(norm.weight, norm.weight.to(dtype).float())
            scales = some_scales(attention.num_heads * attention.head_dim, generator)
            fold_into_values(attention, tie_query_heads(attention, scales))
            fold_into_up(layer, some_scales(mlp.down.matrix.dense().shape[1], generator))
    after = logits(decoder, tokens)
    assert (after - before).abs().max() <= 1e-5 * max(1, float(before.abs().max()))


def some_scales(count, generator):
    return torch.exp(torch.randn(count, generator=generator))


def test_scales_of_query_heads_that_share_a_kv_head_are_tied():
    attention = random_decoder(num_attention_heads=4, num_key_value_heads=2).layers[0].attention
    scales = tie_query_heads(attention, some_scales(64, torch.Generator().manual_seed(0))).view(4, 16)
    assert torch.allclose(scales[0], scales[1]) and torch.allclose(scales[2], scales[3])
    assert not torch.allclose(scales[0], scales[2])


def test_statistics_are_those_of_all_inputs_however_they_come():
    generator = torch.Generator().manual_seed(0)
    x, scales = torch.randn(30, 8, generator=generator), some_scales(8, generator)
    whole, pieces, divided = InputStatistics(8), InputStatistics(8), InputStatistics(8)
    whole.observe(x)
    for piece in x.split(7):
        pieces.observe(piece)
    divided.observe(x / scales)
    whole.divide(scales)
    pieces.divide(scales)
    for found in (whole, pieces):
        assert torch.allclose(found.moments, divided.moments, rtol=1e-4, atol=1e-4)
        assert torch.allclose(found.mean, divided.mean) and torch.allclose(found.largest, divided.largest)


def test_watching_tells_the_inputs_of_each_matrix_and_leaves_no_trace():
    decoder = random_decoder()
    layer, runner = decoder.layers[0], LayerRunner(decoder)
    matrices = [linear.matrix for linear in layer.linears]
    with torch.inference_mode():
        hidden = [runner.embed(ids) for ids in SAMPLES]
        seen = LayerSamples(runner, layer, hidden, []).observe(list(layer.linears))
        normed = torch.cat([layer.input_norm(sample) for sample in hidden])
    assert [linear.matrix for linear in layer.linears] == matrices
    assert torch.allclose(seen[layer.attention.qkv].moments, normed.T @ normed, rtol=1e-4, atol=1e-3)
    assert {found.num_tokens for found in seen.values()} == {sum(map(len, SAMPLES))}


@each_family
@pytest.mark.parametrize("method", METHODS)
def test_every_method_quantises_every_family(method, family):
    decoder = random_decoder(family)
    reference = [logits(decoder, ids) for ids in SAMPLES[:2]]
    run = Run(decoder, make_settings(method, decoder.config), Samples(SAMPLES[2:], SAMPLES[:2]))
    results = list(run)
    assert [result.index for result in results] == [0, 1]
    for result in results:
        assert result.weights.keys() == set(decoder.layers[result.index].linears)
        assert 0 < result.error < 0.6 and result.error <= result.rounded_error * 1.3
        for linear, weights in result.weights.items():
            assert torch.equal(weights.dense(), linear.matrix.dense())
    verdict = judge(decoder, SAMPLES[:2], run.held_out)
    assert 0 < verdict.kl_divergence < 3 and verdict.num_tokens == 49
    originals = [decoder.compute_logits(decoder.norm(original)) for _, original in run.held_out]
    for found, expected in zip(originals, reference, strict=True):
        assert torch.allclose(found, expected, atol=1e-4)
    if not run.settings.rounds_activations:
        quantised = decoder.compute_logits(decoder.norm(run.held_out[0][0]))
        assert torch.allclose(quantised, logits(decoder, SAMPLES[0]), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_single_token_is_enough_to_calibrate_with(method):
    decoder = random_decoder("qwen2")
    results = list(Run(decoder, make_settings(method, decoder.config), Samples([[5]])))
    assert all(math.isfinite(result.error) for result in results)


def test_gptq_loses_less_than_rounding_in_each_layer():
    decoder = random_decoder("qwen3")
    for options in ({}, {"act_order": True}, {"act_order": True, "static_groups": True}):
        settings = make_settings("gptq", decoder.config, bits=3, **options)
        samples = [random_tokens(40, seed) for seed in range(12)]
        for result in Run(random_decoder("qwen3"), settings, Samples(samples)):
            assert result.error < result.rounded_error


def test_true_sequential_looks_at_inputs_that_are_quantised():
    def last_matrix(is_sequential):
        decoder = random_decoder()
        settings = make_settings("gptq", decoder.config, bits=2, true_sequential=is_sequential)
        next(iter(Run(decoder, settings, Samples(SAMPLES))))
        return decoder.layers[0].mlp.down.matrix.dense()

    assert not torch.equal(last_matrix(True), last_matrix(False))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_named_before_anything_changes(bad):
    decoder = random_decoder()
    decoder.layers[1].mlp.down.matrix.dense()[3, 4] = bad
    before = decoder.layers[0].attention.qkv.matrix.dense().clone()
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.down_proj\.weight has 1 of 5120 weights"):
        next(iter(Run(decoder, make_settings("rtn", decoder.config), Samples(SAMPLES))))
    assert torch.equal(decoder.layers[0].attention.qkv.matrix.dense(), before)


def test_every_eighth_sample_is_kept_apart():
    fitted, apart = split([[number] for number in range(17)])
    assert apart == [[0], [8], [16]] and len(fitted) == 14
    assert split([[1]]) == ([[1]], [[1]])


def test_a_16_bit_decoder_keeps_its_type_and_what_it_computes_but_for_rounding():
    decoder = random_decoder(dtype=torch.bfloat16)
    list(Run(decoder, make_settings("awq", decoder.config), Samples(SAMPLES)))
    assert {view.dtype for _, view in decoder.views()} == {torch.bfloat16}


WRONG = [
    (dict(method="gguf"), "method must be one of 'rtn', 'awq', 'gptq', 'smoothquant', 'fp8', got 'gguf'"),
    (dict(method="awq", bits=3), "bits must be 4 for the method 'awq', got 3"),
    (dict(method="gptq", bits=5), "bits must be 2 or 3 or 4 or 8"),
    (
        dict(method="gptq", group_size=64),
        "group_size 64 does not divide the 80 inputs of down_proj; it could be 16",
    ),
    (dict(method="gptq", group_size=0), "group_size must be -1"),
    (dict(method="smoothquant", group_size=32), "group_size is -1 for the method 'smoothquant'"),
    (dict(method="fp8", symmetric=False), "symmetric must be True for the method 'fp8'"),
    (dict(method="awq", act_order=True), "act_order is for the method 'gptq', got method 'awq'"),
    (dict(method="gptq", static_groups=True), "static_groups is for act_order"),
    (dict(method="gptq", damping=0), "damping must be a finite number above 0"),
    (dict(method="awq", clipping="some"), "clipping must be one of 'validated', 'always', 'never'"),
    (dict(method="smoothquant", smoothing=2), "smoothing must be a finite number"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_wrong_settings_are_a_sentence(wrong, message):
    with pytest.raises(ValueError) as error:
        make_settings(wrong.pop("method"), small_config("llama"), **wrong)
    assert message in str(error.value)


def test_the_largest_usual_group_that_divides_is_taken():
    assert make_settings("rtn", small_config("llama")).grid.group_size == 16
    wide = small_config("llama", hidden_size=256, intermediate_size=384, num_attention_heads=16)
    assert make_settings("rtn", wide).grid.group_size == 128
    odd = small_config("llama", intermediate_size=81)
    assert make_settings("rtn", odd).grid.group_size == -1
