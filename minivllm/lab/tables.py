"""Tables in a terminal that cut nothing.

A table that is too wide loses the ends of its cells to "…", and with them digits. Here every column is at
least as wide as its longest word; a table that is too wide all the same says so, and the terminal breaks its
lines.
"""

from __future__ import annotations

from rich.measure import Measurement, measure_renderables
from rich.table import Table

from minivllm.terminal import Console

WIDEST = 10_000


def print_table(table: Table, console: Console, *, highlight: bool = True) -> None:
    """Print a table as wide as the terminal, or as wide as nothing is cut."""
    terminal = console.width
    needed = set_widths(table, console)
    if needed <= terminal:
        console.print(table, highlight=highlight)
        return
    console.width = needed
    console.print(table, highlight=highlight, crop=False)
    console.width = terminal
    console.print(
        f"(This table needs {needed} columns; here are {terminal}.)", highlight=False, soft_wrap=True
    )


def set_widths(table: Table, console: Console) -> int:
    """Set the widths of the columns, and return what they take together.

    Each gets its longest line. If that is more than the terminal has, columns give way, the last first, as
    far as their longest word lets them; those that must not wrap do not.
    """
    options = console.options.update(width=WIDEST)
    total = Measurement.get(console, options, table).maximum  # with the frame, and every cell on one line
    for column in reversed(table.columns):
        cells = [column.header, *column.cells] if table.show_header else list(column.cells)
        word, line = measure_renderables(console, options, cells)
        most = max(min(line, column.max_width or line), column.min_width or 0)
        shortest = column.min_width or 0
        if column.overflow != "fold":  # a column that says so may break its words
            shortest = max(min(word, most), shortest)
        least = most if column.no_wrap else shortest
        column.width = max(least, most - max(total - console.width, 0))
        total -= most - column.width
    return total
