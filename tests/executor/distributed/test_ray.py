"""Ray starts ranks and replicas: the same tokens, an end that leaves nothing, errors that name who is lost.

One cluster for all of it: an engine has begun it, and ends it; replicas use it.
"""

import os
import secrets
import signal
import time
from contextlib import suppress
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minivllm import LLM, SamplingParams
from minivllm.engine.engine_args import EngineArgs
from minivllm.executor.distributed import ray_cluster
from minivllm.executor.distributed.heartbeat import TIMEOUT_SECONDS
from minivllm.executor.distributed.ray_cluster import MOST_CPUS, Bundles
from minivllm.executor.executor import ExecutorDeadError, RankError
from minivllm.model.tiny import MODEL_PATH
from minivllm.server.replicas import Replicas
from tests import event_loops, patience, profiles

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'minivllm[ray]'")

SMALL = {"num_gpu_blocks_override": 64, "attention_backend": "torch", "max_model_len": 64}


@pytest.fixture(scope="module", autouse=True)
def own_token():
    """Of the cluster. Ray would write one to the user's home, and so might another suite that begins now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield


@pytest.fixture(scope="module")
def expected():
    """One process that computes in the parts of two ranks, on as many threads as each of them has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with LLM(MODEL_PATH, reduction_parts=2, **SMALL) as llm:
        yield llm
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def actors(expected):
    """An engine with an actor as its second rank, in a cluster that it has begun."""
    handler = signal.getsignal(signal.SIGTERM)
    with LLM(
        MODEL_PATH, tensor_parallel_size=2, reduction_parts=2, distributed_executor_backend="ray", **SMALL
    ) as llm:
        assert signal.getsignal(signal.SIGTERM) == handler
        yield llm


def workers():
    """Processes in which actors of ours are."""
    return patience.children("ray::_Worker")


def of_ray():
    """Processes of the cluster: this one may have other children, of other tests."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found += [child] if any("ray" in word.split("/") for word in child.cmdline()) else []
            found += [child] if "".join(child.cmdline()[:1]).startswith("ray::") else []
    return found


def states():
    """Of all placement groups."""
    return sorted(group["state"] for group in ray.util.placement_group_table().values())


requests = st.lists(
    st.tuples(
        st.lists(st.integers(5, 4000), min_size=1, max_size=9),
        st.builds(
            SamplingParams,
            temperature=st.sampled_from([0, 0.9]),
            n=st.integers(1, 2),
            seed=st.integers(0, 9),
            max_tokens=st.integers(1, 6),
            logprobs=st.just(3),
        ),
    ),
    min_size=1,
    max_size=3,
)


@settings(
    max_examples=max(1, settings.default.max_examples // 6),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(requests=requests)
def test_ranks_in_actors_give_the_logits_of_one_bit_for_bit(expected, actors, requests):
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
    params = [params for _, params in requests]
    found = [
        [
            [(each.token_ids, each.logprobs, each.cumulative_logprob) for each in output.outputs]
            for output in llm.generate(prompts, params, use_tqdm=False)
        ]
        for llm in (expected, actors)
    ]
    assert found[0] == found[1]


def test_more_than_the_cluster_has_is_refused_and_nothing_is_left(actors):
    wanted = MOST_CPUS // 2 + 1
    with pytest.raises(
        RankError, match=rf"no room for 2 bundles of {wanted} CPUs: \d+ of its {MOST_CPUS} CPUs"
    ):
        Bundles(2, wanted, "PACK", seconds=0.1)
    patience.until(lambda: states() == ["CREATED", "REMOVED"])
    assert len(workers()) == 1


@pytest.mark.skipif(profiles.is_day(), reason="by day, in processes: tests/server/test_replicas.py")
def test_replicas_in_actors_give_the_tokens_of_one_and_one_that_dies_is_replaced(actors, expected):
    params = SamplingParams(max_tokens=20, ignore_eos=True, temperature=0)
    prompt = {"prompt_token_ids": [5, 6, 7]}
    wanted = list(expected.generate([prompt], params, use_tqdm=False)[0].outputs[0].token_ids)
    (rank,) = workers()
    replicas = Replicas(EngineArgs(MODEL_PATH, data_parallel_size=2, **SMALL), backend="ray")

    async def ask(name):
        outputs = [output async for output in replicas.generate(prompt, params, name)]
        return list(outputs[-1].outputs[0].token_ids)

    async def ask_all():
        found = [await ask("0"), await ask("1")]
        mortal.kill()
        return [*found, *[await ask(name) for name in ("2", "3", "4")]]

    try:
        mortal, other = [each for each in workers() if each != rank]
        assert states().count("CREATED") == 2
        assert event_loops.run(ask_all()) == [wanted] * 5
        patience.until(lambda: sorted(replica.life for replica in replicas.replicas) == [0, 1])
        patience.until(lambda: all(replica.is_ready for replica in replicas.replicas))
        patience.until(lambda: set(replicas.reports()) == {0, 1})
        assert {rank, other} < set(workers())
    finally:
        replicas.shutdown()
    patience.until(lambda: workers() == [rank] and states().count("CREATED") == 1)


def test_a_lost_actor_ends_its_engine_and_no_process_is_left(actors):
    processes = of_ray()
    (rank,) = workers()
    actors.engine.add_request("it", [5, 6, 7])
    actors.engine.step()
    rank.kill()
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(ExecutorDeadError, match=r"rank 1 has ended \(its actor has died\)"):
            actors.engine.step()
    assert time.monotonic() - began < TIMEOUT_SECONDS / 2, "its end was seen, and no silence"
    assert actors.engine.abort("it") is not None
    assert not ray.is_initialized(), "it was ours, and nobody else is in it"
    assert rank in processes
    patience.until(lambda: not any(patience.is_alive(process.pid) for process in processes))


def test_a_cluster_that_is_there_is_used_and_left(monkeypatch):
    """Ray's `init` says that one is there: by refusing CPUs of our own."""
    done = []

    def init(**options):
        if "num_cpus" in options:
            raise ValueError("When connecting to an existing cluster, num_cpus must not be provided.")
        if os.environ.get("RAY_ADDRESS") == "nowhere:1":
            raise ConnectionError
        done.append("joined")

    there = SimpleNamespace(
        init=init, is_initialized=lambda: bool(done), shutdown=lambda: done.append("ended")
    )
    monkeypatch.setattr(ray_cluster, "_ray", lambda: there)
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:1")
    with pytest.raises(ValueError, match="the Ray cluster nowhere:1 does not answer"):
        ray_cluster._enter()
    monkeypatch.delenv("RAY_ADDRESS")
    ray_cluster._enter()
    ray_cluster._enter()
    ray_cluster._leave()
    ray_cluster._leave()
    assert done == ["joined"] and ray_cluster._num_users == 0
