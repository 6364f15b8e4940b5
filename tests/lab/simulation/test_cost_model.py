"""How long a step takes: more work never takes less time, and every part is worked out by hand."""

import json
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minivllm.lab.simulation.cards import CARDS_FILE, hardware_card, model_card
from minivllm.lab.simulation.cost_model import CostModel
from minivllm.trace.work import batch_shape, parameters_in_layers, ridge, work_of

OURS = json.loads(CARDS_FILE.read_text())
ITEMS = st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 300)), min_size=1, max_size=10)
DECODES = st.lists(st.tuples(st.integers(0, 2000), st.just(1)), min_size=1, max_size=40)
MOVES = st.integers(0, 20)
SPEEDS = [
    *("peak_flops", "memory_bandwidth", "link_bandwidth", "host_bandwidth"),
    *("compute_efficiency", "bandwidth_efficiency", "attention_efficiency"),
]


@st.composite
def cost_models(draw, tensor=(1, 2, 4, 8), pipeline=(1, 2, 5)):
    """Every shipped device with every shipped model, in all that can be said about them."""
    model = model_card(draw(st.sampled_from([*OURS["models"], "tiny"])))
    sizes = [size for size in tensor if model.num_heads % size == 0]
    return CostModel(
        hardware_card(draw(st.sampled_from(sorted(OURS["hardware"])))),
        model,
        tensor_parallel_size=draw(st.sampled_from(sizes)),
        pipeline_parallel_size=draw(st.sampled_from(pipeline)),
        block_size=draw(st.sampled_from([1, 16, 256])),
        decode_weight_dtype=draw(st.sampled_from([None, "int8", "int4", "fp8"])),
    )


plain_models = cost_models(tensor=(1,), pipeline=(1,)).map(
    lambda cost: replace(cost, decode_weight_dtype=None)
)


@st.composite
def batches(draw, items=ITEMS):
    chosen = draw(items)
    rows = draw(st.integers(0, sum(count for _, count in chosen)))
    return chosen, rows, draw(st.integers(0, 100))


# ── more work, more time ──────────────────────────────────────────────────────────────────────────────────


@given(cost=cost_models(), batch=batches(ITEMS | DECODES), more=st.integers(1, 300), data=st.data())
def test_more_tokens_context_sequences_rows_or_padding_never_take_less_time(cost, batch, more, data):
    items, rows, padding = batch
    index = data.draw(st.integers(0, len(items) - 1))
    start, count = items[index]
    others = items[:index] + items[index + 1 :]
    before = cost.step_time(batch_shape(items, rows, padding))
    larger = {
        "tokens": batch_shape([*others, (start, count + more)], rows, padding),
        "context": batch_shape([*others, (start + more, count)], rows, padding),
        "sequences": batch_shape([*items, (0, more)], rows, padding),
        "rows": batch_shape(items, rows + more, padding),
        "padding": batch_shape(items, rows, padding + more),
    }
    for name, shape in larger.items():
        after = cost.step_time(shape)
        for part in before._fields:
            assert getattr(after, part) >= getattr(before, part) * (1 - 1e-12), (name, part)
    for name in ("tokens", "context", "sequences"):
        assert cost.step_time(larger[name]).attention > before.attention, name
    assert cost.step_time(larger["sequences"]).overhead > before.overhead


@given(cost=cost_models(), batch=batches(), copied=MOVES, swapped=MOVES)
def test_every_block_that_moves_takes_its_time(cost, batch, copied, swapped):
    shape = batch_shape(*batch)
    times = [
        cost.step_seconds(shape, num_copied_blocks=copied + more[0], num_swapped_blocks=swapped + more[1])
        for more in ((0, 0), (1, 0), (0, 1))
    ]
    assert times[0] < times[1] and times[0] < times[2]


@given(
    cost=cost_models(),
    batch=batches(),
    moves=st.tuples(MOVES, MOVES),
    name=st.sampled_from(SPEEDS),
    share=st.floats(0.01, 1),
)
def test_a_slower_device_is_never_faster(cost, batch, moves, name, share):
    slower = replace(cost, hardware=replace(cost.hardware, **{name: getattr(cost.hardware, name) * share}))
    shape = batch_shape(*batch)
    for slow, fast in zip(slower.step_time(shape, *moves), cost.step_time(shape, *moves), strict=True):
        assert slow >= fast * (1 - 1e-12)


