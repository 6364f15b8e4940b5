"""The arithmetic of a step: against sums written out, what torch counts, and what is published."""

import json
import math
from array import array
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.simulated_executor import shape_of
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.lab.simulation.cards import CARDS_FILE, model_card
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.model.tiny import MODEL_PATH
from minivllm.scheduling.plan import ScheduledSequence, StepPlan
from minivllm.trace.timeline import BatchItem, Phase, StepRecord
from minivllm.trace.work import (
    BatchShape,
    attainable,
    batch_shape,
    hidden_size,
    output_parameters,
    parameters_in_layers,
    ridge,
    work_by_phase,
    work_of,
)

SHAPES = [model_card(name).shape() for name in (*json.loads(CARDS_FILE.read_text())["models"], "tiny")]
MODELS = st.sampled_from(SHAPES)
ITEMS = st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 300)), min_size=1, max_size=12)
RATES = st.floats(1e6, 1e18)


# ── batches ───────────────────────────────────────────────────────────────────────────────────────────────


@given(items=ITEMS, padding=st.integers(0, 50))
def test_a_batch_is_what_its_tokens_add_up_to(items, padding):
    positions = [start + offset for start, count in items for offset in range(count)]
    assert batch_shape(items, num_padding_tokens=padding) == BatchShape(
        num_tokens=len(positions),
        num_sequences=len(items),
        num_logit_rows=len(items),
        num_context_tokens=sum(start + count for start, count in items),
        num_attended=sum(position + 1 for position in positions),
        num_padding_tokens=padding,
    )


@given(model=MODELS, items=ITEMS)
def test_the_work_of_a_batch_is_that_of_its_sequences_with_the_weights_read_once(model, items):
    whole = work_of(model, batch_shape(items))
    parts = [work_of(model, batch_shape([item])) for item in items]
    for name in ("linear_flops", "attention_flops", "kv_read_bytes", "kv_written_bytes", "flops", "kv_bytes"):
        assert getattr(whole, name) == pytest.approx(sum(getattr(part, name) for part in parts)), name
    assert {part.weight_bytes for part in parts} == {whole.weight_bytes}
    assert whole.num_bytes == whole.weight_bytes + whole.kv_bytes


@given(model=MODELS, num_tokens=st.integers(1, 4000), cuts=st.sets(st.integers(1, 3999), max_size=12))
def test_a_prompt_in_chunks_costs_the_flops_of_the_whole_one(model, num_tokens, cuts):
    edges = [0, *sorted(cut for cut in cuts if cut < num_tokens), num_tokens]
    chunks = [
        work_of(model, batch_shape([(start, end - start)], num_logit_rows=int(end == num_tokens)))
        for start, end in pairwise(edges)
    ]
    whole = work_of(model, batch_shape([(0, num_tokens)]))
    assert sum(chunk.linear_flops for chunk in chunks) == pytest.approx(whole.linear_flops)
    assert sum(chunk.attention_flops for chunk in chunks) == pytest.approx(whole.attention_flops)
    assert sum(chunk.kv_written_bytes for chunk in chunks) == whole.kv_written_bytes
    assert sum(chunk.kv_read_bytes for chunk in chunks) == model.kv_bytes_per_token * sum(edges)


@given(model=MODELS, items=ITEMS, padding=st.integers(1, 300))
def test_padding_costs_a_pass_through_the_layers_and_nothing_else(model, items, padding):
    plain = work_of(model, batch_shape(items))
    padded = work_of(model, batch_shape(items, num_padding_tokens=padding))
    expected = plain.linear_flops + 2 * parameters_in_layers(model) * padding
    assert padded.linear_flops == pytest.approx(expected, rel=1e-12)
    assert padded._replace(linear_flops=plain.linear_flops) == plain


@given(model=MODELS, items=ITEMS, rows=st.integers(0, 100))
def test_a_row_of_logits_costs_one_pass_through_the_output_matrix(model, items, rows):
    without = work_of(model, batch_shape(items, num_logit_rows=0))
    some = work_of(model, batch_shape(items, num_logit_rows=rows))
    matrix = model.vocab_size * hidden_size(model)
    assert some.linear_flops - without.linear_flops == pytest.approx(2 * matrix * rows)
    assert some.attention_flops == without.attention_flops
    width = 4 if model.dtype == "float32" else 2
    assert some.weight_bytes - without.weight_bytes == (width * matrix if rows else 0)


@given(model=MODELS, decodes=ITEMS, prefills=ITEMS)
def test_the_phases_of_a_recorded_step_share_all_of_its_flops(model, decodes, prefills):
    batch = [
        BatchItem(number, str(number), start, count, phase)
        for phase, items in ((Phase.DECODE, decodes), (Phase.PREFILL, prefills))
        for number, (start, count) in enumerate(items)
    ]
    parts = work_by_phase(model, StepRecord(0, batch=tuple(batch)))
    assert set(parts) == {Phase.DECODE, Phase.PREFILL}
    assert parts[Phase.DECODE] == work_of(model, batch_shape(decodes))
    whole = work_of(model, batch_shape(decodes + prefills))
    assert sum(part.flops for part in parts.values()) == pytest.approx(whole.flops)
    assert not work_by_phase(model, StepRecord(0))


