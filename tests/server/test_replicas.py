"""`minivllm serve --data-parallel-size 2`: two engines in processes of their own behind one server."""

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from minivllm.engine.engine_args import EngineArgs
from minivllm.model.tiny import MODEL_PATH
from minivllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
from minivllm.server.replica_messages import Failed, decode_params, encode_params, error_of, failure_of
from minivllm.server.replica_settings import start_of
from minivllm.structured_outputs import StructuredOutputsParams
from minivllm.trace.recorder import Recorder
from tests import patience, profiles

LONG = {"prompt": "Once upon", "max_tokens": 400, "ignore_eos": True, "temperature": 0}
COMMAND = [
    *(sys.executable, "-m", "minivllm", "serve", "--port", "0", "--data-parallel-size", "2"),
    *("--attention-backend", "torch", "--enforce-eager", "--num-gpu-blocks-override", "256"),
    *("--max-model-len", "512", "--prefix-cache", "hash", "--shutdown-timeout", str(patience.SECONDS)),
    *("--distributed-timeout-seconds", "20"),
]


@pytest.fixture(scope="module")
def process():
    with patience.running(COMMAND, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as found:
        yield found


@pytest.fixture(scope="module")
def client(process):
    url = None
    with patience.speaking(process):
        for line in process.stderr:
            if said := re.search(r"is served at (http://\S+)", line):
                url = said[1]
                break
    assert url, "it ended without a word"
    reading = threading.Thread(target=process.stderr.read, daemon=True)  # or the pipe would be full
    reading.start()
    with httpx.Client(base_url=url, timeout=patience.SECONDS) as found:
        yield found


def children(parent):
    """The processes that this one has started, in the order of their starts."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


def metric(client, name):
    """The values of a metric, by engine, once both have answered in time."""
    found = {}

    def all_answer():
        shown = client.get("/metrics").text
        pattern = rf'^vllm:{name}{{[^\n]*engine="(\d+)"[^\n]*}} (\S+)$'
        found.update({int(engine): float(value) for engine, value in re.findall(pattern, shown, re.M)})
        return len(found) == 2

    patience.until(all_answer)
    return found


BODIES = [
    {"prompt": "Once upon", "max_tokens": 20, "temperature": 0, "logprobs": 2},
    {"prompt": "One day", "max_tokens": 12, "n": 3, "seed": 5, "best_of": 3, "priority": 2},
    {"prompt": [5, 6, 7], "max_tokens": 10, "use_beam_search": True, "n": 2, "temperature": 0},
    {"prompt": "Is it good?", "max_tokens": 8, "seed": 1, "structured_outputs": {"choice": ["yes", "no"]}},
    {
        "prompt": "She said",
        "max_tokens": 9,
        "seed": 2,
        "stop": ["e"],
        "logit_bias": {"9": -5},
        "cache_salt": "x",
    },
    {"prompt": ["One", "Two"], "max_tokens": 5, "temperature": 0, "echo": True, "prompt_logprobs": 1},
]


@pytest.mark.parametrize("body", BODIES)
def test_each_replica_says_what_one_engine_says(client, http, body):
    wanted = http.post("/v1/completions", json=body).json()["choices"]
    for _ in range(2):  # one for each replica
        found = client.post("/v1/completions", json=body)
        assert found.status_code == 200
        assert plain(found.json()["choices"]) == plain(wanted)


def plain(choices):
    """What does not hang on the last bits of sums, which several threads may add in another order."""
    return [(c["index"], c["text"], c["finish_reason"], (c["logprobs"] or {}).get("tokens")) for c in choices]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": [10**6]}, "prompt_token_ids"),
        ({"prompt": "x", "structured_outputs": {"regex": "(?=a)"}}, "structured_outputs"),
        ({"prompt": [2**70]}, ""),
    ],
)
def test_what_the_engine_refuses_is_refused_in_the_same_words(client, http, body, words):
    wanted, found = (at.post("/v1/completions", json=body) for at in (http, client))
    assert found.status_code == wanted.status_code == 400
    if words:
        assert found.json() == wanted.json() and words in found.text


def test_requests_are_spread_in_turn_and_counted_by_engine(client):
    before = metric(client, "generation_tokens_total")
    for _ in range(4):
        client.post("/v1/completions", json={"prompt": "Once", "max_tokens": 3, "ignore_eos": True})
    after = metric(client, "generation_tokens_total")
    assert {engine: after[engine] - before[engine] for engine in after} == {0: 6, 1: 6}
    assert client.get("/load").json() == {"server_load": 0}
    assert client.post("/reset_prefix_cache").json() == {"success": True}
    assert metric(client, "kv_cache_usage_perc") == {0: 0, 1: 0}


@contextmanager
def streaming(client):
    with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
        lines = filter(None, response.iter_lines())
        next(lines)
        yield lines


LOST = {
    "dies": (signal.SIGKILL, "has ended (signal 9)"),
    "hangs": (signal.SIGSTOP, "has given no sign of life for 20 seconds"),
}


@pytest.mark.parametrize("how", profiles.by_day(["dies"], LOST))
def test_a_replica_that_is_lost_is_replaced_and_costs_only_what_it_had_told_of(client, process, how):
    signal_number, words = LOST[how]
    first, second = children(process.pid)
    whole = []
    with streaming(client) as one, streaming(client) as other:
        silent = [
            threading.Thread(
                target=lambda: whole.append(client.post("/v1/completions", json=LONG)), daemon=True
            )
            for _ in range(2)
        ]
        for thread in silent:
            thread.start()
        patience.until(lambda: sum(metric(client, "num_requests_running").values()) == 4)
        os.kill(second, signal_number)
        patience.until(lambda: not patience.is_alive(second))
        assert client.get("/health").status_code == 200
        ends = sorted(list(lines)[-2:] for lines in (one, other))
    assert all(end[-1] == "data: [DONE]" for end in ends)
    assert sorted('"error"' in end[0] for end in ends) == [False, True]
    assert any(words in end[0] for end in ends)
    for thread in silent:
        patience.join(thread)
    assert [answer.status_code for answer in whole] == [200, 200], "nothing was told: it was sent again"
    assert len({answer.json()["choices"][0]["text"] for answer in whole}) == 1
    patience.until(lambda: metric(client, "num_requests_running") == {0: 0, 1: 0})
    assert first in (now := children(process.pid)) and len(now) == 2 and second not in now
    short = [client.post("/v1/completions", json=LONG | {"max_tokens": 9}).json() for _ in range(2)]
    assert len({answer["choices"][0]["text"] for answer in short}) == 1


def test_when_the_server_is_told_to_end_requests_finish_and_no_process_is_left(client, process):
    replicas = children(process.pid)
    with streaming(client) as lines:
        process.send_signal(signal.SIGTERM)
        *_, last = lines
    assert last == "data: [DONE]"
    assert process.wait(timeout=patience.SECONDS) == 0
    assert len(replicas) == 2 and not any(map(patience.is_alive, replicas))


@pytest.mark.skipif(profiles.is_day(), reason="by day, of any child: tests/console/test_stopping.py")
def test_a_server_that_is_killed_leaves_no_process():
    with patience.running(COMMAND, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        patience.until(lambda: len(children(process.pid)) == 2)
        replicas = children(process.pid)
        process.kill()
    patience.until(lambda: not any(map(patience.is_alive, replicas)))


# ── without a process ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(n=2, stop=["a"], logit_bias={3: 1.5}, output_kind=RequestOutputKind.DELTA, logprobs=3),
        SamplingParams(
            structured_outputs=StructuredOutputsParams(json={"type": "integer", "minimum": 10**30})
        ),
        SamplingParams(structured_outputs=StructuredOutputsParams(json_object=True), bad_words=["no"]),
        BeamSearchParams(beam_width=3, max_tokens=4),
    ],
)
def test_params_cross_unchanged(params):
    assert decode_params(msgspec.msgpack.decode(msgspec.msgpack.encode(encode_params(params)))) == params


def test_errors_cross_with_their_kind_and_words():
    for error in (ValueError("n must be 1"), RuntimeError("boom")):
        told = msgspec.msgpack.decode(msgspec.msgpack.encode(failure_of(3, error)), type=Failed)
        assert isinstance(error_of(told), type(error)) and str(error) in str(error_of(told))


def test_a_replica_has_the_servers_settings_but_a_seed_and_a_trace_of_its_own():
    args = EngineArgs(MODEL_PATH, data_parallel_size=2, seed=2**63 - 1, trace="runs/it.jsonl", block_size=8)
    told = start_of(args, 1, 2).settings
    assert told["trace"] == "runs/it.engine1-3.jsonl" and told["seed"] == 0
    assert told["gpu_memory_utilization"] == args.gpu_memory_utilization / 2
    assert EngineArgs(**told).block_size == 8 and EngineArgs(**told).data_parallel_size == 1
    with pytest.raises(ValueError, match="trace must be a path"):
        start_of(EngineArgs(MODEL_PATH, data_parallel_size=2, trace=Recorder()), 0, 0)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--data-parallel-size", "2", "--live"), "live must be left out where data_parallel_size is 2"),
        (("--data-parallel-size", "2", "--tensor-parallel-size", "2"), "data_parallel_size must be 1 with"),
        (("--data-parallel-router", "least-loaded"), "but data_parallel_size is 1"),
        (("--data-parallel-size", "2", "--data-parallel-router", "dice"), "data_parallel_router must be one"),
        (("--data-parallel-backend", "ray"), "but data_parallel_size is 1"),
        (
            ("--data-parallel-size", "2", "--data-parallel-backend", "x"),
            "data_parallel_backend must be one of",
        ),
    ],
)
def test_what_replicas_cannot_have_is_refused_before_a_model_is_loaded(here, flags, words):
    code, _, err = here("serve", "/no/model", "--port", "0", *flags)
    assert code == 2 and words in " ".join(err.split())
