"""Any settings at all, and any config.json: a sentence names what is refused, or the engine works."""

import json
import resource

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

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
    "kv_cache_dtype": st.sampled_from(["auto", "int8_per_token_head", "fp8", "int4"]),
    "max_num_seqs": st.sampled_from([1, 2, 300]),
    "max_num_batched_tokens": st.sampled_from([1, 7, 5000]),
    "enable_chunked_prefill": st.booleans(),
    "long_prefill_token_threshold": st.sampled_from([0, 1, 9]),
    "watermark": st.sampled_from([0, 0.01, 1.0]),
    "scheduling_policy": st.sampled_from(["fcfs", "lifo"]),
    "enable_prefix_caching": st.sampled_from([None, False, True]),
    "swap_space": st.sampled_from([0, 4]),
    "tensor_parallel_size": st.sampled_from([1, 5]),  # more ranks are tested with the executor of theirs
    "reduction_parts": st.sampled_from([None, 1, 2, 4]),
    "quantization": st.sampled_from([None, "awq", "int8", "int4", "fp8"]),
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


# ---- the files of a model -----------------------------------------------------------------------------

FAMILIES = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
KEYS = ["architectures", "attention_bias", "bos_token_id", "dtype", "eos_token_id", "head_dim", "hidden_act",
        "hidden_size", "intermediate_size", "layer_types", "max_position_embeddings", "max_sequence_length",
        "max_window_layers", "mlp_bias", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
        "original_max_position_embeddings", "partial_rotary_factor", "quantization_config", "rms_norm_eps",
        "rope_parameters", "rope_scaling", "rope_theta", "sliding_window", "text_config",
        "tie_word_embeddings", "torch_dtype", "use_sliding_window", "vocab_size"]  # fmt: skip
ROPE_KEYS = ["attention_factor", "beta_fast", "beta_slow", "factor", "high_freq_factor", "low_freq_factor",
             "mrope_section", "mscale", "mscale_all_dim", "original_max_position_embeddings",
             "partial_rotary_factor", "rope_theta", "rope_type", "short_factor", "truncate"]  # fmt: skip
LENGTHS = ["max_position_embeddings", "max_sequence_length", "original_max_position_embeddings"]
GENERATION_KEYS = [
    "eos_token_id",
    "max_new_tokens",
    "min_p",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
]
ROPES = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 16},
    "llama3": {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {"short_factor": [1.0, 1.0], "original_max_position_embeddings": 16},
}


def deep(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


ODD = [None, True, False, -1, 0, 1, 2, 3, 4, 0.5, 1e-300, 1e308, float("nan"), float("inf"), 10**9, 10**30,
       "", "2", "gelu", "float16", "x" * 10**5, [], [2], ["x"] * 10**5, [None], {}, {"a": {"b": 1}},
       ["Qwen3ForCausalLM"], ["full_attention", "sliding_attention"], deep(500)]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each family, and its config before anything happens to it."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 19, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "pad_token_id": None,
             "max_position_embeddings": 32}  # fmt: skip
    made = {}
    for family, config in FAMILIES.items():
        folder = tmp_path_factory.mktemp(family)
        AutoModelForCausalLM.from_config(config(**sizes)).save_pretrained(folder)
        made[family] = folder, json.loads((folder / "config.json").read_text())
    return made


@st.composite
def mutations(draw):
    """Which file, and one key of it with an odd value."""
    place = draw(st.sampled_from(["config", "config", "rope", "generation"]))
    value = draw(st.sampled_from(ODD))
    if place == "config":
        key = draw(st.sampled_from(KEYS))
        return key, {key: value}, {}
    if place == "generation":
        key = draw(st.sampled_from(GENERATION_KEYS))
        return key, {}, {key: value}
    kind, key = draw(st.sampled_from(sorted(ROPES))), draw(st.sampled_from(ROPE_KEYS))
    spelling = draw(st.sampled_from(["rope_scaling", "rope_parameters"]))
    return key, {spelling: {"rope_type": kind, **ROPES[kind], key: value}}, {}


@settings(max_examples=4 * settings.default.max_examples)
@given(family=st.sampled_from(sorted(FAMILIES)), mutation=mutations())
def test_a_model_with_any_odd_value_is_refused_by_its_key_or_it_works(folders, family, mutation):
    key, changes, generation = mutation
    folder, config = folders[family]
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        llm = LLM(folder, num_gpu_blocks_override=4, attention_backend="torch", skip_tokenizer_init=True)
        (output,) = llm.generate([[5, 6]], SamplingParams(max_tokens=2, ignore_eos=True), use_tqdm=False)
        assert output.outputs[0].token_ids  # one, where the length that was drawn leaves no room for two
    except ValueError as error:
        named = "max_" if key in ("max_new_tokens", *LENGTHS) else key
        assert named in str(error) and len(str(error)) < 1_000, error
    finally:
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - kilobytes
        assert grown < 300_000, f"{grown} kB for {key}"
