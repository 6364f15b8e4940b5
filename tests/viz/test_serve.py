"""The dashboard's command: what it starts, what it says, and that nothing stays behind."""

import socket
import subprocess
import sys

import pytest

from viz import serve


@pytest.fixture
def taken_port():
    with socket.socket() as busy:
        busy.bind((serve.HOST, 0))
        busy.listen()
        yield busy.getsockname()[1]


def free_port():
    with socket.socket() as probe:
        probe.bind((serve.HOST, 0))
        return probe.getsockname()[1]


def test_a_taken_port_is_told_with_the_command_to_try_next(taken_port, capsys, tmp_path):
    assert serve.serve(tmp_path / "t.jsonl", taken_port, open_browser=False) == 2
    message = capsys.readouterr().err
    assert f"Port {taken_port} is taken" in message
    assert message.rstrip().endswith(f"minivllm dashboard {tmp_path / 't.jsonl'} --port {taken_port + 1}")


def test_a_port_that_does_not_exist_is_told(capsys):
    assert serve.serve(None, 70_000, open_browser=False) == 2
    assert "ports go from 1 to 65535" in capsys.readouterr().err


def test_streamlit_stays_on_this_machine_asks_nothing_and_sends_nothing():
    command = serve.command(8501)
    settings = dict(zip(command[5::2], command[6::2], strict=True))
    assert settings["--server.address"] == "127.0.0.1"
    assert settings["--server.headless"] == "true"
    assert settings["--browser.gatherUsageStats"] == "false"
    assert settings["--server.fileWatcherType"] == "none"


def test_the_trace_travels_in_the_environment_and_in_the_link(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIVLLM_TRACE", "an older one")
    path = tmp_path / "a trace & more.jsonl"
    assert serve.environment(path)["MINIVLLM_TRACE"] == str(path)
    assert "MINIVLLM_TRACE" not in serve.environment(None)
    assert serve.url(8501, path).endswith("a%20trace%20%26%20more.jsonl")
    assert serve.url(8501, None) == "http://127.0.0.1:8501/"


def test_it_starts_prints_its_link_and_ends_when_told_to():
    port = free_port()
    command = [sys.executable, "-m", "viz.serve", "--port", str(port), "--no-browser"]
    with subprocess.Popen(command, cwd=serve.ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == f"The dashboard is at http://127.0.0.1:{port}/\n"
        finally:
            process.terminate()
        assert process.wait(20) == 0
    assert serve._obstacle(port) is None, "the server has ended too"
