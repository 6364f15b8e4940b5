"""Whatever an engine is asked for, several ranks give the tokens of one: forks, beams, swaps, caches, chunks.

The ranks are threads here (`thread_ranks.py`); those that are processes are in `test_processes.py`.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.decoding.sampler import Sampler
from minivllm.decoding.speculation.ngram import NgramProposer
from minivllm.engine.engine import Engine
from minivllm.engine.speculation import Speculation
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.distributed import distributed_executor, telling
from minivllm.executor.executor import ExecutorDeadError
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.model.parallel.layout import Grid, share_of
from minivllm.model.tiny import MODEL_PATH
from minivllm.sampling_params import BeamSearchParams, SamplingParams
from minivllm.trace.events import RanksTimed, TraceEnded
from minivllm.trace.rank_times import rank_steps
from minivllm.trace.reader import make_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.replay import Replay
from minivllm.trace.summary import summarize
from tests import patience
from tests.executor.distributed.thread_ranks import executor_on_threads

BLOCK_SIZE, NUM_BLOCKS = 4, 48
SWAP_SPACE = 48 << 20
COMMON = [(7 * number) % 4000 + 5 for number in range(13)]


@pytest.fixture(scope="module")
def single():
    return TorchExecutor.from_folder(
        MODEL_PATH,
        dtype="float64",
        block_size=BLOCK_SIZE,
        num_blocks=NUM_BLOCKS,
        swap_space_bytes=SWAP_SPACE,
        backend=TorchAttention,
    )


@pytest.fixture(scope="module", params=[Grid(tensor=2), Grid(1, 2, 2)], ids=["2 ranks", "2 stages of 2"])
def several(request):
    sizes = {"num_gpu_blocks_override": NUM_BLOCKS, "swap_space_bytes": SWAP_SPACE}
    with executor_on_threads(MODEL_PATH, request.param, block_size=BLOCK_SIZE, **sizes) as executor:
        yield executor


def engine_on(executor, speculation=None, how=None, **limits):
    config = SchedulerConfig(
        **{"num_blocks": NUM_BLOCKS, "block_size": BLOCK_SIZE, "max_model_len": 40, **limits}
    )
    return Engine(config, executor, Sampler(4096), vocab_size=4096, speculation=speculation, **how or {})


def serve(engine, requests):
    """Tokens and scores of all outputs of all requests, and how many steps they took."""
    for number, (prompt, params) in enumerate(requests):
        engine.add_request(str(number), prompt, params)
    outputs = {}
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in engine.step()}
    engine.check_invariants()
    found = [
        [(list(each.token_ids), each.finish_reason) for each in outputs[str(number)].outputs]
        for number in range(len(requests))
    ]
    return found, engine.num_steps


samplings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 0.9]),
    n=st.integers(1, 3),
    max_tokens=st.integers(1, 9),
    prompt_logprobs=st.sampled_from([None, 1]),
    seed=st.integers(0, 9),
    ignore_eos=st.just(True),
)
beams = st.builds(BeamSearchParams, st.integers(2, 3), max_tokens=st.integers(1, 6))
requests = st.lists(
    st.tuples(
        st.builds(lambda shared, own: COMMON[:shared] + own, st.integers(0, 13),
                  st.lists(st.integers(5, 4000), min_size=1, max_size=9)),
        st.one_of(samplings, beams),
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip
limits = st.fixed_dictionaries(
    {
        "num_blocks": st.sampled_from([14, 18, NUM_BLOCKS]),
        "max_num_seqs": st.sampled_from([4, 16]),
        "max_num_batched_tokens": st.sampled_from([16, 40, 2048]),
        "prefix_cache": st.sampled_from([None, "hash", "radix"]),
        "scheduling_policy": st.sampled_from(["fcfs", "priority", "static(timeout_seconds=0)"]),
        "swap": st.booleans(),
    }
)


ways = st.sampled_from([{}, {"overlap_stages": False}, {"async_scheduling": True}])
"""On stages: plans in flight, or one at a time. With one stage the first two are the same."""


def config_of(limits, executor):
    limits = dict(limits)
    if limits.pop("swap"):
        limits |= {"num_host_blocks": executor.num_host_blocks, "preemption_mode": "swap"}
    if limits["scheduling_policy"].startswith("static"):
        limits["max_num_batched_tokens"] = 2048
    return limits


@settings(
    max_examples=settings.default.max_examples // 2,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(requests=requests, limits=limits, how=ways)
def test_several_ranks_give_the_tokens_of_one(single, several, requests, limits, how):
    limits = config_of(limits, several)
    assert several.num_host_blocks and several.num_host_blocks == single.num_host_blocks
    try:
        expected = serve(engine_on(single, **limits), requests)
    except ValueError:  # a request that could never be served: refused before any rank hears of it
        return
    engine = engine_on(several, how=how, **limits)
    found, num_steps = serve(engine, requests)
    engine.end_steps()
    assert found == expected[0]
    if several.num_stages == 1 or how == {"overlap_stages": False}:
        assert num_steps == expected[1] or "async_scheduling" in how


def test_an_interrupted_step_is_finished_by_all_ranks_and_the_engine_serves_on(single, several, monkeypatch):
    prompts = [(COMMON, SamplingParams(max_tokens=6, temperature=0, ignore_eos=True))] * 2
    expected, _ = serve(engine_on(single), prompts)
    engine, real = engine_on(several), distributed_executor.wait
    for number, (prompt, params) in enumerate(prompts):
        engine.add_request(str(number), prompt, params)
    engine.step()

    def interrupted(*arguments):
        monkeypatch.setattr(distributed_executor, "wait", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(distributed_executor, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    outputs = {}
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output.outputs[0].token_ids for output in engine.step()}
    assert [outputs[str(number)] for number in range(2)] == [each[0][0] for each in expected]


@pytest.mark.parametrize("kv", ["int8_per_token_head", "fp8"])
def test_drafts_and_a_cache_of_8_bits_are_the_same_on_several_ranks(kv):
    sizes = {"block_size": BLOCK_SIZE, "swap_space_bytes": SWAP_SPACE}
    alone = TorchExecutor.from_folder(
        MODEL_PATH, dtype="float64", backend=TorchAttention, kv_cache_dtype=kv, num_blocks=NUM_BLOCKS, **sizes
    )
    requests = [([5, 6, 7] * 4, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)) for _ in "ab"]
    sizes["num_gpu_blocks_override"] = NUM_BLOCKS
    with executor_on_threads(MODEL_PATH, Grid(tensor=2), kv=kv, **sizes) as executor:
        assert executor.num_host_blocks == alone.num_host_blocks
        kept = executor.model_shape.kv_bytes_per_token
        assert kept == alone.model_shape.kv_bytes_per_token < executor.config.kv_elements_per_token * 8
        found = [
            serve(engine_on(each, Speculation(NgramProposer(1, 3), 3, None)), requests)
            for each in (alone, executor)
        ]
    assert found[0] == found[1]


def test_a_closed_executor_refuses_plans():
    with executor_on_threads(
        MODEL_PATH, Grid(), num_gpu_blocks_override=NUM_BLOCKS, block_size=4
    ) as executor:
        engine = engine_on(executor)
        engine.add_request("it", COMMON)
        engine.close()
        with pytest.raises(ExecutorDeadError, match="closed"):
            engine.step()


@pytest.mark.parametrize("grid", [Grid(tensor=2), Grid(1, 2, 1)], ids=["tensor", "pipeline"])
def test_a_trace_tells_who_owns_what_and_when_every_rank_did_what(grid, monkeypatch):
    monkeypatch.setattr(telling, "TELL_SECONDS", 0.0)  # after every step
    monkeypatch.setattr(distributed_executor, "END_SECONDS", patience.SECONDS)  # for the last of it
    recorder = Recorder()
    sizes = {"num_gpu_blocks_override": NUM_BLOCKS, "block_size": BLOCK_SIZE}
    with executor_on_threads(MODEL_PATH, grid, spans=True, **sizes) as executor:
        engine = engine_on(executor, how={"recorder": recorder})
        serve(engine, [(COMMON, SamplingParams(max_tokens=3, ignore_eos=True))])
        engine.close()
    header, *events = recorder.events
    assert isinstance(events[-1], TraceEnded)
    assert sum(isinstance(event, RanksTimed) for event in events) == engine.num_steps
    trace = make_trace(header, events)
    assert trace.num_steps == engine.num_steps, "what is told after the last step is no step"
    shares = [share_of(executor.config, grid, rank, executor.settings.num_parts) for rank in range(2)]
    assert [(shape.stage, shape.tensor) for shape in header.ranks] == [share.place[1:] for share in shares]
    assert [shape.layers for shape in header.ranks] == [(s.layers.start, s.layers.stop) for s in shares]
    assert [[part.number for part in shape.parts] for shape in header.ranks] == [
        [part.number for part in share.parts] for share in shares
    ]
    kept = sum(shape.cache_bytes for shape in header.ranks)
    assert kept == executor.model_shape.kv_bytes_per_token * BLOCK_SIZE * NUM_BLOCKS
    times = rank_steps(trace)
    assert list(times) == list(range(engine.num_steps))
    for step, ranks in times.items():
        assert [one.rank for one in ranks] == [0, 1] and all(one.num_talks for one in ranks)
        if step:
            assert all(one.start >= before.end for one, before in zip(ranks, times[step - 1], strict=True))
    for state in Replay(trace).walk():
        assert state
    assert "ranks" in dict(summarize(trace).facts())
