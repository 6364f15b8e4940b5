"""A trace as tables: they agree with what else is told of the run, and a question reaches no file."""

import pytest

from minivllm.trace.events import BlockCopied, BlocksAllocated
from minivllm.trace.query import ask
from minivllm.trace.reader import read_trace
from minivllm.trace.summary import summarize
from minivllm.trace.tables import CHANGES, COLUMNS, tables, write_parquet
from tests.viz import sharing_factory
from tests.viz.sharing_factory import Sharing
from tests.viz.trace_factory import write

pytest.importorskip("pyarrow", reason="pyarrow is not installed: no tables")


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Beams, samples, cache, copies, evictions and swaps."""
    made = sharing_factory.make(
        Sharing(num_requests=12, num_blocks=36, arrival_gap=1, output=(12, 20), seed=0)
    )
    return read_trace(write(made, tmp_path_factory.mktemp("tables") / "run.jsonl"))


@pytest.fixture(scope="module")
def asked(trace):
    pytest.importorskip("duckdb", reason="DuckDB is not installed: nothing can be asked in SQL")

    def rows(statement, most=10_000):
        return ask(trace, statement, most).rows

    return rows


def test_every_table_has_the_columns_that_are_documented(trace):
    for name, table in tables(trace).items():
        assert table.column_names == list(COLUMNS[name])
        for field in table.schema:
            assert field.metadata[b"meaning"].decode() == COLUMNS[name][field.name].meaning


def test_there_is_one_row_for_each_event_step_and_request(trace):
    made, summary = tables(trace), summarize(trace)
    assert made["events"].num_rows == len(trace.events)
    assert made["steps"].num_rows == trace.num_steps
    assert made["steps"]["step"].to_pylist() == list(range(trace.num_steps))
    finished = [time for time in made["requests"]["finished"].to_pylist() if time is not None]
    assert len(finished) == summary.num_finished
    preempted = sum(made["requests"]["preemptions"].to_pylist())
    assert preempted == summary.num_preemptions == sum(made["steps"]["preempted"].to_pylist()) > 0


def test_every_change_of_a_block_is_a_row(trace):
    rows = tables(trace)["blocks"].to_pylist()
    wanted = sum(len(event.blocks) for event in trace.events if type(event).__name__ in CHANGES)
    copies = [event for event in trace.events if isinstance(event, BlockCopied)]
    assert copies and len(rows) >= wanted + 2 * len(copies)
    for event in copies:
        assert any(row["change"] == "copied" and row["other"] == event.source for row in rows)
    assert {row["change"] for row in rows} >= {"allocated", "shared", "copied", "left", "freed"}


def test_a_question_is_answered_as_the_events_say(asked, trace):
    counted = asked("SELECT count(*) FROM events WHERE event = 'BlocksAllocated'")
    assert counted == [(sum(isinstance(event, BlocksAllocated) for event in trace.events),)]
    times = asked("SELECT ttft, latency FROM requests WHERE ttft IS NOT NULL AND latency IS NOT NULL")
    assert times and all(0 <= first <= whole for first, whole in times)
    assert asked("SELECT max(used_blocks) <= 36 FROM steps") == [(True,)]
    answer = ask(trace, "SELECT * FROM events", 3)
    assert len(answer.rows) == 3 and not answer.is_whole and answer.columns == list(COLUMNS["events"])


def test_a_question_reaches_no_file(asked, tmp_path):
    secret = tmp_path / "secret.csv"
    secret.write_text("password\nhunter2\n")
    for statement in (
        f"SELECT * FROM read_csv('{secret}')",
        f"SELECT * FROM '{secret}'",
        f"SELECT content FROM read_text('{secret}')",
        f"SELECT * FROM glob('{tmp_path}/*')",
        f"COPY steps TO '{tmp_path}/out.csv'",
        f"ATTACH '{tmp_path}/other.db'",
        f"EXPORT DATABASE '{tmp_path}/all'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        f"SET enable_external_access = true; SELECT * FROM read_csv('{secret}')",
    ):
        with pytest.raises(ValueError, match=r"^query: ") as told:
            asked(statement)
        assert "hunter2" not in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_a_wrong_question_is_refused_in_words(asked):
    with pytest.raises(ValueError, match=r"query: .*nowhere"):
        asked("SELECT * FROM nowhere")
    with pytest.raises(ValueError, match=r"query: "):
        asked("this is no SQL")


def test_without_duckdb_it_is_said_what_to_install(trace, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    with pytest.raises(ValueError, match=r"pip install .*minivllm\[query\]"):
        ask(trace, "SELECT 1", 1)


def test_parquet_files_hold_the_same_tables(trace, tmp_path):
    import pyarrow.parquet

    paths = write_parquet(trace, tmp_path / "out")
    made = tables(trace)
    assert [path.stem for path in paths] == list(made)
    for path in paths:
        read = pyarrow.parquet.read_table(path)
        assert read.equals(made[path.stem])
        assert read.schema.field(0).metadata == made[path.stem].schema.field(0).metadata
