"""Workload files: what is written is read back, and what is wrong is named with its line."""

import json
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.lab.workloads import (
    Poisson,
    RandomPrompts,
    RequestMix,
    WorkloadRequest,
    read_jsonl,
    write_jsonl,
)
from minivllm.lab.workloads.jsonl_line import FIELDS
from minivllm.lab.workloads.lengths import Uniform
from minivllm.lab.workloads.open_workload import OpenWorkload

VOCAB_SIZE = 256
MAX_MODEL_LEN = 100
GOOD = {"arrival_seconds": 1.5, "prompt_tokens": [7, 8], "output_tokens": 3}


def encode(text):
    return list(text.encode())


def read(path, **changes):
    settings = {"vocab_size": VOCAB_SIZE, "max_model_len": MAX_MODEL_LEN, "encode": encode, **changes}
    return read_jsonl(path, **settings)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("workloads") / "mine.jsonl"


@st.composite
def requests(draw):
    text = draw(st.none() | st.text(min_size=1, max_size=12))
    ids = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=40)
    tokens = encode(text) if text else draw(ids)
    output = draw(st.integers(1, 50))
    return WorkloadRequest(
        "",
        draw(st.floats(0, 1e12)),
        array("i", tokens),
        output,
        output + draw(st.integers(0, 9)),
        draw(st.integers(-(2**40), 2**40)),
        draw(st.none() | st.text(min_size=1, max_size=5)),
        text,
    )


@st.composite
def named_requests(draw):
    several = draw(st.lists(requests(), min_size=1, max_size=12))
    names = draw(
        st.lists(st.text(min_size=1, max_size=9), min_size=len(several), max_size=len(several), unique=True)
    )
    counted = draw(st.booleans())
    return [
        WorkloadRequest(
            f"request-{index}" if counted else name,
            *(getattr(request, field) for field in list(WorkloadRequest.__slots__)[1:]),
        )
        for index, (name, request) in enumerate(zip(names, several, strict=True))
    ]


@given(named_requests())
def test_requests_are_read_back_equal_in_order_of_time(path, several):
    assert write_jsonl(path, several) == len(several)
    workload = read(path)
    assert list(workload.arrivals()) == sorted(several, key=lambda request: request.arrival_seconds)
    assert list(workload.arrivals()) == list(workload.arrivals())
    assert workload.after(several[0], 1.0, []) is None


@given(seed=st.integers(0, 2**64), count=st.integers(1, 20))
def test_a_generated_workload_is_read_back_equal(path, seed, count):
    mix = RequestMix(Uniform(1, 60), Uniform(1, 40), RandomPrompts(VOCAB_SIZE), seed)
    workload = OpenWorkload(mix, Poisson(2.0), count)
    write_jsonl(path, workload.arrivals())
    assert list(read(path, encode=None).arrivals()) == list(workload.arrivals())


@given(st.lists(st.tuples(st.sampled_from([0, 0.5, 1]), st.integers(1, 90)), min_size=1, max_size=9))
def test_of_equal_times_lines_keep_their_order_and_lengths_are_as_stated(path, rows):
    lines = [
        json.dumps({"arrival_seconds": time, "prompt_tokens": count, "output_tokens": 1})
        for time, count in rows
    ]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    made = list(read(path).arrivals())
    assert [(r.arrival_seconds, len(r.prompt_token_ids)) for r in made] == sorted(
        rows, key=lambda row: row[0]
    )
    by_name = {request.request_id: len(request.prompt_token_ids) for request in made}
    assert [by_name[f"request-{index}"] for index in range(len(rows))] == [count for _, count in rows]


def test_tokens_that_a_file_only_counts_are_drawn_by_the_seed_and_the_line(path):
    line = json.dumps({**GOOD, "prompt_tokens": 30})
    path.write_text(f"{line}\n{line}", encoding="utf-8")
    first, second = (request.prompt_token_ids for request in read(path).arrivals())
    assert first != second and all(3 <= token < VOCAB_SIZE for token in first + second)
    assert [r.prompt_token_ids for r in read(path).arrivals()] == [first, second]
    assert [r.prompt_token_ids for r in read(path, seed=1).arrivals()] != [first, second]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
