"""Without a cache the tokens are the same, and the work grows with the square of the length."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.decoding.sampler import Sampler
from minivllm.engine.engine import Engine
from minivllm.executor.recompute_executor import RecomputeExecutor
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.lab.compare.kv_cache import compare_cache
from minivllm.model.tiny import MODEL_PATH
from minivllm.sampling_params import SamplingParams

prompts = st.lists(st.lists(st.integers(3, 4000), min_size=1, max_size=20), min_size=1, max_size=4)


def generate(executor, work, model, **limits):
    config = SchedulerConfig(model.num_blocks, model.block_size, **limits)
    engine = Engine(config, executor, Sampler(4096), vocab_size=4096)
    for number, prompt in enumerate(work):
        engine.add_request(str(number), prompt, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    outputs = {}
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output.outputs[0].token_ids for output in engine.step()}
    return outputs


@settings(max_examples=settings.default.max_examples // 4)
@given(work=prompts, block_size=st.sampled_from([1, 5, 16]), budget=st.sampled_from([3, 64]))
def test_the_tokens_are_the_same_with_and_without_a_cache(work, block_size, budget):
    """In batches, in chunks, in scattered blocks, and after preemptions: in float64, where nothing blurs."""
    num_blocks = -(-26 // block_size) + 3

    def model():
        return TorchExecutor.from_folder(
            MODEL_PATH, dtype="float64", num_blocks=num_blocks, block_size=block_size, device="cpu"
        )

    cached, inner = model(), model()
    with_cache = generate(cached, work, cached, max_num_batched_tokens=budget)
    assert generate(RecomputeExecutor(inner), work, inner, max_num_batched_tokens=budget) == with_cache


def test_the_comparison_counts_the_work_of_both():
    result = compare_cache(MODEL_PATH, prompt_tokens=10, output_tokens=8)
    assert result.same_tokens
    assert result.computed_with_cache == 10 + 7
    assert result.computed_without == sum(range(10, 18))
    assert (result.stretches[0].first_context, result.stretches[-1].last_context) == (11, 17)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens must be an integer of at least 1"),
        ({"output_tokens": 1}, "output_tokens must be an integer of at least 2"),
        ({"threads": 0}, "threads must be an integer of at least 1"),
        ({"prompt_tokens": 5000}, "the prompt has 5000 tokens"),
    ],
)
def test_lengths_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare_cache(MODEL_PATH, **arguments)
