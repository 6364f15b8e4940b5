"""Whole characters only, every one of them, and at a cost that does not grow with the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.decoding.detokenizer import CONTEXT_TOKENS, LONGEST_WAIT_TOKENS, IncrementalDetokenizer
from minivllm.model.tokenizer import Tokenizer
from tests.decoding.tokenizers_for_tests import byte_fallback, byte_level

TOKENIZERS = {"byte level": byte_level, "byte fallback": byte_fallback}
texts = st.text(st.sampled_from("abc Once  cache\n\t键值缓存é😀👩🏽‍🚀"), max_size=40) | st.text(max_size=25)


@pytest.fixture(params=TOKENIZERS, scope="module")
def tokenizer(request):
    return Tokenizer(TOKENIZERS[request.param]())


def has_byte_tokens(tokenizer):
    return tokenizer.token_to_id("<0x00>") is not None


def pieces(tokenizer, prompt, output):
    detokenizer = IncrementalDetokenizer(tokenizer, prompt)
    return [*(detokenizer.append(token) for token in output), detokenizer.flush()]


@given(prompt=texts, text=texts)
def test_the_pieces_are_the_text(tokenizer, prompt, text):
    before = tokenizer.encode(prompt)
    tokens = tokenizer.encode(prompt + text)[len(before) :]
    if tokenizer.encode(prompt + text)[: len(before)] != before:
        return  # the two texts share a token, so neither is the other's beginning
    whole, beginning = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (before + tokens, before))
    assert "".join(pieces(tokenizer, before, tokens)) == whole[len(beginning) :]


@given(data=st.data(), skip=st.booleans())
def test_the_pieces_of_any_tokens_are_their_text(tokenizer, data, skip):
    prompt, output = (data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=25)) for _ in "po")
    before, whole = tokenizer.decode(prompt, skip), tokenizer.decode(prompt + output, skip)
    if "\ufffd" in (before + whole if has_byte_tokens(tokenizer) else before[-1:]):
        return  # byte tokens in a row are text or not together: then no piece is known before the end
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, skip_special_tokens=skip)
    got = "".join([*(detokenizer.append(token) for token in output), detokenizer.flush()])
    assert before + got == whole


def test_the_output_completes_a_character_that_the_prompt_began(tokenizer):
    tokens = tokenizer.encode("a😀b")
    begin = next(i for i in range(len(tokens)) if "\ufffd" in tokenizer.decode(tokens[:i]))
    assert "".join(pieces(tokenizer, tokens[:begin], tokens[begin:])) == "😀b"


def test_bad_bytes_do_not_spoil_the_good_ones_before_them():
    tokenizer = Tokenizer(byte_fallback())
    good = tokenizer.encode("a😀", add_special_tokens=False)
    begin = len(good) - len("😀".encode())
    bad = tokenizer.token_to_id("<0xE4>")
    assert tokenizer.decode([*good, bad]) == "a" + 5 * "\ufffd", "the whole run of bytes is judged together"
    assert "".join(pieces(tokenizer, good[:begin], [*good[begin:], bad])) == "😀\ufffd"


def test_special_tokens_in_a_row_do_not_cost_the_next_word_its_space(tokenizer):
    end = tokenizer.token_to_id("<eos>" if tokenizer.token_to_id("<eos>") is not None else "</s>")
    space = "" if has_byte_tokens(tokenizer) else " "  # the one whose words bring their own
    word = tokenizer.encode(space + "fox", add_special_tokens=False)
    assert "".join(pieces(tokenizer, tokenizer.encode("the"), [*[end] * 100, *word])) == " fox"


@given(text=texts)
def test_no_piece_holds_half_a_character(tokenizer, text):
    text = text.replace("\ufffd", "")
    tokens = tokenizer.encode("a" + text)
    assert all("\ufffd" not in piece for piece in pieces(tokenizer, tokens[:1], tokens[1:]))


@given(tokens=st.lists(st.integers(3, 258), max_size=120))
def test_bytes_that_are_no_text_neither_crash_nor_pile_up(tokenizer, tokens):
    detokenizer = IncrementalDetokenizer(tokenizer, [])
    for token in tokens:
        detokenizer.append(token)
        assert len(detokenizer._window) <= 2 * LONGEST_WAIT_TOKENS + CONTEXT_TOKENS


def test_bytes_that_are_no_text_are_not_waited_for_for_ever(tokenizer):
    (bad,) = tokenizer.encode("é")[-1:]
    assert tokenizer.decode([bad]) == "\ufffd", "half a character"
    detokenizer = IncrementalDetokenizer(tokenizer, tokenizer.encode("a"))
    before_the_end = [detokenizer.append(bad) for _ in range(300)]
    assert len(detokenizer._window) <= 2 * LONGEST_WAIT_TOKENS
    assert len("".join(before_the_end)) >= 300 - LONGEST_WAIT_TOKENS


def test_each_token_costs_the_same_however_long_the_text(tokenizer):
    longest = 0

    class Watch:
        def decode(self, token_ids, skip_special_tokens=True):
            nonlocal longest
            longest = max(longest, len(token_ids))
            return tokenizer.decode(token_ids, skip_special_tokens)

    tokens = tokenizer.encode("Once upon a time 键值 😀 " * 200)
    assert len(tokens) > 1000
    detokenizer = IncrementalDetokenizer(Watch(), tokens[:500])
    for token in tokens[500:]:
        detokenizer.append(token)
    assert longest <= 2 * LONGEST_WAIT_TOKENS


def test_special_tokens_are_left_out_unless_asked_for():
    tokenizer = Tokenizer(byte_fallback())
    end = tokenizer.token_to_id("</s>")
    for skip, expected in [(True, ""), (False, "</s>")]:
        detokenizer = IncrementalDetokenizer(tokenizer, tokenizer.encode("a"), skip_special_tokens=skip)
        assert detokenizer.append(end) == expected
