"""Tables in a terminal that cut nothing.

A table that is too wide loses the ends of its cells to "…", and with them digits. Here it stays as wide as
its longest words, and says so; the terminal breaks its lines.
"""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement, measure_renderables
from rich.table import Table

WIDEST = 10_000


def print_table(table: Table, console: Console, *, highlight: bool = True) -> None:
    """Print a table as wide as the terminal, or as wide as nothing is cut."""
    terminal, least = console.width, least_width(table, console)
    if least <= terminal:
        console.print(table, highlight=highlight)
        return
    console.width = least
    console.print(table, highlight=highlight, crop=False)
    console.width = terminal
    console.print(
        f"(This table needs {least} columns; here are {terminal}.)", highlight=False, soft_wrap=True
    )


def least_width(table: Table, console: Console) -> int:
    """The width at which every cell is whole: on one line if its column must not wrap, else word by word."""
    options = console.options.update(width=WIDEST)
    frame = Measurement.get(console, options, table).maximum
    least = 0
    for column in table.columns:
        cells = [column.header, *column.cells] if table.show_header else list(column.cells)
        words, lines = measure_renderables(console, options, cells)
        frame -= max(lines, column.min_width or 0)
        least += max(lines if column.no_wrap else words, column.min_width or 0)
    return frame + least
