"""Every argument of a request is checked where it is given, by name."""

import copy
import dataclasses
import pickle

import pytest

from minivllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams

NAN, INF = float("nan"), float("inf")


def test_the_defaults_are_vllms():
    defaults = {
        field.name: getattr(SamplingParams(), field.name) for field in dataclasses.fields(SamplingParams)
    }
    expected = dict(
        n=1, presence_penalty=0, frequency_penalty=0, repetition_penalty=1, temperature=1, top_p=1
    )
    expected |= dict(top_k=0, min_p=0, max_tokens=16, min_tokens=0, seed=None, logprobs=None, logit_bias=None)
    expected |= dict(prompt_logprobs=None, allowed_token_ids=None, ignore_eos=False, detokenize=True)
    expected |= dict(skip_special_tokens=True, include_stop_str_in_output=False)
    expected |= dict(output_kind=RequestOutputKind.CUMULATIVE)
    assert expected.items() <= defaults.items()
    assert [defaults[name] or [] for name in ("stop", "stop_token_ids", "bad_words")] == [[], [], []]


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "n": [0, -1, True, 1.0],
        "best_of": [0, -1, True, "4"],
        "use_beam_search": [1, None],
        "length_penalty": [2.0, NAN, 21, "x"],
        "early_stopping": ["always", 1, True],
        "presence_penalty": [-2.1, 2.1, NAN, "x"],
        "frequency_penalty": [-2.1, 2.1, NAN, None],
        "repetition_penalty": [0, -1, NAN, INF, 1e-40, 1e40],
        "temperature": [10**400, -0.1, NAN, INF, 1e40, "hot", True],
        "top_p": [0, -0.1, 1.1, NAN],
        "top_k": [-2, 1.5, True],
        "min_p": [-0.1, 1.1, NAN],
        "seed": [1.5, "7", 2**64],
        "stop": ["", ["a", ""], [1], 5, {"a": 1}],
        "stop_token_ids": [[-1], ["a"], [True], 5, "12"],
        "ignore_eos": [1, None],
        "max_tokens": [0, -1, 1.5, True],
        "min_tokens": [-1, 17, 1.5],
        "logprobs": [-2, 1.5, True],
        "prompt_logprobs": [-2, "1"],
        "detokenize": [0],
        "logit_bias": [{-1: 1.0}, {1: NAN}, {"a": 1}, {"²": 1}, [1], {1: "x"}],
        "allowed_token_ids": [[], [-1], ["a"]],
        "bad_words": [[""], [3], 7],
        "output_kind": ["CUMULATIVE", 1],
    }.items(),
)
def test_an_argument_out_of_range_is_refused_by_name(name, values):
    for value in values:
        with pytest.raises(ValueError, match=name):
            SamplingParams(**{name: value})


def test_the_message_has_value_and_range():
    with pytest.raises(ValueError, match=r"top_p must be a finite number above 0 and at most 1, got 1.5"):
        SamplingParams(top_p=1.5)
    with pytest.raises(ValueError, match=r"min_tokens must be at most max_tokens \(5\), got 6"):
        SamplingParams(max_tokens=5, min_tokens=6)
    with pytest.raises(ValueError, match="stop must be empty when detokenize is False"):
        SamplingParams(stop="x", detokenize=False)


@pytest.mark.parametrize("name", ["best_off", "max_token"])
def test_an_argument_that_does_not_exist_is_named_with_those_that_do(name):
    with pytest.raises(TypeError, match=f"no argument '{name}'; it has n, presence_penalty, .*output_kind"):
        SamplingParams(**{name: 1})


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"temperature": 0.7}, "temperature must be 0 when use_beam_search is True.*got 0.7"),
        ({"top_k": 5}, "top_k must be left at its default"),
        ({"stop": "x"}, "stop must be left at its default"),
        ({"logprobs": 2}, "logprobs must be left at its default"),
        ({"min_tokens": 2}, "min_tokens must be left at its default"),
        ({"length_penalty": 21}, "length_penalty must be a finite number"),
        ({"early_stopping": "soon"}, "early_stopping must be True, False or 'never', got 'soon'"),
        ({"output_kind": RequestOutputKind.DELTA}, "output_kind must not be DELTA"),
        ({"n": 3, "best_of": 2}, r"best_of must be at least n \(3\), got 2"),
    ],
)
def test_what_a_beam_search_would_have_to_ignore_is_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(use_beam_search=True, **wanted)


def test_the_default_temperature_and_zero_are_both_fine_for_a_beam_search():
    for temperature in (0, 1.0):
        assert SamplingParams(use_beam_search=True, best_of=4, temperature=temperature).width == 4


@pytest.mark.parametrize("width", [9, 100])
def test_more_beams_than_tokens_are_refused(width):
    for params in (
        SamplingParams(use_beam_search=True, best_of=width),
        BeamSearchParams(beam_width=width, max_tokens=4).to_sampling_params(),
    ):
        with pytest.raises(ValueError, match=f"beam_width .* must be at most 8, .* got {width}"):
            params.verify(8, has_tokenizer=True)


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "beam_width": [0, True, 2.0],
        "max_tokens": [0, None],
        "ignore_eos": [1],
        "temperature": [-1, NAN],
        "length_penalty": [INF, "x"],
    }.items(),
)
def test_an_argument_of_a_beam_search_out_of_range_is_refused_by_name(name, values):
    for value in values:
        with pytest.raises(ValueError, match=name):
            BeamSearchParams(**{"beam_width": 2, "max_tokens": 4, name: value})


def test_params_can_be_copied_replaced_and_pickled():
    params = SamplingParams(stop="x", logit_bias={1: 2})
    assert copy.deepcopy(params) == pickle.loads(pickle.dumps(params)) == params
    assert dataclasses.replace(params, top_k=3).top_k == 3


def test_other_spellings_are_brought_into_one_form():
    params = SamplingParams(stop="end", stop_token_ids=(1, 2), logit_bias={3: 500, "4": -0.5})
    assert (params.stop, params.stop_token_ids) == (["end"], [1, 2])
    assert params.logit_bias == {3: 100.0, 4: -0.5}, "clamped, and JSON's string keys are understood"
    assert SamplingParams(seed=-1).seed is None, "as in vLLM"
    assert SamplingParams(temperature=0).is_greedy and SamplingParams(temperature=9e-6).is_greedy
    assert not SamplingParams(temperature=0.01).is_greedy


@pytest.mark.parametrize(
    "arguments",
    [{"stop_token_ids": [50]}, {"allowed_token_ids": [1, 50]}, {"logit_bias": {50: 1}}, {"logprobs": 51}],
)
def test_what_the_vocabulary_does_not_have_is_refused_by_name(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=name):
        SamplingParams(**arguments).verify(50, has_tokenizer=True)


@pytest.mark.parametrize("arguments", [{"stop": "x"}, {"bad_words": ["x"]}])
def test_text_cannot_be_looked_for_without_a_tokenizer(arguments):
    SamplingParams(**arguments).verify(50, has_tokenizer=True)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        SamplingParams(**arguments).verify(50, has_tokenizer=False)
