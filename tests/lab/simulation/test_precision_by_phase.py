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
def test_only_steps_in_which_everybody_decodes_read_the_second_copy(contexts, dtype):
    plain, mixed = make_setting(None).cost_model(), make_setting(dtype).cost_model()
    decoding = batch_shape([(context, 1) for context in contexts])
    with_a_prompt = batch_shape([*((context, 1) for context in contexts), (0, 2)])
    assert mixed.step_seconds(decoding) < plain.step_seconds(decoding)
    assert mixed.step_seconds(with_a_prompt) == plain.step_seconds(with_a_prompt)


def test_the_second_copy_takes_its_room_from_the_kv_cache():
    blocks = {dtype: make_setting(dtype).scheduler_config().num_blocks for dtype in (None, "int4", "int8")}
    block_bytes = 16 * make_setting(None).cost_model().model.kv_bytes_per_token
    weight_bytes = make_setting(None).cost_model().model.weight_bytes
    assert blocks[None] - blocks["int8"] == pytest.approx(weight_bytes / 2 / block_bytes, abs=1)
    assert blocks[None] - blocks["int4"] == pytest.approx(weight_bytes / 4 / block_bytes, abs=1)


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