# ── what is published ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", SHAPES, ids=lambda model: model.name)
def test_a_decoded_token_costs_two_flops_a_parameter(model):
    """An embedding that is not the output matrix is looked up, and multiplies nothing."""
    work = work_of(model, batch_shape([(0, 1)]))
    looked_up = 0 if model.is_tied else model.vocab_size * model.hidden_size
    assert work.linear_flops == 2 * (model.num_parameters - looked_up)
    assert 0.93 < work.linear_flops / (2 * model.num_parameters) <= 1
    assert work.flops == pytest.approx(work.linear_flops, rel=1e-3)


def test_the_keys_and_values_of_2048_tokens_of_llama_2_7b_are_one_gibibyte():
    model = model_card("llama-2-7b").shape()
    prefill, decode = work_of(model, batch_shape([(0, 2048)])), work_of(model, batch_shape([(2047, 1)]))
    assert prefill.kv_written_bytes == prefill.kv_read_bytes == decode.kv_read_bytes == 2**30
    assert decode.kv_written_bytes == 512 * 1024


def test_a_decode_has_one_flop_a_byte_and_a_prompt_of_a_thousand_tokens_a_thousand():
    model = model_card("opt-13b").shape()
    assert work_of(model, batch_shape([(0, 1)])).intensity == pytest.approx(1, rel=0.01)
    assert work_of(model, batch_shape([(0, 1000)])).intensity == pytest.approx(1000, rel=0.1)
    assert work_of(model, batch_shape([]))._replace(weight_bytes=0.0).intensity == 0


# ── what torch counts ─────────────────────────────────────────────────────────────────────────────────────

SMALL = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
FAMILIES = {
    "Llama": {"tie_word_embeddings": False},
    "Qwen2": {"tie_word_embeddings": True},  # with biases
    "Qwen3": {"tie_word_embeddings": False, "head_dim": 32},  # heads wider than the stream, with norms
}


@cache
def executor_of(family):
    """The shipped model, or one of another family with weights that say nothing."""
    if family == "shipped":
        executor = TorchExecutor.from_folder(MODEL_PATH, num_blocks=16, device="cpu", backend=TorchAttention)
    else:
        raw = {"architectures": [f"{family}ForCausalLM"], "torch_dtype": "float32"}
        config = ModelConfig.from_dict(SMALL | raw | FAMILIES[family])
        device = torch.device("cpu")
        decoder = Decoder(config, torch.float32, device)
        for _, view in decoder.views():
            view.zero_()
        executor = TorchExecutor(decoder, KVStorage(config, 16, 16, torch.float32, device))
    executor.storage.cells.zero_()
    return executor


@st.composite
def plans(draw):
    scheduled = []
    for seq_id in range(draw(st.integers(1, 4))):
        start, count = draw(st.integers(0, 40)), draw(st.integers(1, 24))
        logits = draw(st.integers(0, count))
        blocks = array("i", range(4 * seq_id, 4 * seq_id + 4))
        scheduled.append(ScheduledSequence(seq_id, start, array("i", [5] * count), blocks, logits))
    return StepPlan(0, tuple(scheduled), num_padding_tokens=draw(st.integers(0, 9)))


@pytest.mark.parametrize("family", ["shipped", *FAMILIES])
@given(plan=plans())
def test_linear_flops_are_those_that_torch_counts_in_the_real_model(family, plan):
    """All but norms and biases, which are vectors: we count them as if they multiplied like the rest."""
    executor = executor_of(family)
    with FlopCounterMode(display=False) as counter:
        executor.execute(plan)
    counted = counter.get_flop_counts()["Global"]
    products = sum(counted.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    vectors = sum(view.numel() for _, view in executor.decoder.views() if view.dim() == 1)
    rows = plan.total_num_scheduled_tokens + plan.num_padding_tokens
    work = work_of(executor.model_shape, shape_of(plan))
    assert work.linear_flops == products + 2 * vectors * rows
    assert vectors < 0.02 * parameters_in_layers(executor.model_shape)
    assert parameters_in_layers(executor.model_shape) + output_parameters(executor.model_shape) <= sum(
        view.numel() for _, view in executor.decoder.views()
    )


@given(plan=plans())
def test_a_plan_has_the_shape_of_its_batch(plan):
    items = [(item.start, item.num_tokens) for item in plan.scheduled]
    rows = sum(item.num_logits for item in plan.scheduled)
    assert shape_of(plan) == batch_shape(items, rows, plan.num_padding_tokens)


# ── the roofline ──────────────────────────────────────────────────────────────────────────────────────────


@given(peak=RATES, bandwidth=RATES, intensity=st.floats(1e-6, 1e6))
def test_the_roof_is_never_above_either_of_its_lines_and_always_on_one(peak, bandwidth, intensity):
    roof = attainable(intensity, peak, bandwidth)
    assert roof <= peak and roof <= intensity * bandwidth
    assert roof in (peak, intensity * bandwidth)
    assert attainable(intensity * 1.5, peak, bandwidth) >= roof
    assert (roof == peak) == (intensity * bandwidth >= peak)


@given(peak=RATES, bandwidth=RATES, step=st.floats(1e-9, 1e-3))
def test_the_roof_has_no_jump_at_the_ridge(peak, bandwidth, step):
    edge = ridge(peak, bandwidth)
    assert attainable(edge, peak, bandwidth) == pytest.approx(peak)
    below, above = (attainable(edge * (1 + side), peak, bandwidth) for side in (-step, step))
    assert math.isclose(below, peak, rel_tol=1.01 * step + 1e-12) and below < peak
    assert above == peak
