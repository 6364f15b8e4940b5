"""Ray starts ranks and replicas: the same tokens, an end that leaves nothing, errors that name who is lost.

Two clusters for all of it: one of the tests' own, which is used and left, and one that a server begins and
ends."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minivllm import LLM, SamplingParams
from minivllm.executor.distributed import ray_cluster
from minivllm.executor.distributed.ray_cluster import STORE_BYTES, Bundles
from minivllm.executor.executor import ExecutorDeadError, RankError
from minivllm.model.tiny import MODEL_PATH
from tests import patience

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'minivllm[ray]'")

SMALL = {"num_gpu_blocks_override": 64, "attention_backend": "torch", "max_model_len": 64}
SERVE = [
    *(sys.executable, "-m", "minivllm", "serve", "--port", "0", "--data-parallel-size", "2"),
    *("--data-parallel-backend", "ray", "--attention-backend", "torch", "--enforce-eager"),
    *("--num-gpu-blocks-override", "256", "--max-model-len", "512"),
]


@pytest.fixture(scope="module")
def cluster():
    """With two CPUs: one for this process, and one for another rank."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(
        num_cpus=2,
        object_store_memory=STORE_BYTES,
        _system_config={"prestart_worker_first_driver": False},
        **quiet,
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def expected():
    """One process that computes in the parts of two ranks."""
    with LLM(MODEL_PATH, reduction_parts=2, **SMALL) as llm:
        yield llm


@pytest.fixture(scope="module")
def actors(cluster, expected):
    """An engine with an actor as its second rank."""
    with LLM(
        MODEL_PATH, tensor_parallel_size=2, reduction_parts=2, distributed_executor_backend="ray", **SMALL
    ) as llm:
        yield llm


def workers(parent=None):
    """Processes in which actors of ours are."""
    return [
        child
        for child in psutil.Process(parent).children(recursive=True)
        if "ray::_Worker" in " ".join(child.cmdline() or [child.name()])
    ]


def groups():
    """States of all placement groups."""
    return {group["state"] for group in ray.util.placement_group_table().values()}


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
    with pytest.raises(RankError, match=r"no room for 2 bundles of 2 CPUs: 0 of its 2 CPUs are free"):
        Bundles(2, 2, "PACK", seconds=0.1)
    assert groups() == {"CREATED", "REMOVED"} and len(workers()) == 1


def test_a_lost_actor_ends_its_engine_and_leaves_the_cluster(actors):
    handler = signal.getsignal(signal.SIGTERM)
    assert len(workers()) == 1 and groups() >= {"CREATED"}
    actors.engine.add_request("it", [5, 6, 7])
    actors.engine.step()
    workers()[0].kill()
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(ExecutorDeadError, match=r"rank 1 has ended \(its actor has died\)"):
            actors.engine.step()
    assert time.monotonic() - began < 30
    assert actors.engine.abort("it") is not None
    assert ray.is_initialized() and signal.getsignal(signal.SIGTERM) == handler
    patience.until(lambda: not workers() and groups() == {"REMOVED"})


def test_a_program_with_a_cluster_of_its_own_leaves_no_process(tmp_path):
    """Two replicas in actors behind a server that has begun the cluster; one of them is lost."""
    body = {"prompt": "Once upon", "max_tokens": 400, "ignore_eos": True, "temperature": 0}
    with patience.running(SERVE, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        with patience.speaking(process):
            said = next(
                filter(None, (re.search(r"is served at (\S+)", line) for line in process.stderr)), None
            )
        assert said, "it ended without a word"
        threading.Thread(target=process.stderr.read, daemon=True).start()
        everything = psutil.Process(process.pid).children(recursive=True)
        found = workers(process.pid)
        assert len(found) == 2
        with httpx.Client(base_url=said[1], timeout=patience.SECONDS) as client:
            answers = []
            asking = [
                threading.Thread(
                    target=lambda: answers.append(client.post("/v1/completions", json=body)), daemon=True
                )
                for _ in range(4)
            ]
            for thread in asking:
                thread.start()
            patience.until(lambda: client.get("/load").json() == {"server_load": 4})
            found[1].kill()
            for thread in asking:
                patience.join(thread)
            assert {answer.status_code for answer in answers} == {200}, "they were sent again"
            assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1
            patience.until(lambda: len(workers(process.pid)) == 2)
        everything += workers(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=patience.SECONDS) == 0
    patience.until(lambda: not any(patience.is_alive(each.pid) for each in everything))
    assert ray_cluster._num_users == 0
