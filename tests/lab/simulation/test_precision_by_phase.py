"""Precision by phase: prompts in 16 bits, answers from a second copy of the weights in fewer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.lab.simulation.setting import Setting
from minivllm.lab.workloads import parse_workload
from minivllm.trace.work import batch_shape

CONTEXTS = st.lists(st.integers(1, 2000), min_size=1, max_size=40)


def make_setting(dtype, **changes):
    return Setting(hardware="h100", model="llama-3-8b", decode_weight_dtype=dtype, **changes)


@given(CONTEXTS, st.sampled_from(["int8", "int4"]))
def test_generated_tokens_read_the_second_copy_and_prompts_the_first(contexts, dtype):
    plain, mixed = make_setting(None).cost_model(), make_setting(dtype).cost_model()
    decodes, count = [(context, 1) for context in contexts], len(contexts)
    decoding = batch_shape(decodes, num_generated_tokens=count, num_generated_rows=count)
    both = batch_shape([*decodes, (0, 2)], num_generated_tokens=count, num_generated_rows=count)
    prompts = batch_shape([*decodes, (0, 2)])
    assert mixed.step_seconds(decoding) < plain.step_seconds(decoding)
    assert mixed.step_seconds(prompts) == plain.step_seconds(prompts)
    assert mixed.step_time(both).linear == pytest.approx(
        mixed.step_time(batch_shape([(0, 2)])).linear + mixed.step_time(decoding).linear
    )


def test_the_second_copy_takes_its_room_from_the_kv_cache():
    blocks = {dtype: make_setting(dtype).scheduler_config().num_blocks for dtype in (None, "int4", "int8")}
    block_bytes = 16 * make_setting(None).cost_model().model.kv_bytes_per_token
    card = make_setting(None).cost_model().model
    output = card.vocab_size * card.hidden_size  # once more the embedding, which is not copied
    in_layers = card.num_parameters - 2 * output
    assert blocks[None] - blocks["int8"] == pytest.approx((in_layers + output) / block_bytes, abs=1)
    assert blocks[None] - blocks["int4"] == pytest.approx((in_layers / 2 + output) / block_bytes, abs=1)


def test_a_lonely_answer_comes_nearly_twice_as_fast():
    """With one sequence a step is little more than reading the weights, and int8 is half of 16 bits."""
    times = {}
    for dtype in (None, "int8"):
        setting = make_setting(dtype)
        load = parse_workload("fixed:100,200", vocab_size=1000, num_requests=3, rate=0.1, max_model_len=512)
        cluster, metrics = setting.make_cluster()
        cluster.run(load)
        overhead = setting.cost_model().hardware.step_overhead_seconds
        times[dtype] = metrics.inter_token.mean - overhead
    assert 1.8 < times[None] / times["int8"] <= 2.0


def test_an_unknown_type_is_refused_by_name():
    with pytest.raises(ValueError, match=r"decode_weight_dtype must be one of .* got .int3."):
        make_setting("int3")
