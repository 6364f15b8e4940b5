"""Asking a trace in SQL: its four tables (`tables.py`) within DuckDB, and nothing else.

    minivllm trace query "SELECT event, count(*) FROM events GROUP BY event" run.jsonl

The database lives in memory, and is closed to the file system before the question is asked: a statement from
a web page or a colleague can read this trace, and no other file of this machine.

Read next: `minivllm/console/trace_commands.py`, which prints the answer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minivllm.trace.reader import Trace
from minivllm.trace.tables import tables

CLOSED = ("SET temp_directory = ''", "SET enable_external_access = false", "SET lock_configuration = true")
"""From here on no file can be read or written, no extension loaded, and none of that undone."""


class Answer(NamedTuple):
    """What came back."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    is_whole: bool
    """False if there are more rows than were asked for."""


def ask(trace: Trace, statement: str, most_rows: int) -> Answer:
    """The answer to one statement about one trace.

    Raises:
        ValueError: DuckDB is not installed, or the statement is wrong, in DuckDB's words.
        TraceError: the trace contradicts itself.
    """
    try:
        import duckdb
    except ImportError as error:
        raise ValueError(
            'asking a trace in SQL needs DuckDB, which is not installed: pip install "minivllm[query]"; '
            "`minivllm trace export --parquet` writes the same tables for another program"
        ) from error
    made = tables(trace)
    with duckdb.connect(":memory:") as connection:
        for name, table in made.items():
            connection.register(f"arrow_{name}", table)
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM arrow_{name}")
            connection.unregister(f"arrow_{name}")
        for setting in CLOSED:
            connection.execute(setting)
        try:
            found = connection.execute(statement)
            rows = found.fetchmany(most_rows + 1)
            columns = [column[0] for column in found.description or ()]
        except duckdb.Error as error:
            raise ValueError(f"query: {error}") from error
    return Answer(columns, rows[:most_rows], len(rows) <= most_rows)
