"""Ranks that are processes: the same tokens, an end that leaves nothing, and errors that name a rank."""

import gc
import os
import signal
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from minivllm import LLM, SamplingParams
from minivllm.console.commands import mistake
from minivllm.executor.distributed import distributed_executor, launch, ray_cluster
from minivllm.executor.distributed.create import create_distributed_executor, threads_of_a_rank
from minivllm.executor.distributed.distributed_executor import DistributedExecutor
from minivllm.executor.distributed.groups import PeerLostError
from minivllm.executor.distributed.heartbeat import TIMEOUT_SECONDS
from minivllm.executor.executor import ExecutorDeadError, RankError
from minivllm.model.tiny import MODEL_PATH
from minivllm.structured_outputs import StructuredOutputsParams
from tests import patience

PROMPTS = ["Once upon a time", "Question: What is a KV cache?\nAnswer:", "从前，"]
SMALL = {"num_gpu_blocks_override": 64, "attention_backend": "torch"}


def tokens(llm):
    params = [
        SamplingParams(temperature=0, max_tokens=8),
        SamplingParams(temperature=0.9, seed=5, n=3, max_tokens=8),
        SamplingParams(
            temperature=0, max_tokens=8, structured_outputs=StructuredOutputsParams(regex="[a-z]{3,9}")
        ),
    ]
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    return [completion.token_ids for output in outputs for completion in output.outputs]


def workers():
    """Processes of ranks that this one has started."""
    return patience.children(launch.WORKER)


def listening():
    """Addresses and ports of this process, an IPv4 address always in its own form."""
    found = (connection.laddr for connection in psutil.Process().net_connections("tcp"))
    return {(address.ip.removeprefix("::ffff:"), address.port) for address in found}


@pytest.fixture(scope="module")
def expected():
    return tokens(LLM(MODEL_PATH, **SMALL))


def test_two_engines_at_once_give_the_tokens_of_one_and_a_lost_rank_ends_its_own_only(expected):
    before = listening()
    with LLM(MODEL_PATH, tensor_parallel_size=2, **SMALL) as llm:
        other = LLM(MODEL_PATH, pipeline_parallel_size=2, **SMALL)
        try:
            assert tokens(llm) == tokens(other) == expected
            assert len(workers()) == 2
            assert {address for address, _ in listening() - before} == {"127.0.0.1"}
            lost = other.engine.executor._ranks.processes[1]
            other.engine.add_request("it", [5, 6, 7])
            other.engine.step()
            os.kill(lost.pid, signal.SIGKILL)
            began = time.monotonic()
            with pytest.raises(ExecutorDeadError, match=r"rank 1 has ended \(signal 9\)"):
                for _ in range(1 + other.engine.executor.num_stages):  # what it has answered may be told
                    other.engine.step()
            with pytest.raises(ExecutorDeadError, match=r"rank 1 has ended \(signal 9\)"):
                other.engine.step()
            assert time.monotonic() - began < TIMEOUT_SECONDS / 2, "its end was seen, and no silence"
            assert other.engine.abort("it") is not None
        finally:
            other.close()
        assert len(workers()) == 1
        assert tokens(llm) == expected
        llm.engine.executor._watch.expect(10)  # not before: what stops on a busy machine does not hang
        workers()[0].suspend()  # it lives, and keeps its connections
        with pytest.raises(
            ExecutorDeadError, match=r"rank 1 has given no sign of life for 10 seconds: .* last"
        ):
            tokens(llm)
    gc.collect()  # a traceback may still hold what has failed
    assert not workers(), "no process is left"
    patience.until(lambda: not listening() - before)  # and no port, once threads of gloo have closed theirs
    with pytest.raises(ExecutorDeadError, match="no sign of life"):
        tokens(llm)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import time; time.sleep(1e6)", "rank 1 of 2 has not come within 1 seconds"),
        ("raise SystemExit(3)", r"rank 1 has ended \(exit code 3\)"),
    ],
)
def test_a_rank_that_does_not_come_is_named_and_nothing_is_left(monkeypatch, program, message):
    started = []

    def other(*arguments):
        started.append(arguments)
        return [sys.executable, "-c", program]

    monkeypatch.setattr(launch, "child_command", other)
    before = set(psutil.Process().children())
    with pytest.raises(RankError, match=message):
        create_distributed_executor(
            MODEL_PATH, tensor_parallel_size=2, start_seconds=1 if "sleep" in program else patience.SECONDS
        )
    assert len(started) == 1 and not set(psutil.Process().children()) - before


def test_who_is_long_in_going_is_named_all_the_same(monkeypatch):
    """A connection is lost before its process is gone: on a busy machine, or with Ray, long before."""
    looks = iter([""] * 50 + ["rank 1 has ended (signal 9)"])

    def look():
        if ending := next(looks, ""):
            raise RankError(ending)

    monkeypatch.setattr(distributed_executor, "LOOK_SECONDS", 0)
    executor = SimpleNamespace(_ranks=SimpleNamespace(are_ours=True, look=look))
    assert DistributedExecutor._reason(executor, PeerLostError("gone")).startswith("rank 1 has ended (sig")
    executor._ranks.are_ours = False  # of which nobody here sees an end
    assert DistributedExecutor._reason(executor, PeerLostError("gone")).startswith(
        "PeerLostError: gone; with"
    )


def test_launchers_that_are_not_there_are_refused(monkeypatch):
    with pytest.raises(
        ValueError, match=r"distributed_executor_backend is 'external_launcher', but .*torchrun"
    ):
        LLM(MODEL_PATH, tensor_parallel_size=2, distributed_executor_backend="external_launcher")
    with pytest.raises(ValueError, match=r"distributed_executor_backend must be one of 'mp', .*got 'dask'"):
        LLM(MODEL_PATH, tensor_parallel_size=2, distributed_executor_backend="dask")
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"backend is 'ray', which is not installed: pip install 'minivllm\[ray\]'"
    ):
        LLM(MODEL_PATH, tensor_parallel_size=2, distributed_executor_backend="ray")
    monkeypatch.undo()
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: SimpleNamespace(origin=name))
    with pytest.raises(ValueError, match="must not be 'ray' on a GPU"):
        ray_cluster.check("it", "cuda")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ValueError, match="RAY_ADDRESS is 'ray://head:10001': it must be host:port"):
        ray_cluster.check("it", "cpu")
    assert not workers()


def test_a_lost_rank_is_a_sentence_on_the_command_line():
    assert mistake(RankError("rank 1 has ended"), []) == "rank 1 has ended"


def test_more_ranks_than_cores_are_for_learning(caplog):
    assert threads_of_a_rank(10_000) == 1
    assert "10000 ranks share" in caplog.text and "for learning" in caplog.text