field_names = st.sampled_from([*FIELDS, "other"])
bad_lines = st.one_of(
    st.binary(max_size=40),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(field_names, json_values).map(lambda changes: json.dumps({**GOOD, **changes}).encode()),
    st.tuples(st.integers(0, 60), st.binary(max_size=3)).map(
        lambda cut: json.dumps(GOOD).encode()[: cut[0]] + cut[1] + json.dumps(GOOD).encode()[cut[0] + 1 :]
    ),
)


@given(bad_lines.filter(lambda line: b"\n" not in line))
def test_a_line_is_either_a_request_that_fits_or_an_error_with_its_number(path, line):
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    try:
        workload = read(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}, line 2: ")
    else:
        for request in workload.arrivals():
            assert 1 <= len(request.prompt_token_ids) <= MAX_MODEL_LEN - request.num_output_tokens


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arrival_seconds": -0.5}, "arrival_seconds must be a finite number of at least 0, got -0.5"),
        ({"arrival_seconds": "now"}, "arrival_seconds must be a finite number of at least 0, got 'now'"),
        ({"arrival_seconds": float("nan")}, "not JSON"),
        ({"output_tokens": 0}, "output_tokens must be an integer of at least 1, got 0"),
        ({"output_tokens": 1.5}, "output_tokens must be an integer of at least 1, got 1.5"),
        ({"max_tokens": 2}, "max_tokens must be an integer of at least 3, got 2"),
        ({"priority": "high"}, "priority must be an integer, got 'high'"),
        ({"user": ""}, "user must be a text that is not empty, got ''"),
        ({"user": None}, "user must be a text that is not empty, got None"),
        ({"request_id": "request-0"}, "request_id 'request-0' is that of line 1 already"),
        ({"prompt_tokens": 0}, "prompt_tokens must be an integer of at least 1 and at most 99, got 0"),
        ({"prompt_tokens": 98}, "98 prompt tokens and output_tokens 3 are 101, max_model_len is 100"),
        (
            {"prompt_tokens": 1.5},
            "prompt_tokens must be an integer of at least 1, or a list of token ids, got 1.5",
        ),
        ({"prompt_tokens": []}, "prompt_tokens must have at least one token id, got []"),
        (
            {"prompt_tokens": [4, 256]},
            "prompt_tokens[1] must be an integer of at least 0 and at most 255, got 256",
        ),
        ({"prompt": "Hi"}, "both are given"),
        ({"prompt_tokens": ...}, "neither is given"),
        ({"prompt_tokens": ..., "prompt": ""}, "prompt must be a text that is not empty, got ''"),
        ({"prompt_tokens": ..., "prompt": "x" * 98}, "98 prompt tokens and output_tokens 3 are 101"),
        ({"arrival_seconds": ...}, "the field arrival_seconds is missing"),
        ({"output_tokens": ...}, "the field output_tokens is missing"),
        (
            {"tokens": 3},
            "unknown field 'tokens'; there are arrival_seconds, prompt, prompt_tokens, output_tokens",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_what_is_allowed(path, changes, words):
    bad = {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}
    path.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(bad)}\n", encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, line 3: ") and words in str(caught.value)


@pytest.mark.parametrize("line", ["[" * 100_000, "[1]", '"a"', "{", "NaN"])
def test_what_is_no_json_object_is_refused_with_its_line(path, line):
    path.write_text(line, encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1: (not JSON|each line must be a JSON object)"):
        read(path)


def test_a_mark_at_the_beginning_and_other_ends_of_lines_mean_nothing(path):
    path.write_bytes(b"\xef\xbb\xbf" + f"{json.dumps(GOOD)}\r\n\r\n{json.dumps(GOOD)}\r\n".encode())
    assert [line.number for line in read(path).lines] == [1, 3]


def test_texts_need_a_tokenizer(path):
    path.write_text('{"arrival_seconds": 0, "prompt": "Hi", "output_tokens": 1}', encoding="utf-8")
    (request,) = read(path).arrivals()
    assert request.prompt == "Hi" and request.prompt_token_ids == array("i", b"Hi".__iter__())
    with pytest.raises(ValueError, match="line 1: prompt is a text, 'Hi', and there is no tokenizer"):
        read(path, encode=None)
    with pytest.raises(ValueError, match="line 1: prompt must have at least one token, 'Hi' has none"):
        read(path, encode=lambda text: [])


def test_a_file_without_requests_or_without_existence_is_refused(path, tmp_path):
    path.write_text("\n  \n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no request"):
        read(path)
    for nowhere in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(ValueError, match="cannot be read: "):
            read(nowhere)
