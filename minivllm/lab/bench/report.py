"""From a result to something that people read (tables) and something that programs read (JSON).

Read next: `timing.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from minivllm.files import write_file
from minivllm.lab.bench.timing import Machine, describe_machine
from minivllm.lab.subjects.settings import Settings, usable_cores

if TYPE_CHECKING:
    from minivllm.terminal import Console


@dataclass(frozen=True)
class Section:
    """One table: a title, names of the columns, rows of text, and a line of explanation."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class Result(Protocol):
    """What every measurement returns: a dataclass that can describe itself in tables."""

    header: Header

    def sections(self) -> list[Section]: ...


@dataclass(frozen=True)
class Header:
    """What every result begins with: what was measured, with which settings, on which machine."""

    kind: str
    machine: Machine
    settings: Settings
    subject: dict[str, Any] = field(default_factory=dict)
    """The model and the limits of the engine around it."""
    other_cores: float = 0.0
    """Cores that other programs used meanwhile: the median over all samples."""
    warnings: tuple[str, ...] = ()


def make_header(
    kind: str, settings: Settings, subject: dict[str, Any], other_cores: Sequence[float] = ()
) -> Header:
    """A header for what has just been measured."""
    ordered = sorted(other_cores)
    others = ordered[len(ordered) // 2] if ordered else 0.0
    warnings = settings.warnings()
    if others > 0.2:
        warnings.append(
            f"other programs used {others:.1f} cores meanwhile: trust the ratios more than the seconds"
        )
    machine = describe_machine(settings.num_threads, usable_cores())
    return Header(kind, machine, settings, subject, round(others, 2), tuple(warnings))


def as_json(result: Result) -> dict[str, Any]:
    """The result as plain dictionaries, lists, numbers and strings."""
    if not is_dataclass(result) or isinstance(result, type):
        raise TypeError(f"a result must be a dataclass, got {result!r}")
    return asdict(result)


def check_writable(path: Path, name: str = "json") -> None:
    """Refuse a file that cannot be written now, and not after minutes of measuring.

    Raises:
        ValueError: why it cannot, under the `name` of the option.
    """
    try:
        with open(path, "a", encoding="utf-8"):
            pass
    except OSError as error:
        raise ValueError(f"{name}: cannot write to {path}: {error.strerror}") from error


def write_json(result: Result, path: Path) -> None:
    """Write the whole result to a file. Raises `CannotWrite` if that cannot be."""
    write_file(path, json.dumps(as_json(result), indent=2, ensure_ascii=False) + "\n", "json")


def print_result(result: Result, console: Console | None = None) -> None:
    """The machine, the model, then one table after the other."""
    from rich.table import Table

    from minivllm.lab.tables import print_table
    from minivllm.terminal import Console

    console = console or Console()
    for line in header_lines(result.header):
        console.print(line)
    for section in result.sections():
        table = Table(title=section.title, title_justify="left", caption=section.note, caption_justify="left")
        for index, column in enumerate(section.columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in section.rows:
            table.add_row(*row)
        console.print()
        print_table(table, console)


def header_lines(header: Header) -> list[str]:
    """Where these numbers come from, in a few lines."""
    machine, settings = header.machine, header.settings
    lines = [
        f"{machine.cpu}, {machine.usable_cores} of {machine.cores} cores, {machine.ram_gib} GiB; "
        f"torch {machine.torch} on {counted(machine.threads, 'thread')}; "
        f"others used {header.other_cores:.2f} cores"
    ]
    if header.subject:
        subject = header.subject
        lines.append(
            f"model {subject['model']} ({subject['parameters']:,} parameters, {subject['dtype']}, "
            f"{subject['device']}), attention {subject['attention']}, {subject['num_blocks']:,} blocks of "
            f"{subject['block_size']} tokens"
        )
        lines.append(
            f"{counted(settings.requests, 'request')}, seed {settings.seed}, "
            f"{counted(settings.repeat, 'repetition')}"
        )
    return lines + [f"warning: {warning}" for warning in header.warnings]


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms"


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.2f} µs"


def percent(share: float) -> str:
    return f"{share:.1%}"
