"""Any settings at all: either they are refused in a sentence that names one of them, or the engine works."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm import LLM, SamplingParams
from minivllm.engine.engine_args import EngineArgs
from minivllm.model.tiny import MODEL_PATH

nonsense = st.sampled_from(
    [None, True, -1, 0, 0.5, 1.5, 1e300, float("nan"), "", "16", "y" * 5000, [], {}, 10**12, 10**18, 10**400]
)
SETTINGS = {
    "dtype": st.sampled_from(["auto", "float32", "float64", "bfloat16", "float", "int8"]),
    "seed": st.integers(0, 5),
    "max_model_len": st.sampled_from([1, 2, 40, 2048, 4096]),
    "block_size": st.sampled_from([1, 3, 16, 4096]),
    "gpu_memory_utilization": st.sampled_from([1e-12, 0.5, 1.0]),
    "kv_cache_memory_bytes": st.sampled_from([1, 10**5, 10**6]),
    "num_gpu_blocks_override": st.sampled_from([1, 2, 40]),
    "max_num_seqs": st.sampled_from([1, 2, 300]),
    "max_num_batched_tokens": st.sampled_from([1, 7, 5000]),
    "enable_chunked_prefill": st.booleans(),
    "long_prefill_token_threshold": st.sampled_from([0, 1, 9]),
    "watermark": st.sampled_from([0, 0.01, 1.0]),
    "scheduling_policy": st.sampled_from(["fcfs", "lifo"]),
    "enable_prefix_caching": st.sampled_from([None, False, True]),
    "swap_space": st.sampled_from([0, 4]),
    "tensor_parallel_size": st.sampled_from([1, 2]),
    "quantization": st.sampled_from([None, "awq"]),
    "enforce_eager": st.booleans(),
}


@st.composite
def arguments(draw):
    """A few settings of their own, and now and then something that no setting could ever be."""
    names = draw(st.lists(st.sampled_from(sorted(SETTINGS)), max_size=4, unique=True))
    values = {name: draw(SETTINGS[name]) for name in names}
    if names and draw(st.integers(0, 3)) == 0:
        values[names[0]] = draw(nonsense)
    return values


@settings(max_examples=2 * settings.default.max_examples)
@given(values=arguments())
def test_settings_are_refused_by_name_or_they_work(values):
    try:
        llm = LLM(MODEL_PATH, **values)
    except ValueError as error:
        named = [name for name in EngineArgs.__dataclass_fields__ if name in str(error)]
        assert named, f"the message names nothing: {error}"
        return
    longest = min(
        llm.engine.config.max_model_len, llm.engine.config.num_blocks * llm.engine.config.block_size
    )
    if longest < 12:
        with pytest.raises(ValueError, match=r"max_model_len|blocks"):
            llm.generate([[5] * 12], SamplingParams(max_tokens=4), use_tqdm=False)
        return
    prompts = [[5, 6, 7], [8] * 6]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=4, ignore_eos=True, seed=0), use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [4, 4]
    llm.engine.check_invariants()
    assert llm.engine.cache.num_free_blocks == llm.engine.config.num_blocks
