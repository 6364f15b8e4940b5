"""When an output ends, what its text is then, and what a caller may see before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.decoding.output_state import OutputState
from minivllm.decoding.sampler import SampledToken
from minivllm.model.tokenizer import Tokenizer
from minivllm.outputs import Logprob
from minivllm.sampling_params import RequestOutputKind, SamplingParams
from minivllm.scheduling.request import Sequence
from tests.decoding.tokenizers_for_tests import byte_level

TOKENIZER = Tokenizer(byte_level())
EOS = TOKENIZER.token_to_id("<eos>")
letters = st.text("abcd ", min_size=1, max_size=30)


def generation(max_tokens=100, tokenizer=TOKENIZER, **params):
    return OutputState(
        SamplingParams(max_tokens=max_tokens, **params),
        Sequence(0, TOKENIZER.encode("x")),
        max_tokens=max_tokens,
        tokenizer=tokenizer,
        eos_token_ids=[EOS],
    )


def append(it, token, logprobs=None):
    """As the engine does: the output understands the token, then the sequence has it."""
    it.append(SampledToken(token, logprobs))
    it.sequence.append_token(token)


def finish_reason(it):
    return it.finish and it.finish.reason


def feed(it, text_or_tokens):
    """Append tokens until the output ends; yields after each."""
    tokens = TOKENIZER.encode(text_or_tokens) if isinstance(text_or_tokens, str) else text_or_tokens
    for token in tokens:
        if it.finish:
            return
        append(it, token)


@given(
    text=letters,
    stop=st.lists(st.text("abcd ", min_size=1, max_size=4), min_size=1, max_size=3),
    keep=st.booleans(),
)
def test_the_text_is_cut_at_the_first_stop_string(text, stop, keep):
    it = generation(stop=stop, include_stop_str_in_output=keep)
    feed(it, text)
    found = sorted((text.find(s), s) for s in stop if s in text)
    if not found:
        assert (it.completion().text, it.finish) == (text, None) or it.params.stop
        it.abort()
        assert it.completion().text == text
        return
    completion = it.completion()
    assert completion.finish_reason == "stop" and completion.stop_reason in stop
    begin = len(completion.text) - (len(completion.stop_reason) if keep else 0)
    assert text[:begin] == completion.text[:begin] and text[begin:].startswith(completion.stop_reason)
    # Within one token the earliest counts; between tokens, the first that is complete does.
    assert begin >= found[0][0]


@given(text=letters, stop=st.text("abcd ", min_size=1, max_size=4))
def test_what_is_streamed_is_never_taken_back(text, stop):
    it = generation(stop=stop, output_kind=RequestOutputKind.DELTA)
    told = ""
    for token in TOKENIZER.encode(text):
        if it.finish:
            break
        append(it, token)
        told += it.completion().text
        it.mark_sent()
    if not it.finish:
        it.abort()
        told += it.completion().text
        it.mark_sent()
    assert told == (text[: text.find(stop)] if stop in text else text)


def test_the_end_of_sequence_token_ends_the_output_and_has_no_text():
    it = generation()
    feed(it, [*TOKENIZER.encode("abc"), EOS, *TOKENIZER.encode("never")])
    completion = it.completion()
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("abc", "stop", None)
    assert completion.token_ids[-1] == EOS, "it is one of the output's tokens all the same"


def test_the_end_of_sequence_token_can_be_ignored():
    it = generation(ignore_eos=True)
    feed(it, [*TOKENIZER.encode("abc"), EOS, *TOKENIZER.encode("abc")])
    assert (it.completion().text, it.finish) == ("abcabc", None)


@pytest.mark.parametrize(("keep", "text"), [(False, "ab"), (True, "abc")])
def test_a_stop_token_names_itself_and_its_text_is_kept_only_on_request(keep, text):
    a, b, c = (TOKENIZER.encode(letter)[0] for letter in "abc")
    it = generation(stop_token_ids=[c], include_stop_str_in_output=keep)
    feed(it, [a, b, c])
    completion = it.completion()
    assert (completion.text, completion.finish_reason, completion.stop_reason) == (text, "stop", c)


def test_min_tokens_holds_back_every_stop_but_the_length():
    a, b = TOKENIZER.encode("a")[0], TOKENIZER.encode("b")[0]
    it = generation(min_tokens=4, max_tokens=6, stop_token_ids=[b], stop="ab")
    feed(it, [a, b, a])
    assert it.finish is None
    feed(it, [a, b])
    assert (*it.finish, len(it.output_token_ids)) == ("stop", b, 5)
    it = generation(min_tokens=6, max_tokens=6, stop="ab")
    feed(it, [a, b] * 4)
    assert len(it.output_token_ids) == 6


def test_the_length_ends_the_output_after_exactly_so_many_tokens():
    it = generation(max_tokens=3)
    feed(it, [5] * 9)
    assert (len(it.output_token_ids), finish_reason(it)) == (3, "length")


def test_half_a_character_at_the_end_is_given_out_rather_than_lost():
    it = generation(max_tokens=1)
    tokens = TOKENIZER.encode("😀")
    assert len(tokens) > 1
    feed(it, tokens)
    assert it.completion().text == "\ufffd"


def test_without_a_tokenizer_there_are_tokens_and_no_text():
    it = generation(tokenizer=None, max_tokens=2)
    feed(it, [5, 6])
    assert (it.completion().text, it.completion().token_ids) == ("", [5, 6])


def test_logprobs_add_up_and_carry_their_tokens_texts():
    it = generation(logprobs=1)
    a, b = TOKENIZER.encode("a")[0], TOKENIZER.encode("b")[0]
    append(it, a, {a: Logprob(-0.5, 1), b: Logprob(-1.5, 2)})
    append(it, b, {b: Logprob(-0.25, 1)})
    completion = it.completion()
    assert completion.cumulative_logprob == -0.75
    assert [entry.decoded_token for entry in completion.logprobs[0].values()] == ["a", "b"]


@given(
    text=letters,
    stop=st.none() | st.text("abcd ", min_size=1, max_size=3),
    num_tokens=st.integers(0, 30),
    lost=st.booleans(),
)
def test_after_an_interrupt_everything_is_made_again_from_the_tokens(text, stop, num_tokens, lost):
    """`lost`: the output had understood one more token than the sequence ever got."""
    it, twin = (generation(max_tokens=20, stop=stop, logprobs=0) for _ in range(2))
    tokens = TOKENIZER.encode(text)[:num_tokens]
    for token in tokens:
        if it.finish:
            break
        for output in (it, twin):
            append(output, token, {token: Logprob(-0.5, 1)})
    if lost and not it.finish:
        it.append(SampledToken(EOS, {EOS: Logprob(-0.25, 1)}))
    it.rewind()
    assert it.completion() == twin.completion() and it.finish == twin.finish
