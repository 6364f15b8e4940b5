"""What a newcomer types first: `minivllm demo`, `doctor`, `dashboard`, `lesson`.

The dashboard and the lessons are programs of their own, because the engine never imports them: these commands
turn into them.

Read next: `minivllm/console/demo.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from minivllm.processes import become
from minivllm.terminal import Console

lesson_app = typer.Typer(add_completion=False, rich_markup_mode=None)

Port = Annotated[int, typer.Option(min=1, max=65535, help="Port of the dashboard, on this machine only.")]


def demo(
    scenario: Annotated[
        str, typer.Argument(help="'paging', or 'sharing': prefix cache, forks, beams, swapping.")
    ] = "paging",
    headless: Annotated[bool, typer.Option("--headless", help="Stop once the trace is written.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the trace.")] = Path("minivllm-out"),
    port: Port = 8501,
) -> None:
    """Run some prompts through the shipped model in a small KV cache, then show every step of it."""
    from minivllm.console.demo import run_demo

    console = Console()
    trace = run_demo(out, console, scenario)
    if headless:
        console.point_to(trace)
    else:
        dashboard(trace, port=port)


def dashboard(
    trace: Annotated[
        Path | None, typer.Argument(help="The trace to open; choose one on the page if left out.")
    ] = None,
    port: Port = 8501,
    browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True,
    folder: Annotated[
        list[Path] | None,
        typer.Option(help="Traces below it may be opened, too; may be given several times."),
    ] = None,
    live: Annotated[
        str | None, typer.Option(metavar="URL", help="Watch the server there, which runs with --live.")
    ] = None,
) -> None:
    """Show a trace in the browser, step by step, forward and back."""
    if trace is not None:
        from minivllm.trace.kernel_events import is_kernel_trace, read_kernel_traces
        from minivllm.trace.precision_events import is_precision, read_precision
        from minivllm.trace.reader import read_trace
        from minivllm.trace.story_events import is_story, read_story

        is_other = (
            (is_kernel_trace(trace) and read_kernel_traces(trace))
            or (is_story(trace) and read_story(trace))
            or (is_precision(trace) and read_precision(trace))
        )
        for warning in () if is_other else read_trace(trace).warnings:
            Console().print(Text(warning, "yellow"))
    words = [*([str(trace)] if trace else []), "--port", str(port), *([] if browser else ["--no-browser"])]
    words += [f"--live={live}"] if live is not None else []
    become("viz.serve", *words, *(f"--folder={path}" for path in folder or ()))


@lesson_app.command(
    "lesson",
    add_help_option=False,  # the lessons have a help of their own
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def lesson(context: typer.Context) -> None:
    """Learn it by building it: list, start, check, hint, see, diff, reset."""
    become("lessons", *context.args)


def book(
    out: Annotated[Path, typer.Option(help="A new or an empty folder.")] = Path("site"),
    lesson: Annotated[
        list[str] | None, typer.Option(help="Only this one, by number or name; may be given several times.")
    ] = None,
    traces: Annotated[
        Path | None,
        typer.Option(help="Traces that the walkthroughs have left; they are run if this is left out."),
    ] = None,
) -> None:
    """Write lessons, glossary and figures as a static site, with every picture playing."""
    words = [f"--out={out}", *(f"--lesson={name}" for name in lesson or ())]
    become("viz.book", *words, *([f"--traces={traces}"] if traces else []))


def doctor(
    warm_up: Annotated[
        bool, typer.Option("--warm-up", help="First compile all kernels for this processor, in minutes.")
    ] = False,
) -> None:
    """Say what this machine can do, and what to install."""
    from minivllm.console import doctor

    console = Console()
    if warm_up and doctor.warm_up(lambda text: console.print(text, markup=False, highlight=False)):
        raise typer.Exit(1)
    raise typer.Exit(doctor.report(console))
