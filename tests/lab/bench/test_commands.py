"""The command line: it measures, it writes, and a mistake is one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from minivllm.lab.bench.commands import app
from tests import patience

SMALL = ["--model", "nano", "--threads", "1", "--requests", "2", "--repeat", "1", "--seed", "7189"]


def test_throughput_prints_tables_and_writes_json(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    done = CliRunner().invoke(app, ["throughput", *SMALL, "--json", str(target)])
    assert done.exit_code == 0, done.output
    assert "output tokens per second" in done.output
    assert "on 1 thread;" in done.output
    written = json.loads(target.read_text())
    assert written["header"]["kind"] == "throughput"
    assert written["header"]["machine"]["threads"] == 1
    assert written["header"]["settings"]["requests"] == 2
    assert written["num_requests"] == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["throughput", "--model", "huge"], "model must be nano, small, medium, or a folder"),
        (["field", "--threads", "0"], "threads must be an integer of at least 1 and at most 1024, got 0"),
        (["trace", "--repeat", "0"], "repeat must be an integer of at least 1, got 0"),
        (["control-plane", "--dtype", "int3"], "dtype must be one of"),
        (["--model", "nano", "field"], "put --model after the command: minivllm bench field --model"),
        (["--threads", "0"], "threads must be an integer of at least 1 and at most 1024, got 0"),
        (["throughput", "--json", "no/such/folder/x.json"], "json: cannot write to"),
    ],
)
def test_a_mistake_is_a_value_error_that_the_command_line_prints(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, ValueError)
    assert sentence in str(done.exception)


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from minivllm.lab.bench.commands import app; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=patience.SECONDS)
