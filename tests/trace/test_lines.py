"""What is no trace is refused in a sentence, in bounded time and memory, by the reader of every kind."""

import gzip
import os

import pytest

from minivllm.console.commands import run
from minivllm.trace import lines
from minivllm.trace.events import MOST_BLOCKS
from minivllm.trace.kernel_events import is_kernel_trace, read_kernel_traces
from minivllm.trace.reader import TraceError, read_trace
from minivllm.trace.story_events import is_story, read_story

READERS = (read_trace, read_kernel_traces, read_story)
HEADER = (
    '{"event":"TraceHeader","version":%s,"created":"","clock":"wall","num_blocks":%s,"block_size":%s,'
    '"max_num_seqs":4,"max_num_batched_tokens":64,"max_model_len":64%s}\n'
)


def header(version="3", num_blocks="8", block_size="4", more=""):
    return (HEADER % (version, num_blocks, block_size, more)).encode()


def refused(read, path):
    with pytest.raises(TraceError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000 and path.name in message
    return message


def sparse(path, begin, size=2**31):
    """A file that has `begin`, and then nothing but zeros up to `size`, which take no place on the disk."""
    path.write_bytes(begin)
    os.truncate(path, size)
    return path


FILES = {
    "nothing": b"",
    "blank lines": b"\n" * 100_000,
    "a film": b"\x00\x01\x02" * 1000,
    "gzip": gzip.compress(header()),
    "UTF-16": header().decode().encode("utf-16"),
    "a list": b"[1]\n",
    "a deep line": b"[" * 500_000,
    "a deep field": b'{"event":"TraceHeader","x":' + b"[" * 500_000,
    "a number": b"9" * 5_000,
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_trace_is_refused_by_every_reader(name, tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_bytes(FILES[name])
    for read in READERS:
        refused(read, path)


def test_a_mark_that_an_editor_has_put_before_a_trace_means_nothing(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + header() + b"\r\n")
    assert read_trace(path).header.num_blocks == 8


def test_gzip_is_called_by_its_name(tmp_path):
    path = tmp_path / "run.jsonl.gz"
    path.write_bytes(FILES["gzip"])
    assert "gzip" in refused(read_trace, path)


def test_a_recorded_stream_is_called_by_its_name(tmp_path):
    path = tmp_path / "live.txt"
    path.write_bytes(b'data: {"event":"TraceHeader","version":3}\n\n')
    with pytest.raises(TraceError, match="is a recorded stream of events; `sed"):
        read_trace(path)


def test_what_is_no_file_is_not_even_opened(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # opening it would wait for a writer
    for path in (pipe, tmp_path, tmp_path / "nothing"):
        for read in READERS:
            refused(read, path)
        assert not is_story(path) and not is_kernel_trace(path)
    assert "is not a file" in refused(read_trace, pipe)


@pytest.mark.parametrize("begin", [b"", header(), header() + b'{"event":"StepStarted","step":0,'])
def test_a_line_of_gigabytes_is_read_only_up_to_the_limit(begin, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MOST_LINE_BYTES", 4096)
    path = sparse(tmp_path / "large.jsonl", begin)
    assert "is longer than any line of a trace" in refused(read_trace, path)


HEADERS = {
    "version 10⁹": (header(version="1000000000"), "of version 1000000000"),
    "version in quotes": (header(version='"3"'), 'of version "3"'),
    "version true": (header(version="true"), "of version true"),
    "a long version": (header(version="9" * 5_000), "of version 999"),
    "too many blocks": (header(num_blocks="1000000000000"), f"<= {MOST_BLOCKS}"),
    "no blocks": (header(num_blocks="0"), "num_blocks"),
    "blocks of nothing": (header(block_size="0"), "block_size"),
    "less than nothing": (header(block_size="-4"), "block_size"),
    "a word": (header(block_size='"four"'), "block_size"),
    "infinity": (header(block_size="1e999"), "block_size"),
    "no number": (header(block_size="NaN"), "damaged header"),
    "half a character": (header(more=',"workload":"\\ud800"'), "damaged header"),
    "a setting of 5,000 digits": (header(more=f',"config":{{"x":{"9" * 5_000}}}'), "damaged header"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_out_of_range_is_refused_by_name(name, tmp_path):
    content, message = HEADERS[name]
    path = tmp_path / "run.jsonl"
    path.write_bytes(content)
    assert message in refused(read_trace, path)


LINES = {
    "a negative block": '{"event":"BlocksAllocated","seq":0,"blocks":[-1]}',
    "a number of 5,000 digits": '{"event":"StepStarted","step":%s,"time":0}' % ("9" * 5_000),
    "an endless time": '{"event":"StepStarted","step":0,"time":1e999}',
    "a step in words": '{"event":"StepStarted","step":"0","time":0}',
    "an unknown event": '{"event":"%s"}' % ("x" * 10_000),
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_out_of_range_is_named_by_its_number(name, tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_bytes(header() + LINES[name].encode() + b'\n{"event":"TraceEnded","time":0}\n')
    assert f"{path}, line 2, is not an event: " in refused(read_trace, path)


STEP = '{"event":"StepStarted","step":%d,"time":%d}\n{"event":"StepFinished","step":%d,"time":%d}\n'


def test_a_step_that_goes_back_is_named_by_its_line(tmp_path, capsys):
    path = tmp_path / "run.jsonl"
    path.write_bytes(header() + (STEP % (0, 0, 0, 1) + STEP % (0, 1, 0, 2)).encode())
    assert run(["trace", "summary", str(path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "run.jsonl, line 4, contradicts what came before" in said and "step 0 comes when 1 is" in said


def test_a_last_line_of_zeros_is_left_out(tmp_path):
    """So a file ends after a crash of the machine, on some file systems."""
    path = tmp_path / "run.jsonl"
    path.write_bytes(header() + STEP.encode() % (0, 0, 0, 1) + bytes(500))
    trace = read_trace(path)
    assert trace.num_steps == 1 and "line (4) was cut off" in trace.warnings[0]
