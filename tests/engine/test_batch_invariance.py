"""A request's logits are the same bits alone and in any company, in any chunks, blocks, caches and threads.

Whole rows of logits are compared, not tokens: a difference that changes no token today changes one tomorrow.
"""

import random
from copy import deepcopy
from functools import cache
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.decoding.sampler import Sampler
from minivllm.decoding.sampling_state import SamplingState
from minivllm.engine.create_engine import create_engine
from minivllm.engine.engine import Engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.engine.sample_step import sample_step
from minivllm.engine.speculation import Speculation
from minivllm.executor.attention.choose import backend_factory
from minivllm.executor.attention.fixed_tiles import FixedTileAttention
from minivllm.executor.attention.kernel_backend import MicroscopeAttention
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.batch_invariance import VARIABLE, invariant, is_wanted
from minivllm.executor.distributed import create
from minivllm.executor.draft_model import DraftModel
from minivllm.executor.kv_format import AUTO, FP8, INT8
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.quantized_storage import make_storage, twin_of
from minivllm.executor.runners import row_groups
from minivllm.executor.torch_executor import DTYPES, TorchExecutor
from minivllm.memory import blocks_needed
from minivllm.model.config import ModelConfig
from minivllm.model.layers import DenseMatrix
from minivllm.model.load import load_decoder
from minivllm.model.tiny import DRAFT_MODEL_PATH, MODEL_PATH
from minivllm.sampling_params import SamplingParams
from minivllm.trace.events import DraftsVerified
from minivllm.trace.recorder import Recorder
from tests import profiles
from tests.composition.features import CHECKPOINTS
from tests.composition.pairs import checkpoint
from tests.executor.distributed.thread_ranks import start_threads
from tests.executor.test_attention import model, poison

CPU = torch.device("cpu")
LENGTHS = (1, 2, 17, 40, 270)
COUNT = 4
KINDS = {
    "numba-cpu": ("numba-cpu", "float32", None, AUTO),
    "numba-cpu bfloat16": ("numba-cpu", "bfloat16", None, AUTO),
    "numba-cpu int4": ("numba-cpu", "float32", "int4", AUTO),
    "numba-cpu int8": ("numba-cpu", "bfloat16", "int8", AUTO),
    "numba-cpu fp8": ("numba-cpu", "float32", "fp8", AUTO),
    "numba-cpu int8 KV": ("numba-cpu", "float32", None, INT8),
    "numba-cpu fp8 KV": ("numba-cpu", "float32", None, FP8),
    "torch": ("torch", "float32", None, AUTO),
    "torch bfloat16": ("torch", "bfloat16", None, AUTO),
    "torch int8, int8 KV": ("torch", "float32", "int8", INT8),
}
"""Backend, type, how weights are rounded, and how keys and values are kept."""
KINDS_BY_DAY = [
    "numba-cpu", "numba-cpu bfloat16", "numba-cpu int4", "numba-cpu fp8 KV", "torch", "torch int8, int8 KV",
]  # fmt: skip
"""Each backend, each type, and of weights and caches some of each size."""


def prompt(number):
    """Of a length of `LENGTHS`; the last ones begin alike, so that caches have something to find."""
    rng = random.Random(min(number, 3))
    return [rng.randrange(10, 4000) for _ in range(LENGTHS[number])]


@cache
def decoder_of(dtype, quantization):
    return load_decoder(MODEL_PATH, ModelConfig.from_folder(MODEL_PATH), DTYPES[dtype], CPU, quantization)


