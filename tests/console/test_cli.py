"""The commands as a newcomer types them, right and wrong: a mistake is one sentence, never a stack trace."""

import json
import subprocess
import sys
from copy import copy

import pytest

from minivllm.console import cli
from minivllm.trace.reader import read_trace


def minivllm(*arguments, cwd=None):
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "minivllm.console.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=cwd, check=False)


@pytest.fixture
def here(monkeypatch, capsys, tmp_path):
    """Run the command line in this process, which is quicker: exit code, output, errors."""

    def run(*arguments):
        # A fresh one each time: `main` adds its commands to it.
        monkeypatch.setattr(cli, "app", copy(cli.app))
        cli.app.registered_commands = list(cli.app.registered_commands)
        cli.app.registered_groups = list(cli.app.registered_groups)
        monkeypatch.setattr(sys, "argv", ["minivllm", *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code or 0
        return (code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One run of the demo, and the folder it wrote to."""
    folder = tmp_path_factory.mktemp("demo")
    return minivllm("demo", "--headless", "--out", folder / "out"), folder / "out"


def test_the_demo_prints_every_text_and_the_numbers_and_writes_the_trace(demo):
    result, folder = demo
    assert result.returncode == 0, result.stderr
    for number in range(12):
        assert f"[{number}] " in result.stdout
    for word in ("throughput", "time to first token", "preemptions", "blocks in use", "wasted slots"):
        assert word in result.stdout
    trace = read_trace(folder / "trace.jsonl")
    assert trace.warnings == [] and trace.num_steps > 40
    assert trace.header.model.name


def test_the_demo_shows_what_it_is_there_to_show(demo):
    trace = read_trace(demo[1] / "trace.jsonl")
    kinds = [type(event).__name__ for event in trace.events]
    assert kinds.count("RequestQueued") == kinds.count("SequenceFinished") == 12
    assert "RequestPreempted" in kinds, "the pool is small enough that somebody must step aside"
    batches = [event.items for event in trace.events if type(event).__name__ == "BatchPlanned"]
    assert any(
        any(count > 1 for _, _, count in items) and any(count == 1 for _, _, count in items)
        for items in batches
    ), "a prefill shares a step with decodes"
    starts = [(start, count) for items in batches for _, start, count in items]
    assert any(start > 0 and count > 1 for start, count in starts), "a prompt is computed in chunks"


def test_the_story_about_sharing_has_all_that_it_is_about(tmp_path):
    result = minivllm("demo", "sharing", "--headless", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    trace = read_trace(tmp_path / "sharing.jsonl")
    kinds = {type(event).__name__ for event in trace.events}
    assert kinds >= {
        "SequenceForked",
        "BlockCopied",
        "BlocksShared",
        "BlocksCached",
        "BlocksEvicted",
        "BlocksSwappedOut",
        "BlocksSwappedIn",
        "BeamsAdvanced",
    }
    assert "from the prefix cache" in " ".join(result.stdout.split())


def test_a_trace_can_be_summarised_and_exported(demo, tmp_path):
    trace = demo[1] / "trace.jsonl"
    summary = minivllm("trace", "summary", trace)
    assert summary.returncode == 0 and "requests" in summary.stdout
    target = tmp_path / "out.json"
    exported = minivllm("trace", "export", "--perfetto", trace, "--out", target)
    assert exported.returncode == 0, exported.stderr
    assert json.loads(target.read_text())["traceEvents"]


def test_generate_continues_a_prompt(tmp_path):
    result = minivllm("generate", "Once upon a time,", "--max-tokens", 5, "--trace", tmp_path / "t.jsonl")
    assert result.returncode == 0, result.stderr
    assert "Once upon a time," in result.stdout and (tmp_path / "t.jsonl").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "x", "--block-size", "0"), "block_size must be an integer of at least 1, got 0"),
        (("generate", "x", "--model", "./nowhere"), "there is no folder ./nowhere"),
        (("generate", "x", "--max-tokens", "0"), "max_tokens must be an integer of at least 1, got 0"),
        (("generate", "x", "--temperature", "-1"), "temperature must be"),
        (("trace", "summary", "nothing.jsonl"), "nothing.jsonl cannot be read"),
        (("trace", "export", "nothing.jsonl"), "--perfetto"),
        (("dashboard", "nothing.jsonl"), "nothing.jsonl cannot be read"),
        (("demo", "--headless", "--out", "file/out"), "cannot write to"),
        (("demo", "--port", "0"), "port"),
        (("demo", "farming"), "story must be one of"),
        (("bench", "throughput", "--model", "huge"), "huge"),
        (("nonsense",), "nonsense"),
        (("microscope", "cubism"), "kernel must be one of 'naive-attention'"),
        (("microscope", "kv-write", "--shape", "fish=2"), "shape of kv-write must be one of"),
        (("microscope", "none.py:kernel"), "there is no Python file 'none.py'"),
        (("microscope", "kv-write", "--trace", "file/x"), "trace must be a file in a folder that exists"),
        (("compare", "attention", "--tokens", "7"), "tokens must be a multiple of 64"),
        (("generate", "x", "--attention-backend", "cubism"), "attention_backend must be one of 'auto'"),
        (("figures", "--only", "cubism"), "only must be one of 'request-rate'"),
        (("figures", "--seed", "-1"), "seed"),
        (("figures", "--out", "file/out"), "out: file/out cannot be made"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message, tmp_path, here):
    (tmp_path / "file").write_text("not a folder")
    code, out, err = here(*arguments)
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err + out


def test_a_mistake_is_the_same_in_a_process_of_its_own(tmp_path):
    result = minivllm("generate", "x", "--block-size", "0", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.strip() == "error: block_size must be an integer of at least 1, got 0"


def test_the_version_and_the_help_do_not_wait_for_torch():
    code = "import sys, minivllm.console.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert minivllm("--version").stdout.startswith("minivllm ")
    assert "demo" in minivllm("--help").stdout


def test_the_cache_comparison_prints_what_each_step_costs():
    result = minivllm("compare", "cache", "--prompt-tokens", 8, "--output-tokens", 6)
    assert result.returncode == 0, result.stderr
    assert "Both runs generated the same tokens." in result.stdout


FAULTY = """
from numba import cuda

@cuda.jit
def shift(a):
    i = cuda.threadIdx.x
    a[i] = a[(i + 1) % 32]
"""


def test_the_microscope_says_what_a_kernel_does_and_what_is_wrong_with_it(tmp_path, here):
    code, out, err = here("microscope", "kv-write", "--trace", "trace.jsonl")
    assert code == 0, err
    assert "write keys" in out and "nothing out of bounds" in out
    assert (tmp_path / "trace.jsonl").read_text().startswith('{"event":"KernelHeader"')
    (tmp_path / "own.py").write_text(FAULTY)
    code, out, err = here("microscope", "own.py:shift", "--arguments", "a=float32:32")
    assert code == 1
    assert "race in block 0 on a[" in " ".join(out.split())
    code, out, err = here("microscope", "own.py:shift", "--arguments", "a=float32:8")
    assert code == 1
    assert "OutOfBounds: thread (7, 0, 0)" in " ".join(out.split())
    assert "Traceback" not in out + err
