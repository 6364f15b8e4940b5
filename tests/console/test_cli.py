"""The commands as a newcomer types them, right and wrong: a mistake is one sentence, never a stack trace."""

import json
import subprocess
import sys

import pytest

from minivllm.console.commands import COMMANDS, LazyCommand
from minivllm.engine.engine_args import EngineArgs
from minivllm.engine.settings import settings_of
from minivllm.trace.reader import read_trace
from tests import patience

HEAVY = {"torch", "numba", "numpy", "matplotlib", "streamlit", "transformers", "tokenizers"}


def minivllm(*arguments, cwd=None):
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "minivllm.console.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=patience.SECONDS, cwd=cwd, check=False
    )


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
    assert "RequestPreempted" in kinds, "the pool is small enough that a request must be preempted"
    batches = [event.items for event in trace.events if type(event).__name__ == "BatchPlanned"]
    assert any(
        any(count > 1 for _, _, count in items) and any(count == 1 for _, _, count in items)
        for items in batches
    ), "a prefill shares a step with decodes"
    starts = [(start, count) for items in batches for _, start, count in items]
    assert any(start > 0 and count > 1 for start, count in starts), "a prompt is computed in chunks"


def test_the_scenario_about_sharing_has_all_that_it_is_about(tmp_path, here):
    code, out, err = here("demo", "sharing", "--headless", "--out", tmp_path)
    assert code == 0, err
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
    assert "from the prefix cache" in " ".join(out.split())


def test_a_trace_can_be_summarised_and_exported(demo, tmp_path, here):
    trace = demo[1] / "trace.jsonl"
    code, out, _ = here("trace", "summary", trace)
    assert code == 0 and "requests" in out
    target = tmp_path / "out.json"
    code, _, err = here("trace", "export", "--perfetto", trace, "--out", target)
    assert code == 0, err
    assert json.loads(target.read_text())["traceEvents"]


