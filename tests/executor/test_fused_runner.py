"""The hot path of a CPU computes what its plain twin computes."""

from array import array

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.executor.attention.numba_cpu_backend import NumbaCpuAttention
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.quantized_storage import make_storage
from minivllm.executor.runners import choose
from minivllm.executor.runners.eager import EagerRunner
from minivllm.executor.runners.fused import FusedRunner
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.model import packed
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.scheduling.plan import ScheduledSequence, StepPlan
from tests.executor.test_attention import poison

CPU = torch.device("cpu")
NUM_BLOCKS, BLOCK_SIZE, VOCABULARY = 64, 4, 50
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@pytest.fixture(autouse=True)
def no_compiled_steps(monkeypatch):
    """A compiled runner would take all steps of the models that it knows."""
    monkeypatch.setattr(choose, "has_compiled_step", lambda *_: False)


@st.composite
def configs(draw):
    kv_heads, group = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (1, 3)]))
    window = draw(st.sampled_from([None, 5]))
    return ModelConfig.from_dict(
        {
            "architectures": [draw(st.sampled_from(ARCHITECTURES))],
            "vocab_size": VOCABULARY,
            "hidden_size": draw(st.sampled_from([16, 40, 64])),
            "intermediate_size": draw(st.sampled_from([8, 48])),
            "num_hidden_layers": draw(st.integers(1, 3)),
            "num_attention_heads": kv_heads * group,
            "num_key_value_heads": kv_heads,
            "head_dim": draw(st.sampled_from([8, 16])),
            "hidden_act": draw(st.sampled_from(["silu", "gelu_pytorch_tanh"])),
            "tie_word_embeddings": draw(st.booleans()),
            "attention_bias": draw(st.booleans()),
            "sliding_window": window,
            "use_sliding_window": window is not None,
            "max_window_layers": 1,
            "max_position_embeddings": 64,
            "torch_dtype": "float32",
        }
    )


def executor_of(config, backend, seed, dtype=torch.float32, num_blocks=NUM_BLOCKS, spread=0.3, kind="auto"):
    decoder = Decoder(config, dtype, CPU)
    generator = torch.Generator().manual_seed(seed)
    for _, view in decoder.views():
        view.copy_(spread * torch.randn(view.shape, generator=generator))
    storage = make_storage(config, num_blocks, BLOCK_SIZE, dtype, CPU, kind)
    poison(storage)
    return TorchExecutor(decoder, storage, backend)


@st.composite
def runs(draw):
    """Steps of a few sequences: prompts in chunks, then tokens, with any number of logits wanted."""
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    steps = draw(st.lists(st.lists(st.integers(0, 6), min_size=4, max_size=4), max_size=3))
    done, plans = [0] * len(lengths), []
    for counts in [lengths, *steps]:
        scheduled = []
        for sequence, count in enumerate(counts[: len(lengths)]):
            if count == 0:
                continue
            tokens = array(
                "i", draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=count, max_size=count))
            )
            blocks = array("i", range(8 * sequence, 8 * sequence + 8))
            wanted = draw(st.integers(0, count))
            scheduled.append(ScheduledSequence(sequence, done[sequence], tokens, blocks, wanted))
            done[sequence] += count
        plans.append(StepPlan(len(plans), tuple(scheduled)))
    return plans


@given(configs(), runs(), st.integers(0, 99))
@settings(deadline=None)
def test_logits_are_those_of_the_plain_decoder(config, plans, seed):
    plain, fused = (executor_of(config, backend, seed) for backend in (TorchAttention, NumbaCpuAttention))
    assert isinstance(fused.runner, FusedRunner) and isinstance(plain.runner, EagerRunner)
    for plan in plans:
        torch.testing.assert_close(fused.execute(plan), plain.execute(plan), atol=1e-4, rtol=1e-4)


@given(configs(), runs(), st.sampled_from(["int8_per_token_head", "fp8"]), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_a_cache_in_8_bits_holds_what_the_plain_decoder_put_there(config, plans, kind, seed):
    """Sums in another order may round a number to the next code, and then logits see it."""
    plain, fused = (
        executor_of(config, backend, seed, kind=kind) for backend in (TorchAttention, NumbaCpuAttention)
    )
    assert isinstance(fused.runner, FusedRunner)
    for plan in plans:
        torch.testing.assert_close(fused.execute(plan), plain.execute(plan), atol=0.05, rtol=0.05)


@given(configs(), runs())
@settings(deadline=None, max_examples=15)
def test_bfloat16_stays_as_near_to_float32_as_the_plain_decoder_does(config, plans):
    exact = executor_of(config, TorchAttention, 0)
    plain, fused = (
        executor_of(config, backend, 0, torch.bfloat16) for backend in (TorchAttention, NumbaCpuAttention)
    )
    worst = {"plain": 0.0, "fused": 0.0}
    for plan in plans:
        truth = exact.execute(plan)
        for name, executor in (("plain", plain), ("fused", fused)):
            error = (executor.execute(plan) - truth).abs().amax() if len(truth) else torch.zeros(())
            worst[name] = max(worst[name], float(error))
    assert worst["fused"] <= 3 * worst["plain"] + 0.1


@given(configs(), st.integers(0, 9))
@settings(deadline=None, max_examples=10)
def test_packed_weights_can_be_read_back_under_their_names(config, seed):
    plain, fused = (executor_of(config, backend, seed) for backend in (TorchAttention, NumbaCpuAttention))
    views, packed_views = dict(plain.decoder.views()), dict(fused.decoder.views())
    assert views.keys() == packed_views.keys()
    for name, view in views.items():
        assert torch.equal(view, packed_views[name]), name
    assert plain.decoder.num_bytes == fused.decoder.num_bytes


def test_packing_twice_changes_nothing():
    config = ModelConfig.from_dict(
        {"architectures": ["LlamaForCausalLM"], "vocab_size": 9, "hidden_size": 16, "intermediate_size": 8,
         "num_hidden_layers": 1, "num_attention_heads": 2, "torch_dtype": "float32"}
    )  # fmt: skip
    fused = executor_of(config, NumbaCpuAttention, 0)
    storage = KVStorage(config, NUM_BLOCKS, BLOCK_SIZE, torch.float32, CPU)
    twin = TorchExecutor(fused.decoder, storage, NumbaCpuAttention)
    plan = StepPlan(0, (ScheduledSequence(0, 0, array("i", [1, 2, 3]), array("i", [0]), 3),))
    assert torch.equal(fused.execute(plan), twin.execute(plan))


def test_where_torch_has_no_packed_products_the_plain_ones_are_used(monkeypatch):
    def gone(*_):
        raise AttributeError("no such operator")

    monkeypatch.setattr(packed, "OneDnnMatrix", gone)
    packed.can_pack.cache_clear()
    try:
        assert not packed.can_pack(torch.float32)
    finally:
        packed.can_pack.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_are_never_packed(dtype):
    assert not packed.can_pack(dtype)
