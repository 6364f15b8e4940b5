"""`minivllm bench serve`, against a server that misbehaves as it is told."""

import json
import socket

import pytest

from minivllm.console.commands import run
from tests import event_loops, patience
from tests.lab.bench.serve.fake_server import answer, event, fake_server, head, models, whole

QUICK = ["--num-prompts", "6", "--workload", "fixed:5,3", "--vocab-size", "100", "--num-warmups", "2"]


def bench(capsys, *arguments):
    code = event_loops.call(run, ["bench", "serve", *arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, " ".join(said.out.split()), " ".join(said.err.split())


def test_a_run_is_printed_and_written_under_vllms_names(capsys, tmp_path):
    path = tmp_path / "run.json"
    with fake_server() as server:
        code, out, _ = bench(
            capsys, "--base-url", server.url + "/v1/", *QUICK, "--max-concurrency", "2",
            "--goodput", "ttft:60000", "tpot:60000", "--json", str(path), "--save-detailed",
        )  # fmt: skip
        assert len(server.asked) == 8 and {one["path"] for one in server.asked} == {"/v1/completions"}
    told = json.loads(path.read_text())
    assert (
        code == 0 and "Closed loop, at most 2 at once" in out and "Warm-up: 2 requests, not measured." in out
    )
    assert (told["completed"], told["failed"], told["total_input_tokens"], told["total_output_tokens"]) == (
        6,
        0,
        42,
        18,
    )
    assert told["mode"] == "closed" and told["request_goodput"] == told["request_throughput"]
    assert told["max_concurrent_requests"] <= 2 and len(told["ttfts"]) == 6 and told["model_id"] == "fake"


def test_rates_give_a_table_a_list_and_a_picture_and_no_prompt_twice(capsys, tmp_path):
    path, plot = tmp_path / "runs.json", tmp_path / "plot.svg"
    with fake_server() as server:
        code, out, _ = bench(
            capsys, "--base-url", server.url, *QUICK, "--request-rates", "200,400",
            "--result-filename", str(path), "--plot", str(plot), "--endpoint-type", "openai",
        )  # fmt: skip
        prompts = [tuple(one["prompt"]) for one in server.asked]
    assert code == 0 and "Latency against rate" in out and "Open loop: 200 requests a second, Poisson" in out
    assert [one["request_rate"] for one in json.loads(path.read_text())] == [200, 400]
    assert plot.read_text().lstrip().startswith("<?xml") and len(set(prompts)) == len(prompts) == 14


def test_failures_are_shown_and_no_success_at_all_is_an_error(capsys):
    with fake_server(
        lambda asked: answer(asked) if len(asked["prompt"]) and server.asked[3:] == [] else whole(500, {})
    ) as server:
        code, out, _ = bench(capsys, "--base-url", server.url, *QUICK)
    assert code == 0 and "doubtful: 5 of 6 requests failed" in out and "status 500" in out
    with fake_server(
        lambda asked: answer(asked) if len(server.asked) < 3 else answer(asked, done=False)
    ) as server:
        code, _, err = bench(capsys, "--base-url", server.url, *QUICK)
    assert code == 2 and "no request was answered: the stream ended early" in err


def test_a_chat_sends_texts_of_a_file(capsys, tmp_path):
    file = tmp_path / "w.jsonl"
    lines = [{"arrival_seconds": 0, "prompt": f"question {index}", "output_tokens": 2} for index in range(3)]
    file.write_text("\n".join(map(json.dumps, lines)))
    with fake_server() as server:
        code, out, _ = bench(
            capsys, "--base-url", server.url, "--backend", "openai-chat", "--workload", str(file),
            "--num-warmups", "1",
        )  # fmt: skip
        asked = {one["messages"][0]["content"] for one in server.asked[1:]}
    assert code == 0 and asked == {"question 0", "question 1", "question 2"}
    assert "Open loop: arrivals of the file" in out


def test_what_a_server_does_not_say_is_doubted(capsys):
    with fake_server(lambda asked: answer(asked, 2, usage=False)) as server:
        code, out, _ = bench(
            capsys, "--base-url", server.url, *QUICK, "--request-rate", "500", "--max-concurrency", "1"
        )
    assert code == 0 and "6 answers have fewer tokens" in out and "did not count tokens" in out
    assert "not an open loop" in out


def test_a_server_that_is_not_there_is_a_sentence(capsys):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # a port that is nobody else's, and at which nobody listens
        code, _, err = bench(capsys, "--base-url", f"http://127.0.0.1:{nobody.getsockname()[1]}", *QUICK)
    assert code == 2 and "cannot be reached" in err


@pytest.mark.parametrize(
    ("listed", "more", "words"),
    [
        (whole(401, {"error": "Unauthorized"}), (), "the server refuses the key"),
        (whole(404, {"detail": "Not Found"}), (), "status 404: Not Found"),
        (whole(200, "<html>hello</html>", "text/html"), (), "a page of HTML"),
        (whole(200, "[]"), (), "does not answer with a list of models"),
        (whole(200, {"data": []}), (), "serves no model"),
        (models("other"), ("--model", "wanted"), "model 'wanted' is not served"),
    ],
)
def test_a_server_that_is_something_else_is_a_sentence(capsys, listed, more, words):
    with fake_server(models_answer=listed) as server:
        code, _, err = bench(capsys, "--base-url", server.url, *QUICK, *more)
    assert code == 2 and words in err and not server.asked


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (
            lambda asked: whole(404, {"error": {"message": "no such model"}}),
            "the test request failed: status 404",
        ),
        (lambda asked: whole(200, {"choices": []}), "an answer in one piece"),
        (lambda asked: head(200, "text/event-stream") + event({"error": "boom"}), "the server gave up: boom"),
        (lambda asked: b"nonsense\r\n\r\n", "the connection failed"),
    ],
)
def test_a_test_request_that_fails_ends_it_before_anything_is_measured(capsys, answers, words):
    with fake_server(answers) as server:
        code, _, err = bench(capsys, "--base-url", server.url, *QUICK)
    assert code == 2 and words in err and len(server.asked) == 1