def make_engine(
    kind, *, block_size=16, num_blocks=None, num_host_blocks=0, trace=None, draft=None, num_drafts=3, **limits
):
    backend, dtype, quantization, kept = KINDS[kind]
    decoder = deepcopy(decoder_of(dtype, quantization))  # a runner stores its matrices in an order of its own
    num_blocks = num_blocks or blocks_needed(1000, block_size)
    storage = make_storage(decoder.config, num_blocks, block_size, DTYPES[dtype], CPU, kept)
    poison(storage)
    host = twin_of(storage, decoder.config, num_host_blocks, CPU) if num_host_blocks else None
    is_asked = backend == "torch"  # where the promise must be asked for
    executor = TorchExecutor(
        decoder, storage, backend_factory(backend), host_storage=host, batch_invariant=is_asked
    )
    config = SchedulerConfig(
        num_blocks=num_blocks, block_size=block_size, num_host_blocks=num_host_blocks, **limits
    )
    vocab_size = decoder.config.vocab_size
    guesses = draft and Speculation(
        DraftModel.beside(executor, draft, backend_factory(backend), batch_invariant=True), num_drafts
    )
    return Engine(
        config,
        executor,
        Sampler(vocab_size),
        vocab_size=vocab_size,
        recorder=trace,
        speculation=guesses,
    )


def params(**more):
    return SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True, **more)


def logits_of(engine, requests):
    """{request: {position: row of logits}} of requests {name: (prompt, params)}, all at once."""
    owners, rows = {}, {}

    def noting(plan, logits, *others):
        for name, request in engine.core.requests.items():
            owners.update((sequence.seq_id, name) for sequence in request.sequences)
        at = 0
        for item in plan.scheduled:
            for position in range(item.end - item.num_logits, item.end):
                rows.setdefault(owners[item.seq_id], {})[position] = logits[at].clone()
                at += 1
        return sample_step(plan, logits, *others)

    with patch("minivllm.engine.step_loop.sample_step", noting):
        for name, (tokens, own) in requests.items():
            engine.add_request(str(name), tokens, own)
        while engine.has_unfinished_requests():
            engine.step()
    engine.check_invariants()
    return {name: rows[str(name)] for name in requests}


@cache
def alone(kind, number):
    """All rows of logits of one request in an engine of its own, in one chunk, on one thread."""
    return logits_of(make_engine(kind), {number: (prompt(number), params(prompt_logprobs=0))})[number]


def differing(kind, found):
    """Requests that have a bit of some logit in another way than alone."""
    return [
        number
        for number, rows in found.items()
        if not all(torch.equal(row, alone(kind, number)[position]) for position, row in rows.items())
    ]


@st.composite
def circumstances(draw):
    """Settings of an engine: some with a pool in which hardly two requests fit at once."""
    block_size = draw(st.sampled_from([1, 5, 16, 48]))
    least = blocks_needed(max(LENGTHS) + COUNT, block_size)
    swap = draw(st.booleans())
    return {
        "block_size": block_size,
        "num_blocks": least + draw(st.integers(1, least)),
        "num_host_blocks": 2 * least if swap else 0,
        "preemption_mode": "swap" if swap else "recompute",
        "prefix_cache": draw(st.sampled_from([None, "hash", "radix"])),
        "max_num_seqs": draw(st.integers(1, 5)),
        "max_num_batched_tokens": draw(st.sampled_from([1, 9, 64, 2048])),
        "long_prefill_token_threshold": draw(st.sampled_from([0, 1, 33])),
        "trace": Recorder() if draw(st.booleans()) else None,
    }


