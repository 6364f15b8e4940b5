"""The rules of an ending, one by one; `test_generation.py` has them at work together."""

from hypothesis import given
from hypothesis import strategies as st

from minivllm.decoding.stop_criteria import Stop, StopCriteria
from minivllm.sampling_params import SamplingParams


def criteria(max_tokens=16, eos=(), **params):
    return StopCriteria(SamplingParams(max_tokens=max_tokens, **params), eos, max_tokens)


def first_stop(rules, pieces):
    """Append pieces of text, one for each token, until a stop string ends it."""
    text = ""
    for count, piece in enumerate(pieces, 1):
        text += piece
        if stop := rules.ends_with_text(text, len(piece), count):
            return count, stop
    return None


pieces_of_text = st.lists(st.text("ab", max_size=3), max_size=12)


@given(pieces=pieces_of_text, stop=st.text("ab", min_size=1, max_size=5), min_tokens=st.integers(0, 6))
def test_a_stop_string_counts_once_a_token_after_min_tokens_completes_it(pieces, stop, min_tokens):
    found = first_stop(criteria(stop=stop, min_tokens=min_tokens), pieces)
    # vLLM's rule, said slowly: the first token after `min_tokens` in whose characters a stop string ends.
    for count in range(min_tokens + 1, len(pieces) + 1):
        before, text = "".join(pieces[: count - 1]), "".join(pieces[:count])
        ends = [at for at in range(len(text)) if text.startswith(stop, at) and at + len(stop) > len(before)]
        if ends:
            assert found == (count, Stop("stop", stop, ends[0]))
            return
    assert found is None


@given(pieces=pieces_of_text, stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_no_stop_string_remains_in_the_text(pieces, stop):
    found = first_stop(criteria(stop=stop), pieces)
    text = "".join(pieces)[: found[1].text_length] if found else "".join(pieces)
    assert not any(string in text for string in stop)


def test_of_two_stop_strings_in_one_token_the_first_to_begin_counts():
    assert first_stop(criteria(stop=["b", "a"]), ["xab"]) == (1, Stop("stop", "a", 1))


def test_a_stop_string_that_is_to_be_kept_ends_the_text():
    rules = criteria(stop="stop", include_stop_str_in_output=True)
    assert first_stop(rules, ["no s", "to", "p now"]) == (3, Stop("stop", "stop", 7))


def test_tokens_end_an_output_unless_it_is_too_short_or_they_are_ignored():
    rules = criteria(eos=[5, 6], stop_token_ids=[6, 7], min_tokens=3)
    assert rules.ends_with_token(5, 2) is None and rules.ends_with_token(7, 2) is None
    assert [rules.ends_with_token(token, 3) for token in (4, 5, 7)] == [None, Stop("stop"), Stop("stop", 7)]
    assert rules.ends_with_token(6, 3) == Stop("stop", 6), "all but the first of the model's own are named"
    ignoring = criteria(eos=[5, 6], stop_token_ids=[6, 7], ignore_eos=True)
    assert [ignoring.ends_with_token(token, 1) for token in (5, 6)] == [None, Stop("stop", 6)]


def test_the_length_ends_an_output_even_below_min_tokens():
    """The model may leave less room than `min_tokens`: then the room decides."""
    rules = StopCriteria(SamplingParams(min_tokens=9, max_tokens=None), (), 4)
    assert [rules.ends_with_length(count) for count in (3, 4)] == [None, Stop("length")]