# ── the parts ─────────────────────────────────────────────────────────────────────────────────────────────


@given(cost=cost_models(), batch=batches(), copied=MOVES, swapped=MOVES)
def test_a_step_takes_what_its_parts_take_together(cost, batch, copied, swapped):
    shape = batch_shape(*batch)
    parts = cost.step_time(shape, copied, swapped)
    seconds = cost.step_seconds(shape, num_copied_blocks=copied, num_swapped_blocks=swapped)
    linear, attention, exchange, moves, overhead = parts
    assert seconds == pytest.approx(linear + attention + exchange + moves + overhead, rel=1e-12)
    assert parts.total == pytest.approx(seconds, rel=1e-12)
    assert min(parts) >= 0
    assert moves == pytest.approx(
        cost.step_time(shape, copied).moves + cost.step_time(shape, 0, swapped).moves
    )


@given(cost=plain_models, batch=batches(ITEMS | DECODES))
def test_a_device_alone_takes_the_longer_of_its_arithmetic_and_its_memory(cost, batch):
    device, shape = cost.hardware, batch_shape(*batch)
    # The output matrix is read in every step: nearly all of them want logits.
    with_logits = work_of(cost.model.shape(), shape._replace(num_logit_rows=1))
    work, padding_kv = work_of(cost.model.shape(), shape), shape.num_padding_tokens
    compute = device.peak_flops * device.compute_efficiency
    weights = with_logits.weight_bytes / (device.memory_bandwidth * device.bandwidth_efficiency)
    kv = work.kv_bytes + padding_kv * cost.model.kv_bytes_per_token
    parts = cost.step_time(shape)
    assert parts.linear == pytest.approx(max(work.linear_flops / compute, weights))
    kv_seconds = kv / (device.memory_bandwidth * device.attention_efficiency)
    assert parts.attention == pytest.approx(max(work.attention_flops / compute, kv_seconds))
    assert parts.exchange == parts.moves == 0
    assert parts.overhead == pytest.approx(
        device.step_overhead_seconds
        + len(batch[0]) * device.sequence_overhead_seconds
        + (shape.num_tokens + shape.num_padding_tokens) * device.token_overhead_seconds
    )


@given(cost=plain_models, side=st.sampled_from([-1, 0, 1]))
def test_there_is_no_jump_where_arithmetic_takes_over_from_memory(cost, side):
    """One more row at the ridge costs at most the arithmetic of one row."""
    device, model = cost.hardware, cost.model.shape()
    bandwidth = device.memory_bandwidth * device.bandwidth_efficiency
    compute = device.peak_flops * device.compute_efficiency
    width = 4 if model.dtype == "float32" else 2
    in_layers = parameters_in_layers(model)
    bytes_read = width * (in_layers + model.vocab_size * model.hidden_size)
    edge = round(ridge(compute, bandwidth) * bytes_read / (2 * in_layers)) + side
    one_row = 2 * in_layers / compute
    less, more = (
        cost.step_time(batch_shape([(0, edge)], num_logit_rows=0, num_padding_tokens=padding)).linear
        for padding in (0, 1)
    )
    assert bytes_read / bandwidth == pytest.approx(less, abs=2 * one_row)
    assert 0 <= more - less <= one_row * (1 + 1e-9)
    far = [cost.step_time(batch_shape([(0, edge * 2 + row)], num_logit_rows=0)).linear for row in (0, 1)]
    assert far[1] - far[0] == pytest.approx(one_row, rel=1e-3)


@given(cost=cost_models(), copied=st.integers(1, 50), swapped=st.integers(1, 50))
def test_moves_are_bytes_over_the_memory_or_the_hosts_link_and_a_latency_for_each_piece(
    cost, copied, swapped
):
    device, model, shards = cost.hardware, cost.model, cost.tensor_parallel_size
    block_bytes = cost.block_size * model.kv_bytes_per_token
    shape = batch_shape([])
    copy = cost.step_time(shape, copied)
    memory = device.memory_bandwidth * device.bandwidth_efficiency * shards
    assert copy.moves == pytest.approx(copied * 2 * block_bytes / memory)
    swap = cost.step_time(shape, 0, swapped)
    pieces = 2 * model.num_layers * device.transfer_overhead_seconds
    assert swap.moves == pytest.approx(swapped * (block_bytes / (device.host_bandwidth * shards) + pieces))
    for parts in (copy, swap):
        assert parts.linear == parts.attention == parts.exchange == 0
        assert parts.overhead == device.step_overhead_seconds


