"""The dashboard's command: what it starts, what it says, and that nothing stays behind."""

import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from minivllm.processes import ROOT
from tests import patience
from viz import folders, serve


@pytest.fixture
def taken_port():
    with socket.socket() as busy:
        busy.bind((serve.HOST, 0))
        busy.listen()
        yield busy.getsockname()[1]


def test_a_taken_port_is_told_with_the_command_to_try_next(taken_port, capsys, tmp_path):
    assert serve.serve(tmp_path / "t.jsonl", taken_port, open_browser=False) == 2
    message = capsys.readouterr().err
    assert f"Port {taken_port} is taken" in message
    assert message.rstrip().endswith(f"minivllm dashboard {tmp_path / 't.jsonl'} --port {taken_port + 1}")


def test_a_port_that_does_not_exist_is_told(capsys):
    assert serve.serve(None, 70_000, open_browser=False) == 2
    assert "ports go from 1 to 65535" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_told(capsys, tmp_path):
    assert serve.serve(None, 0, open_browser=False, more_folders=[tmp_path, tmp_path / "no"]) == 2
    assert f"there is no folder '{tmp_path / 'no'}'" in capsys.readouterr().err


def test_streamlit_stays_on_this_machine_asks_nothing_and_sends_nothing():
    from streamlit import config

    with serve.bind(0) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"
    assert serve.SETTINGS["server.address"] == "127.0.0.1"
    assert serve.SETTINGS["server.headless"] is True
    assert serve.SETTINGS["browser.gatherUsageStats"] is False
    assert serve.SETTINGS["server.fileWatcherType"] == "none"
    for name in serve.SETTINGS:
        config.get_option(name)  # raises where there is none of this name


def test_the_trace_travels_in_the_environment_and_in_the_link(tmp_path):
    path = tmp_path / "a trace & more.jsonl"
    assert serve.variables(path)["MINIVLLM_TRACE"] == str(path)
    assert "MINIVLLM_TRACE" not in serve.variables(None)
    assert serve.url(8501, path).endswith("a%20trace%20%26%20more.jsonl")
    assert serve.url(8501, None) == "http://127.0.0.1:8501/"


def test_the_folders_that_the_command_names_may_be_opened_and_no_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = tmp_path / "more : folders"
    cases = {(None, ()): [tmp_path], (tmp_path / "a" / "t", (more,)): [tmp_path / "a", more]}
    for (trace, also), wanted in cases.items():
        monkeypatch.setenv(folders.ENVIRONMENT, serve.variables(trace, also)[folders.ENVIRONMENT])
        assert folders.open_folders()[:-4] == wanted


def started(*arguments):
    command = [sys.executable, "-m", "minivllm", "dashboard", "--no-browser", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return patience.running(command, cwd=ROOT, **pipes)


@contextmanager
def dashboard():
    """One at a port that was free: its process, the port, and its first line."""
    with serve.bind(0) as probe:
        port = probe.getsockname()[1]
    with started("--port", str(port)) as process:
        with patience.speaking(process):
            line = process.stdout.readline()
            is_taken = not line and "is taken" in process.stderr.read()
        if not is_taken:
            yield process, port, line
            return
    with dashboard() as found:  # a stranger was quicker
        yield found


def is_free(port):
    bound = serve.bind(port)
    if isinstance(bound, str):
        return False
    bound.close()
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_however_the_dashboard_ends_its_port_is_free_again(number):
    with dashboard() as (process, port, line):
        with patience.speaking(process):
            assert line == f"The dashboard is at http://127.0.0.1:{port}/\n"
            process.send_signal(number)
            said = process.stderr.read()
        code = process.wait(patience.SECONDS)
    assert (code, said) == {
        signal.SIGTERM: (143, "terminated\n"),
        signal.SIGHUP: (143, "terminated\n"),
        signal.SIGINT: (130, "interrupted\n"),
        signal.SIGKILL: (-9, ""),
    }[number]
    patience.until(lambda: is_free(port))  # the server has ended, too; a stranger has the port for a moment