def test_generate_continues_a_prompt(tmp_path, here):
    code, out, err = here("generate", "Once upon a time,", "--max-tokens", 5, "--trace", tmp_path / "t.jsonl")
    assert code == 0, err
    assert "Once upon a time," in out and (tmp_path / "t.jsonl").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "x", "--block-size", "0"), "block_size must be an integer of at least 1, got 0"),
        (("generate", "x", "--model", "./nowhere"), "model: there is no folder './nowhere'"),
        (("generate", "x", "--max-tokens", "0"), "max_tokens must be an integer of at least 1, got 0"),
        (("generate", "x", "--temperature", "-1"), "temperature must be"),
        (("trace", "summary", "nothing.jsonl"), "nothing.jsonl cannot be read"),
        (("trace", "export", "nothing.jsonl"), "--perfetto"),
        (
            ("trace", "export", "run", "--perfetto", "--out", "./run"),
            "out must be another file than the trace",
        ),
        (("trace", "query", "SELECT 1"), "a statement and a trace are needed"),
        (("generate", "x", "--structured-outputs", "[" * 99_999), "--structured-outputs must be JSON"),
        (("generate", "x", "--seed", "1", "--seed", "b"), "got 'b' (see minivllm generate --help)"),
        (("serve", "--served-model-name", ""), "served_model_name must be a string that is not empty"),
        (("serve", "--host", "\udcff"), "host '\\udcff' and port 8000 cannot be had"),
        (
            ("bench", "serve", "--streams", "1"),
            "--streams has no meaning without --against-offline or --peer",
        ),
        (("bench", "serve", "--server-flags", "'"), "server_flags cannot be cut into words"),
        (("bench", "serve", "--goodput", "ttft:x"), "goodput ttft must be a number of milliseconds, got 'x'"),
        (("quantize", "--dry-run", "--held-out", "nowhere"), "held_out 'nowhere' cannot be read"),
        (("trace", "query", "SELECT 1", "nothing.jsonl"), "nothing.jsonl cannot be read"),
        (("dashboard", "nothing.jsonl"), "nothing.jsonl cannot be read"),
        (("demo", "--headless", "--out", "file/out"), "cannot write to"),
        (("demo", "--port", "0"), "port"),
        (("demo", "farming"), "scenario must be one of 'paging', 'sharing', got 'farming'"),
        (("bench", "throughput", "--model", "huge"), "huge"),
        (("nonsense",), "No such command 'nonsense'; there are demo, generate, serve, quantize, dashboard,"),
        (("bench", "nonsense"), "No such command 'nonsense'; there are throughput, "),
        (("generate",), "Missing argument"),
        (("generate", "x", "--blok-size", "8"), "No such option: --blok-size"),
        (("generate", "x", "--block-size", "eight"), "'--block-size': Input should be a valid integer"),
        (("generate", "x", "--block-size", "eight"), ", got 'eight' (see minivllm generate --help)"),
        (("generate", "x", "--seed=eight"), ", got 'eight' (see minivllm generate --help)"),
        (("demo", "--port", "0"), "'--port'"),
        (("generate", "x", "--block-size"), "--block-size"),
        (("generate", "x", "--dtype", "int7"), "dtype must be one of 'auto', 'half',"),
        (("generate", "x", "--allocator", "malloc"), "allocator must be one of 'paged', "),
        (
            ("generate", "x", "--prefix-cache", "trie"),
            "prefix_cache must be one of 'hash', 'radix', got 'trie'",
        ),
        (("generate", "x", "--scheduling-policy", "lifo"), "scheduling_policy must be one of 'fcfs', "),
        (
            ("generate", "x", "--kv-cache-memory-bytes", "0"),
            "kv_cache_memory_bytes must be an integer of at ",
        ),
        (("generate", "x", "--data-parallel-size", "2"), "data_parallel_size must be 1"),
        (("generate", "x", "--quantization", "nf4"), "quantization must be one of 'gptq', "),
        (
            ("generate", "x", "--swap-space", "-1"),
            "swap_space must be a finite number of at least 0",
        ),
        (("simulate", "--block-size", "0"), "block_size must be an integer of at least 1, got 0"),
        (("simulate", "--router", "dice"), "router must be one of"),
        (("compare", "memory", "--block-size", "0"), "block_size must be"),
        (
            ("compare", "schedule", "--max-num-seqs", "0"),
            "max_num_seqs must be an integer of at least 1, got 0",
        ),
        (("calibrate", "--out", "card.txt"), "out must be a .json file"),
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
    result = minivllm("trace", "summary", "nothing.jsonl", cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "error: nothing.jsonl cannot be read: No such file or directory\n"


def imported_by(*arguments):
    """The names of all modules that a command line has imported when it ends, and what it printed."""
    code = (
        "import sys; from minivllm.console.cli import main; import atexit;"
        "atexit.register(lambda: print('MODULES', *sys.modules)); main()"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience.SECONDS, check=True)
    printed, _, modules = done.stdout.partition("MODULES ")
    return set(modules.split()), printed


HELP_OF_ALL = """
import sys
from minivllm.console.commands import run

for name in sys.argv[1:]:
    run([name, "--help"])
    print("MODULES", *sys.modules, end="\\0")
"""


def test_help_imports_no_library_that_computes_or_draws():
    """Of all commands, one after the other in one process: the first that imports one is named."""
    names = [name for name in COMMANDS if name != "lesson"]
    command = [sys.executable, "-c", HELP_OF_ALL, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience.SECONDS, check=True)
    *told, _ = done.stdout.split("\0")
    for name, one in zip(names, told, strict=True):
        printed, _, modules = one.partition("MODULES ")
        assert f"Usage: minivllm {name}" in printed
        heavy = set(modules.split()) & HEAVY
        assert not heavy, f"minivllm {name} --help imports {heavy}"


@pytest.fixture(scope="module")
def overview():
    """The modules that `minivllm --help` imports, and what it prints."""
    return imported_by("--help")


def test_the_overview_imports_no_command_either(overview):
    modules, printed = overview
    assert "Usage: minivllm" in printed and not modules & HEAVY
    ours = {
        name for name in modules if name.startswith(("minivllm.lab", "minivllm.engine", "viz", "lessons"))
    }
    assert not ours
    for name in COMMANDS:
        assert f"  {name} " in printed


def test_the_version_is_printed_without_waiting_for_torch():
    modules, printed = imported_by("--version")
    assert printed.startswith("minivllm ") and not modules & HEAVY


@pytest.mark.parametrize("name", COMMANDS)
def test_the_overview_and_the_command_say_the_same(name):
    sentence = LazyCommand(name, COMMANDS[name]).load().help
    assert sentence.startswith(COMMANDS[name].help)


def test_python_dash_m_minivllm_is_the_same_program(overview):
    done = subprocess.run(
        [sys.executable, "-m", "minivllm", "--help"],
        capture_output=True,
        text=True,
        timeout=patience.SECONDS,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout == overview[1]


def test_generate_has_a_flag_for_every_setting_of_the_engine_with_its_help_and_default():
    flags = {flag.name: flag for flag in LazyCommand("generate", COMMANDS["generate"]).load().params}
    for name, declared in settings_of(EngineArgs).items():
        flag = flags[name]
        assert f"--{name.replace('_', '-')}" in flag.opts
        assert flag.help == declared.setting.help
        assert flag.default == (None if declared.is_required else declared.default)


def test_the_value_of_every_flag_reaches_the_engine(here, monkeypatch):
    given = {}

    def fail_with(**settings):
        given.update(settings)
        raise ValueError("seen")

    monkeypatch.setattr("minivllm.LLM", fail_with, raising=False)
    words, wanted = [], {}
    for name, declared in settings_of(EngineArgs).items():
        flag = f"--{name.replace('_', '-')}"
        if declared.types == (bool,):
            wanted[name] = not declared.default
            words.append(flag if wanted[name] else flag.replace("--", "--no-", 1))
        else:
            wanted[name] = {int: 3, float: 0.5}.get(declared.types[0], "text")
            words += [flag, wanted[name]]
    code, _, err = here("generate", "x", *words)
    assert (code, err.strip()) == (2, "error: seen")
    assert given == wanted


def test_the_cache_comparison_prints_what_each_step_costs(here):
    code, out, err = here("compare", "cache", "--prompt-tokens", 8, "--output-tokens", 6)
    assert code == 0, err
    assert "Both runs generated the same tokens." in out


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