# ── several devices ───────────────────────────────────────────────────────────────────────────────────────


@given(cost=cost_models(tensor=(1,)), batch=batches(ITEMS | DECODES), shards=st.sampled_from([2, 4, 8]))
def test_tensor_parallel_divides_linear_layers_and_attention(cost, batch, shards):
    assume(cost.model.num_heads % shards == 0)
    free = replace(cost.hardware, link_bandwidth=1e30, link_latency_seconds=0.0)
    alone, shape = replace(cost, hardware=free), batch_shape(*batch)
    before, after = alone.step_time(shape), replace(alone, tensor_parallel_size=shards).step_time(shape)
    assert after.linear == pytest.approx(before.linear / shards)
    assert after.attention == pytest.approx(before.attention / shards)
    assert after.exchange == pytest.approx(0, abs=1e-12)
    assert after.overhead == before.overhead


@given(cost=cost_models(pipeline=(1,)), batch=batches())
def test_an_exchange_is_two_ring_all_reduces_a_layer(cost, batch):
    model, device, shards = cost.model, cost.hardware, cost.tensor_parallel_size
    shape = batch_shape(*batch)
    rows = shape.num_tokens + shape.num_padding_tokens
    sent = 2 * (shards - 1) / shards * rows * model.hidden_size * (4 if model.dtype == "float32" else 2)
    ring = sent / device.link_bandwidth + device.link_latency_seconds
    expected = 2 * model.num_layers * ring if shards > 1 else 0
    assert cost.step_time(shape).exchange == pytest.approx(expected)


@given(cost=plain_models, stages=st.integers(1, 5), items=DECODES)
def test_a_pipeline_helps_a_large_prompt_and_not_a_decode(cost, stages, items):
    """p micro-batches of p stages: 2 p - 1 pieces of 1 / p² of the arithmetic, or 1 / p of the weights."""
    staged, pieces = replace(cost, pipeline_parallel_size=stages), 2 * stages - 1
    decode = batch_shape(items[:1])
    assert staged.step_time(decode).linear == pytest.approx(cost.step_time(decode).linear * pieces / stages)
    prompt = batch_shape([(0, 200_000)])
    assert staged.step_time(prompt).linear == pytest.approx(
        cost.step_time(prompt).linear * pieces / stages**2
    )
    for shape in (decode, prompt, batch_shape(items)):
        attention = cost.step_time(shape).attention
        assert staged.step_time(shape).attention == pytest.approx(attention * pieces / stages**2)
    assert (staged.step_time(decode).exchange > 0) == (stages > 1)
    assert staged.num_devices == stages


# ── refused ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensor_parallel_size": 7}, "tensor_parallel_size must divide the 40 heads of OPT-13B, got 7"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be an integer of at least 1, got 0"),
        ({"pipeline_parallel_size": True}, "pipeline_parallel_size must be an integer of at least 1"),
        ({"pipeline_parallel_size": 41}, "pipeline_parallel_size must be at most the 40 layers of OPT-13B"),
        ({"block_size": 1.5}, "block_size must be an integer of at least 1, got 1.5"),
        (
            {"decode_weight_dtype": "int3"},
            "decode_weight_dtype must be one of 'int8', 'fp8', 'int4', got 'int3'",
        ),
        ({"decode_weight_dtype": "float16"}, "decode_weight_dtype must be one of 'int8', 'fp8', 'int4'"),
        ({"decode_weight_dtype": "float32"}, "decode_weight_dtype must be one of 'int8', 'fp8', 'int4'"),
    ],
)
def test_what_cannot_be_split_or_stored_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        CostModel(hardware_card("a100-40gb"), model_card("opt-13b"), **changes)
