"""Which requests are sent: the same lengths at every rate, and never the same prompts."""

import json
from itertools import islice, pairwise
from statistics import fmean, pstdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.lab.bench.serve.requests import DataSet, make_process, warm_ups
from minivllm.lab.workloads.sharegpt import read_sharegpt

SPECS = ["sharegpt", "fixed:8,4", "uniform:2-9,3-5", "shared:16,2", "chat"]


def dataset(spec, count=6):
    return DataSet(spec, count, vocab_size=1000, max_model_len=512)


@settings(max_examples=20, deadline=None)
@given(spec=st.sampled_from(SPECS), run=st.integers(1, 5))
def test_each_run_has_the_same_lengths_and_other_tokens(spec, run):
    first = list(dataset(spec).workload(make_process(3.0), 0).arrivals())
    other = list(dataset(spec).workload(make_process(9.0), run).arrivals())

    def lengths(requests):
        return [(len(one.prompt_token_ids), one.num_output_tokens) for one in requests]

    assert lengths(first) == lengths(other)
    long = [index for index, one in enumerate(first) if len(one.prompt_token_ids) > 3]
    assert all(first[index].prompt_token_ids[:4] != other[index].prompt_token_ids[:4] for index in long)
    again = list(dataset(spec).workload(make_process(9.0), run).arrivals())
    assert again == other


@pytest.mark.parametrize("spec", SPECS)
def test_warming_up_has_prompts_of_its_own(spec):
    known = {one.prompt_token_ids.tobytes() for one in dataset(spec).workload().arrivals()}
    for one in warm_ups(dataset(spec), 3):
        assert one.prompt_token_ids.tobytes() not in known and one.request_id.startswith("warm-up")


@pytest.mark.parametrize("shape", [0.25, 1.0, 4.0])
def test_burstiness_is_the_shape_of_vllms_gamma_distribution(shape):
    times = list(islice(make_process(2.0, shape).times(0), 20_000))
    gaps = [after - before for before, after in pairwise(times)]
    assert fmean(gaps) == pytest.approx(0.5, rel=0.1)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(shape**-0.5, rel=0.1)


def test_constant_arrivals_are_evenly_spaced():
    assert list(islice(make_process(4.0, arrivals="constant").times(0), 3)) == [0.0, 0.25, 0.5]
    assert make_process(None) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.0,), "request_rate must be"),
        ((-1.0,), "request_rate must be"),
        ((float("nan"),), "request_rate must be"),
        ((None, 2.0), "need a rate"),
        ((1.0, 0.0), "burstiness must be"),
        ((1.0, 2.0, "constant"), "burstiness 2 must be left out"),
        ((1.0, 1.0, "sometimes"), "arrivals must be one of"),
    ],
)
def test_a_rate_that_cannot_be_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_process(*arguments)


def write(path, data):
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return str(path)


def talk(question, answer):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def test_sharegpts_form_gives_questions_and_the_lengths_of_answers(tmp_path):
    path = write(
        tmp_path / "s.json",
        [talk("a" * 10, "b" * 20), talk("a", "b"), talk("a" * 900, "b"), {"conversations": []}],
    )
    found = read_sharegpt(path, num_requests=9, max_model_len=100, encode=lambda text: [7] * len(text))
    assert [(one.prompt, one.num_output_tokens) for one in found] == [("a" * 10, 20)]
    fixed = read_sharegpt(path, num_requests=9, max_model_len=100, encode=None, output_tokens=6)
    assert {one.num_output_tokens for one in fixed} == {6} and len(fixed) == 3


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", "is empty"),
        ("{", "is not JSON"),
        ({"a": 1}, "must be a JSON list"),
        ([1], "entry 0 has no list `conversations`"),
        ([], "no conversation that can be used"),
        ([{"conversations": [{"value": 3}, 4]}], "no conversation that can be used"),
    ],
)
def test_a_file_of_another_form_is_refused_in_a_sentence(tmp_path, data, words):
    path = write(tmp_path / "s.json", data)
    with pytest.raises(ValueError, match=words):
        read_sharegpt(path, num_requests=2, max_model_len=100, encode=lambda text: [7] * len(text))


def test_a_file_says_nothing_of_lengths_without_a_tokenizer(tmp_path):
    path = write(tmp_path / "s.json", [talk("a", "b")])
    with pytest.raises(ValueError, match="output-tokens"):
        read_sharegpt(path, num_requests=2, max_model_len=100, encode=None)