@pytest.mark.parametrize("kind", profiles.by_day(KINDS_BY_DAY, KINDS))
@settings(max_examples=max(2, settings.default.max_examples // 10))
@given(
    where=circumstances(), order=st.permutations(range(len(LENGTHS))), count=st.integers(1, 2), data=st.data()
)
def test_logits_are_those_of_the_run_alone(kind, where, order, count, data):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        engine = make_engine(kind, **where)
        chosen = order[: data.draw(st.integers(2, len(order)))]
        with_all_rows = data.draw(st.booleans())
        own = params(prompt_logprobs=0) if with_all_rows else params()
        found = logits_of(engine, {number: (prompt(number), own) for number in chosen})
        again = logits_of(engine, {number: (prompt(number), params()) for number in chosen[::-1]})
    finally:
        torch.set_num_threads(before)
    assert all(len(rows) >= COUNT for rows in (*found.values(), *again.values()))
    assert differing(kind, found) == [] and differing(kind, again) == []


def speculating(kind, where, order, draft, num_drafts):
    """Rows of logits of requests side by side with drafts; how many drafts there were, and wrong ones."""
    where = where | {"trace": Recorder()}
    engine = make_engine(kind, draft=draft, num_drafts=num_drafts, **where)
    rows = logits_of(engine, {number: (prompt(number), params()) for number in order})
    told = [item for e in where["trace"].events if isinstance(e, DraftsVerified) for item in e.items]
    # A row behind a wrong draft is computed again behind the right token: the last one counts.
    num_drafted = sum(len(item.token_ids) for item in told)
    return rows, num_drafted, num_drafted - sum(item.num_accepted for item in told)


@pytest.mark.parametrize("kind", ["numba-cpu", "torch"])
@settings(max_examples=max(2, settings.default.max_examples // 20))
@given(where=circumstances(), order=st.permutations(range(4)), num_drafts=st.integers(1, 4))
def test_speculating_greedy_is_plain_greedy_bit_for_bit(kind, where, order, num_drafts):
    rows, *_ = speculating(kind, where, order, DRAFT_MODEL_PATH, num_drafts)
    assert all(len(own) >= COUNT for own in rows.values())
    assert differing(kind, rows) == []
    rows, _, num_wrong = speculating(kind, where, order, MODEL_PATH, num_drafts)
    assert differing(kind, rows) == []
    assert num_wrong == 0, "a model that guesses itself, in the same bits, is always right"


COMPANY = {number: (prompt(number), params(prompt_logprobs=0)) for number in range(len(LENGTHS))}


def split_by_rows(self, x, bias=None, added=None):
    """A product whose sums are cut in a place that depends on the number of rows, as libraries' are."""
    at = 1 + 7 * len(x) % (x.shape[1] - 1)
    weight = self.dense()
    product = x[:, :at] @ weight[:, :at].T + x[:, at:] @ weight[:, at:].T
    return product if added is None else product.add_(added)


@pytest.mark.parametrize("in_groups", [True, False])
def test_a_split_that_is_taken_from_the_batch_is_caught_and_in_groups_does_no_harm(monkeypatch, in_groups):
    monkeypatch.setattr(DenseMatrix, "product", split_by_rows)
    if not in_groups:
        monkeypatch.setattr(row_groups, "in_groups", lambda size, function, *arrays: function(*arrays))
    alone.cache_clear()
    try:
        few = {number: COMPANY[number] for number in (1, 2, 3)}
        found = logits_of(make_engine("torch", max_num_batched_tokens=24), few)
        assert (differing("torch", found) == []) == in_groups
    finally:
        alone.cache_clear()


def test_a_split_that_is_taken_from_the_batch_is_caught_by_drafts(monkeypatch):
    """A step with drafts has more rows, and a model no longer guesses itself."""
    monkeypatch.setattr(row_groups, "in_groups", lambda size, function, *arrays: function(*arrays))
    monkeypatch.setattr(DenseMatrix, "product", split_by_rows)
    alone.cache_clear()
    try:
        rows, num_drafted, _ = speculating("torch", {}, (1, 2), MODEL_PATH, 2)
        assert num_drafted and differing("torch", rows)
    finally:
        alone.cache_clear()


def test_a_chunk_edge_that_moves_the_tiles_is_caught(monkeypatch):
    """Tiles that begin with the first token of a chunk, and not at position 0."""
    plan = FixedTileAttention.begin_step

    def begin_step(self, metadata):
        plan(self, metadata)
        monkeypatch.setattr(
            "minivllm.executor.attention.fixed_tiles.TILE_KEYS", 40 + int(metadata.positions[0]) % 24
        )

    monkeypatch.setattr(FixedTileAttention, "begin_step", begin_step)
    found = logits_of(make_engine("torch", max_num_batched_tokens=64), {4: COMPANY[4]})
    monkeypatch.undo()
    assert differing("torch", found) == [4]


def sampled(engine, numbers):
    own = SamplingParams(temperature=1, seed=7, max_tokens=COUNT, ignore_eos=True)
    for number in numbers:
        engine.add_request(str(number), prompt(number), own)
    outputs = {}
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output.outputs[0].token_ids for output in engine.step()}
    return outputs


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_shared_random_stream_is_caught(monkeypatch, is_shared):
    stream = random.Random(7)
    if is_shared:
        monkeypatch.setattr(SamplingState, "next_uniform", lambda self: stream.random())
    expected = sampled(make_engine("torch"), [3])["3"]
    stream.seed(7)
    assert (sampled(make_engine("torch"), [1, 2, 3])["3"] == expected) == (not is_shared)


ARGUED = {
    "numba-cpu decoding in int8": {"attention_backend": "numba-cpu", "decode_weight_dtype": "int8"},
    "numba-cpu decoding in fp8": {"attention_backend": "numba-cpu", "decode_weight_dtype": "fp8"},
    "torch decoding in int4": {"attention_backend": "torch", "decode_weight_dtype": "int4"},
    "numba-cpu in virtual memory": {"attention_backend": "numba-cpu", "allocator": "virtual_memory"},
    "torch in virtual memory": {"attention_backend": "torch", "allocator": "virtual_memory"},
    "torch on 2 ranks": {"attention_backend": "torch", "tensor_parallel_size": 2},
    "numba-cpu in 2 stages": {"attention_backend": "numba-cpu", "pipeline_parallel_size": 2},
    "in 2 parts": {"reduction_parts": 2},
    **{f"a {name} checkpoint": {"model": name, "attention_backend": "numba-cpu"} for name in CHECKPOINTS},
}


ARGUED_BY_DAY = [name for name in ARGUED if "checkpoint" not in name or "gptq" in name]


@pytest.mark.parametrize("name", profiles.by_day(ARGUED_BY_DAY, ARGUED))
def test_what_was_asked_for_beside_it_keeps_the_promise(name, monkeypatch):
    """Weights that depend on a token's place in its own sequence, other memories, ranks, other formats."""
    monkeypatch.setattr(create, "start_processes", start_threads)
    monkeypatch.setenv(VARIABLE, "1")
    asked = {"model": MODEL_PATH, **ARGUED[name]}
    if asked["model"] in CHECKPOINTS:
        asked["model"] = checkpoint(CHECKPOINTS[asked["model"]])

    def engine(**limits):
        usual = {"num_gpu_blocks_override": 80, "dtype": "float32", "max_num_seqs": 4, "max_model_len": 304}
        return create_engine(EngineArgs(block_size=16, **usual, **asked, **limits))

    few = {number: (prompt(number), params(prompt_logprobs=0)) for number in (1, 2, 4)}
    crowded, by_itself = engine(max_num_batched_tokens=100), engine()
    try:
        for number, rows in logits_of(crowded, few).items():
            expected = logits_of(by_itself, {number: few[number]})[number]
            assert rows.keys() == expected.keys()
            assert all(torch.equal(row, expected[position]) for position, row in rows.items()), number
    finally:
        crowded.close()
        by_itself.close()


def test_what_cannot_keep_the_promise_is_refused_by_name():
    config = model((1, 1), 32, [4])
    with pytest.raises(ValueError, match="'microscope' and a model whose layers have sliding windows"):
        invariant(MicroscopeAttention)(config, KVStorage(config, 8, 16, torch.float32, CPU))
    elsewhere = KVStorage(config, 8, 16, torch.float32, torch.device("meta"))
    with pytest.raises(ValueError, match="batch_invariant must be False with the attention backend 'torch'"):
        invariant(TorchAttention)(config, elsewhere)


def test_the_environment_asks_for_it_too(monkeypatch):
    assert not is_wanted(False) and is_wanted(True)
    for value, expected in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv(VARIABLE, value)
        assert is_wanted(False) == expected
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(ValueError, match="VLLM_BATCH_INVARIANT must be 0 or 1, got 'yes'"):
        is_wanted(True)
