"""Text is text: what a user types, a file is called or a model says is printed as it is by every command."""

from io import StringIO

import pytest

from lessons.commands import main as lessons_main
from minivllm.console.commands import run
from minivllm.console.generate_command import print_outputs
from minivllm.outputs import CompletionOutput, RequestOutput
from minivllm.terminal import Console
from minivllm.text import printable
from tests.viz import trace_factory
from tests.viz.trace_factory import Workload

NASTY = "[/b] [red]x[/red] :smile: \x1b[2J \u202ea"
IN_NAMES = "[red] [:smile:] \x1b[2J.jsonl"

COMMANDS = [
    ["demo", NASTY, "--headless"],
    ["generate", "x", "--model", f"/nowhere/{NASTY}"],
    ["generate", "x", "--scheduling-policy", NASTY],
    ["dashboard", f"/nowhere/{NASTY}"],
    ["trace", "summary", f"/nowhere/{NASTY}"],
    ["trace", "export", f"/nowhere/{NASTY}", "--perfetto"],
    ["bench", "--model", f"/nowhere/{NASTY}"],
    ["compare", "schedule", "--policies", NASTY],
    ["compare", "memory", "--plot", f"/nowhere/{NASTY}.png"],
    ["simulate", "--hardware", NASTY],
    ["simulate", "--workload", NASTY],
    ["calibrate", "--out", NASTY],
    ["figures", "--only", NASTY],
    [NASTY],
    ["generate", "x", f"--{NASTY}"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command)[:24])
def test_a_mistake_quotes_what_was_typed_and_moves_no_cursor(command, capsys):
    assert run(command) == 2
    said = capsys.readouterr()
    words = said.err.replace("\\x1b", "␛").replace("\\u202e", "\ufffd")  # some messages quote by `repr`
    assert "[red]x[/red] :smile: ␛[2J \ufffda" in words
    assert "\x1b" not in said.err + said.out and "\u202e" not in said.err + said.out


def test_a_mistake_in_a_lesson_quotes_it_too(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lesson", "start", NASTY])
    with pytest.raises(SystemExit):
        lessons_main()
    said = capsys.readouterr().err
    assert "[red]x[/red] :smile:" in said and "\x1b" not in said


def test_prompts_and_outputs_are_printed_as_they_are():
    completions = [CompletionOutput(index, NASTY, [1], score=-1.0) for index in range(2)]
    out = StringIO()
    said = RequestOutput("0", NASTY, [1], None, completions, True)
    print_outputs([NASTY], [said], Console(file=out, width=99))
    assert out.getvalue().count(printable(NASTY)) == 3 and "[1]   score" in out.getvalue()


def test_names_of_files_are_printed_as_they_are(tmp_path, capsys):
    path = trace_factory.write(trace_factory.make(Workload(num_requests=1)), tmp_path / IN_NAMES)
    target = tmp_path / f"{IN_NAMES}.out"
    assert run(["trace", "summary", str(path)]) == 0
    assert run(["trace", "export", str(path), "--perfetto", "--out", str(target)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert printable(target.name) in said and target.is_file()