URL = ("--base-url", "http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--request-rate", "0"), "request_rate must be a finite number above 0"),
        (("--request-rates", "1,-2"), "request_rates must be a finite number above 0"),
        (("--request-rates", "1,x"), "request_rates must be numbers"),
        (("--request-rates", "1", "--request-rate", "2"), "not both"),
        (("--base-url", "nonsense"), "base_url must be an address"),
        (("--backend", "grpc"), "backend must be one of"),
        (("--max-concurrency", "0"), "max_concurrency must be an integer of at least 1"),
        (("--num-prompts", "0"), "num_prompts must be"),
        (("--burstiness", "2"), "need a rate"),
        (("--goodput", "speed:1"), "goodput must be bounds"),
        (("word",), "unexpected argument 'word'"),
        (("--plot", "x.svg"), "give --request-rates"),
        (("--save-detailed",), "needs a file"),
        (("--json", "/no/such/folder/x.json"), "json must be a file in a folder that exists"),
        ((*URL, "--threads", "2"), "for a server of our own"),
        (("--against-offline", "--request-rate", "2"), "--request-rate has no meaning"),
        (("--against-offline", "--streams", "8,x"), "streams must be numbers"),
        (("--watchers", "0,-1"), "watchers must be an integer of at least 0"),
        (("--watchers", "1", "--max-concurrency", "2"), "--max-concurrency has no meaning with --watchers"),
        (("--output-tokens", "3"), "output_tokens is for files"),
        (("--workload", "nonsense"), "workload 'nonsense': there are sharegpt"),
        (("--workload", "/no/file.json"), "workload '/no/file.json' cannot be read"),
        (("--model", "/no/model"), "model must be nano, small, medium"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(capsys, arguments, words):
    code, _, err = bench(capsys, *arguments)
    assert code == 2 and words in err


def test_prompts_of_tokens_need_a_vocabulary(capsys, tmp_path):
    with fake_server() as server:
        code, _, err = bench(capsys, "--base-url", server.url)
        assert code == 2 and "--vocab-size" in err
        code, _, err = bench(capsys, "--base-url", server.url, "--backend", "openai-chat")
        assert code == 2 and "--tokenizer" in err
        empty = tmp_path / "empty.jsonl"
        empty.write_text("")
        code, _, err = bench(capsys, "--base-url", server.url, "--workload", str(empty))
        assert code == 2 and "holds no request" in err
        assert not server.asked


def test_our_own_server_is_started_compared_with_the_engine_alone_and_ended(capsys, tmp_path):
    path = tmp_path / "against.json"
    code, out, _ = bench(
        capsys, "--against-offline", "--model", "nano", "--threads", "1", "--requests", "2",
        "--streams", "1,2", "--repeat", "1", "--json", str(path),
        "--server-flags", "--num-gpu-blocks-override 512",
    )  # fmt: skip
    told = json.loads(path.read_text())
    assert code == 0 and "Served against the engine alone" in out
    assert [(one["streams"], one["identical"]) for one in told["comparisons"]] == [(1, 1), (2, 2)]
    assert not patience.children("minivllm serve")
