"""The commands of `minivllm`: their names, what each does in a sentence, and the module that has it.

A command's module is imported when the command is called, and not for `minivllm --help`: the list below is
enough for that. The modules only parse and print; what a command does lives in the module that it imports
when it runs.

    minivllm --help            this module, typer, rich
    minivllm bench --help      and lab/bench/commands.py
    minivllm bench             and torch, the model, the measurement

A mistake of the user's is one sentence on stderr and exit code 2, and a result that cannot be written exit
code 1, never a stack trace (set MINIVLLM_DEBUG=1 to see it all the same).

Read next: `minivllm/console/generate_command.py`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from minivllm import __version__
from minivllm.console.dotted_flags import join_dotted
from minivllm.files import CannotWrite
from minivllm.outputs import FailedRequestsError
from minivllm.terminal import Console
from minivllm.text import printable
from minivllm.usage import print_mistake, usage_mistake

FAILED, USAGE_ERROR = 1, 2


class Place(NamedTuple):
    """Where a command is, and its help in a sentence (the first of its docstring: a test compares them)."""

    module: str
    attribute: str
    """A function, or a `typer.Typer`."""
    help: str


COMMANDS = {
    "demo": Place(
        "minivllm.console.first_commands",
        "demo",
        "Run some prompts through the shipped model in a small KV cache, then show every step of it.",
    ),
    "generate": Place(
        "minivllm.console.generate_command",
        "generate",
        "Continue prompts with any Llama, Mistral, Qwen2 or Qwen3 checkpoint.",
    ),
    "serve": Place(
        "minivllm.console.serve_command",
        "serve",
        "Serve a model to many clients at once, over the OpenAI API.",
    ),
    "quantize": Place(
        "minivllm.console.quantize_command",
        "quantize",
        "Write a checkpoint with small numbers for weights, found by AWQ, GPTQ, SmoothQuant or rounding.",
    ),
    "dashboard": Place(
        "minivllm.console.first_commands",
        "dashboard",
        "Show a trace in the browser, step by step, forward and back.",
    ),
    "lesson": Place(
        "minivllm.console.first_commands",
        "lesson_app",
        "Learn it by building it: list, start, check, hint, see, diff, reset.",
    ),
    "book": Place(
        "minivllm.console.first_commands",
        "book",
        "Write lessons, glossary and figures as a static site, with every picture playing.",
    ),
    "trace": Place(
        "minivllm.console.trace_commands",
        "trace_app",
        "Look into a trace file, ask it in SQL, or convert it.",
    ),
    "doctor": Place(
        "minivllm.console.first_commands", "doctor", "Say what this machine can do, and what to install."
    ),
    "bench": Place(
        "minivllm.lab.bench.commands",
        "app",
        "Measure this engine: throughput, latencies, other engines, the cost of tracing, the control plane.",
    ),
    "compare": Place(
        "minivllm.lab.compare.commands", "app", "The same requests with and without one idea, side by side."
    ),
    "simulate": Place(
        "minivllm.lab.simulation.command",
        "simulate",
        "Serve a workload in virtual time: the real scheduler and memory, a cost model instead of a model.",
    ),
    "calibrate": Place(
        "minivllm.lab.bench.calibrate_command",
        "calibrate",
        "Measure this machine with a real model, and write a card with which the simulator stands in for it.",
    ),
    "figures": Place(
        "minivllm.lab.figures.commands",
        "figures",
        "Redraw the papers' figures by simulation, beside the papers' numbers, with every assumption.",
    ),
    "microscope": Place(
        "minivllm.lab.microscope.commands",
        "microscope",
        "Run a kernel thread by thread: what it does to memory.",
    ),
}


class LazyCommand(TyperCommand):
    """A command whose module is imported when its arguments are to be parsed."""

    def __init__(self, name: str, place: Place) -> None:
        super().__init__(name, help=place.help, short_help=place.help)
        self.place = place

    def load(self) -> Any:
        """The command itself, as typer makes it."""
        found = getattr(import_module(self.place.module), self.place.attribute)
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False, rich_markup_mode=None)
            found.command(self.name)(function)
        command: Any = typer.main.get_command(found)
        for below in getattr(command, "commands", {}).values():
            below.short_help = below.help  # whole sentences in a list of commands
        return command

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **further: Any) -> Any:
        return self.load().make_context(info_name, args, *more, **further)


class Overview(TyperGroup):
    """All commands by name; none is imported to be listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return LazyCommand(cmd_name, COMMANDS[cmd_name]) if cmd_name in COMMANDS else None


app = typer.Typer(
    cls=Overview,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A small, true, readable vLLM that shows every step it takes. Start with `minivllm demo`.",
)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if show:
        Console().print(f"minivllm {__version__}")
        raise typer.Exit


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code: 0, or a sentence on stderr and 2 for a mistake of the
    user's, 1 for a result that could not be written."""
    # What the engine warns of (a full disk) is one sentence, too, without a line of its source.
    warnings.formatwarning = lambda message, *rest, **more: f"warning: {printable(str(message))}\n"
    try:
        code = app(join_dotted(arguments), prog_name="minivllm", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.Abort:
        return 1
    except Exception as error:
        message = mistake(error, arguments)
        if message is None or os.environ.get("MINIVLLM_DEBUG"):
            raise
        if message:
            print_mistake(message)
        return FAILED if isinstance(error, CannotWrite) else USAGE_ERROR


def mistake(error: Exception, arguments: Sequence[str]) -> str | None:
    """What a user did wrong, or what the program has lost, in a sentence; None if the program is at fault;
    empty if it has been said."""
    from minivllm.executor.executor import ExecutorDeadError

    if isinstance(error, ValueError | FailedRequestsError | ExecutorDeadError):
        return str(error)
    return usage_mistake(error, arguments)
