"""What a kernel did, in a few lines, and the commands that take its trace."""

import pytest

from minivllm.console import first_commands
from minivllm.trace.kernel_events import KernelEnded, KernelTrace, WarpAccess, write_kernel_traces
from minivllm.trace.kernel_summary import kernel_summary_lines
from tests.viz.kernel_factory import EVERY, traces


@pytest.mark.parametrize(("name", "number"), EVERY)
def test_the_summary_has_a_line_for_every_array_that_was_touched_with_its_bytes_and_its_price(name, number):
    trace = traces(name)[number]
    lines = kernel_summary_lines(trace)
    accesses = [event for event in trace.events if isinstance(event, WarpAccess)]
    end = trace.events[-1]
    assert isinstance(end, KernelEnded)
    assert trace.header.kernel in lines[0]
    assert f"  {len(accesses):,} instructions of warps that touch memory" in lines
    for index, array in enumerate(trace.header.arrays):
        mine = [access for access in accesses if access.array == index]
        told = [line for line in lines if line.startswith(f"  {array.name} (")]
        assert len(told) == bool(mine)
        for line in told:
            units = sum(access.units for access in mine)
            assert f"({'shared' if array.is_shared else 'global'})" in line
            assert f" {end.read_bytes[array.name]:,} bytes read, " in line
            assert f" {end.written_bytes[array.name]:,} written, " in line
            assert f" {units:,} {'turns' if array.is_shared else 'sectors'} " in line


def test_faults_are_told_instead_of_that_there_are_none():
    good, bad = (kernel_summary_lines(traces(name)[0]) for name in ("kv-write", "racy-transpose"))
    assert good[-1] == "  No races, no reads of uninitialised memory."
    assert good[-1] not in bad
    assert any(line.startswith("  race in tile: race in block 2 on tile[") for line in bad)


def test_a_trace_that_was_cut_off_is_not_said_to_be_free_of_faults():
    whole = traces("racy-transpose")[0]
    lines = kernel_summary_lines(KernelTrace(whole.header, whole.events[:9]))
    assert "cut off" in lines[-1] and not any("No races" in line for line in lines)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "kernel.jsonl"
    write_kernel_traces(path, traces("paged-attention"))
    return path


def test_the_command_summarises_all_kernels_of_a_file(file, here):
    code, out, err = here("trace", "summary", file)
    assert code == 0, err
    wanted = [line for trace in traces("paged-attention") for line in kernel_summary_lines(trace)]
    assert "".join(out.split()) == "".join("".join(wanted).split())


def test_the_dashboard_takes_a_kernel_trace(file, here, monkeypatch):
    started = []
    monkeypatch.setattr(first_commands, "become", lambda *command: started.append(command))
    code, out, err = here("dashboard", file, "--no-browser")
    assert (code, out, err) == (0, "", "")
    assert started == [("viz.serve", str(file), "--port", "8501", "--no-browser")]


def test_a_damaged_kernel_trace_is_one_sentence(file, here):
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:3], b"{broken\n", *lines[3:]]))
    for command in (("dashboard",), ("trace", "summary")):
        code, out, err = here(*command, file)
        assert code == 2 and "line 4, is not an event of a kernel" in " ".join(err.split())
        assert "Traceback" not in out + err


def test_a_kernel_trace_cannot_be_exported_to_perfetto(file, here, tmp_path):
    code, out, err = here("trace", "export", "--perfetto", file)
    assert code == 2 and "is a trace of a kernel, not a minivllm trace of a run" in " ".join(err.split())
    assert "Traceback" not in out + err
    assert not file.with_suffix(".perfetto.json").exists()
