"""Comparisons of precisions in files: what is written is read again, what is none is told in a sentence."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.trace.precision_events import is_precision, read_precision, write_precision
from minivllm.trace.precision_summary import precision_summary_lines
from minivllm.trace.reader import TraceError
from tests.viz.precision_factory import header, matrix, trace

TWO = trace(matrix(num_outputs=5, num_inputs=32), matrix("layer 1", 3, 40))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("precision") / "a.jsonl"
    write_precision(path, TWO)
    return path


def test_what_is_written_is_read_again(written):
    assert is_precision(written) and read_precision(written) == TWO


@given(data=st.data())
def test_what_was_cut_off_is_read_as_far_as_it_goes(written, data):
    whole = written.read_bytes()
    cut = written.with_name("cut.jsonl")
    cut.write_bytes(whole[: data.draw(st.integers(whole.index(b"\n") + 1, len(whole) - 2))])
    found = read_precision(cut)
    assert not found.is_whole
    assert found.variants == TWO.variants[: len(found.variants)]
    for mine, all_of_it in zip(found.matrices, TWO.matrices, strict=False):
        assert mine.matrix == all_of_it.matrix and mine.grids == all_of_it.grids[: len(mine.grids)]


@given(st.binary(max_size=60))
def test_whatever_a_file_holds_is_a_comparison_or_told_in_a_sentence(written, noise):
    path = written.with_name("noise.jsonl")
    for content in (noise, msgspec.json.encode(header()) + b"\n" + noise):
        path.write_bytes(content)
        try:
            read_precision(path)
        except TraceError as error:
            assert "noise.jsonl" in str(error)


@pytest.mark.parametrize("name", ["codes", "scales", "zeros", "row_codes", "row_scales", "channel_errors"])
def test_parts_that_do_not_fit_together_are_told(tmp_path, name):
    one = matrix(num_outputs=5, num_inputs=32)
    one.grids[2] = msgspec.structs.replace(one.grids[2], **{name: getattr(one.grids[2], name)[:-1]})
    write_precision(tmp_path / "odd.jsonl", trace(one))
    with pytest.raises(TraceError, match=r"do not fit together|is not an event"):
        read_precision(tmp_path / "odd.jsonl")


def test_a_grid_without_a_matrix_and_a_row_beyond_it_are_told(tmp_path):
    path = tmp_path / "odd.jsonl"
    one = matrix(num_outputs=5, num_inputs=32)
    path.write_bytes(b"\n".join(msgspec.json.encode(event) for event in (header(), one.grids[0])))
    with pytest.raises(TraceError, match="do not fit together"):
        read_precision(path)
    beyond = msgspec.structs.replace(one.matrix, first_input=1)
    path.write_bytes(b"\n".join(msgspec.json.encode(event) for event in (header(), beyond)))
    with pytest.raises(TraceError, match="do not fit together"):
        read_precision(path)


def test_the_summary_names_every_row_and_matrix():
    said = "\n".join(precision_summary_lines(TWO))
    assert all(row.name in said for row in TWO.variants) and "87.50% of tokens kept" in said
    assert "left out, there is no such setting" in said and "layer 1: 4 grids" in said
