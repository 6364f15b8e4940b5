"""Ray starts ranks and replicas: the same tokens, an end that leaves nothing, errors that name who is lost.

One cluster for all of it: an engine has begun it and ends it, a server uses it and leaves it.
"""

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
from minivllm.executor.distributed.ray_cluster import MOST_CPUS, Bundles
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
def expected():
    """One process that computes in the parts of two ranks."""
    with LLM(MODEL_PATH, reduction_parts=2, **SMALL) as llm:
        yield llm


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
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "ray::_Worker" in " ".join(child.cmdline() or [child.name()])
    ]


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
    assert states() == ["CREATED", "REMOVED"] and len(workers()) == 1


def test_a_server_has_its_replicas_in_a_cluster_that_is_there_and_leaves_it(actors, expected):
    """One of them dies, and is replaced; what it was asked for is answered all the same."""
    body = {"prompt": [5, 6, 7], "max_tokens": 40, "ignore_eos": True, "temperature": 0}
    params = SamplingParams(max_tokens=40, ignore_eos=True, temperature=0)
    wanted = expected.generate([{"prompt_token_ids": [5, 6, 7]}], params, use_tqdm=False)
    (rank,) = workers()
    variables = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    with patience.running(SERVE, env=variables, **pipes) as process:
        with patience.speaking(process):
            said = next(
                filter(None, (re.search(r"is served at (\S+)", line) for line in process.stderr)), None
            )
        assert said, "it ended without a word"
        threading.Thread(target=process.stderr.read, daemon=True).start()
        replicas = [each for each in workers() if each != rank]
        assert len(replicas) == 2 and states().count("CREATED") == 2
        with httpx.Client(base_url=said[1], timeout=patience.SECONDS) as client:
            answers = [client.post("/v1/completions", json=body)]
            replicas[1].kill()
            answers += [client.post("/v1/completions", json=body) for _ in range(3)]
            texts = [answer.json()["choices"][0]["text"] for answer in answers]
            assert texts == [wanted[0].outputs[0].text] * 4
            patience.until(lambda: len(workers()) == 3)
            patience.until(lambda: client.get("/metrics").text.count("vllm:kv_cache_usage_perc{") == 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=patience.SECONDS) == 0
    patience.until(lambda: workers() == [rank] and states().count("CREATED") == 1)


def test_a_lost_actor_ends_its_engine_and_no_process_is_left(actors):
    processes = psutil.Process().children(recursive=True)
    (rank,) = workers()
    actors.engine.add_request("it", [5, 6, 7])
    actors.engine.step()
    rank.kill()
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(ExecutorDeadError, match=r"rank 1 has ended \(its actor has died\)"):
            actors.engine.step()
    assert time.monotonic() - began < 30
    assert actors.engine.abort("it") is not None
    assert not ray.is_initialized(), "it was ours, and nobody else is in it"
    assert rank in processes
    patience.until(lambda: not any(patience.is_alive(process.pid) for process in processes))
