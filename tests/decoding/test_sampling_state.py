"""What a sequence remembers: its past as it grows, its stream, and what must not come next."""

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivllm.decoding.sampler import Sampler
from minivllm.model.tokenizer import Tokenizer
from minivllm.sampling_params import SamplingParams
from tests.decoding.rows import make_state
from tests.decoding.tokenizers_for_tests import byte_fallback, byte_level

VOCAB = 9


def state_of(output=(), eos=(), tokenizer=None, fallback_seed=0, **params):
    params = SamplingParams(**params)
    return make_state(
        params, [1], output, eos_token_ids=eos, tokenizer=tokenizer, fallback_seed=fallback_seed
    )


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_no_end_is_chosen_before_min_tokens_are_out(ignore_eos):
    """As in vLLM, even where the end-of-sequence token would be ignored."""
    likely_end = torch.tensor([[0.0, 9.0, 8.0, 7.0] + [0.0] * (VOCAB - 4)])
    params = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=[2], ignore_eos=ignore_eos)
    state = make_state(params, eos_token_ids=[1])
    for expected in [3, 3, 1, 1]:
        (sampled,) = Sampler(VOCAB).sample(likely_end, [state])
        assert sampled.token_id == expected
        state.sequence.append_token(sampled.token_id)


def test_where_nothing_else_is_left_a_banned_token_is_chosen_after_all():
    only_end = state_of(eos=[4], min_tokens=3, allowed_token_ids=[4])
    assert Sampler(VOCAB).sample(torch.zeros(1, VOCAB), [only_end])[0].token_id == 4


def test_tokens_that_the_model_has_no_logit_for_are_passed_over():
    state = state_of(eos=[VOCAB, VOCAB + 100], min_tokens=3, temperature=0)
    assert Sampler(VOCAB).sample(torch.arange(VOCAB).float()[None], [state])[0].token_id == VOCAB - 1


@given(greedy=st.lists(st.booleans(), max_size=20), seed=st.integers(0, 5))
def test_each_sampled_token_takes_one_number_from_the_stream_and_a_greedy_one_none(greedy, seed):
    state, twin = state_of(seed=seed), Random(seed)
    other = make_state(SamplingParams(temperature=0, seed=seed))
    for alone in greedy:
        Sampler(VOCAB).sample(torch.zeros(1 if alone else 2, VOCAB), [other] if alone else [state, other])
        if not alone:
            state.sequence.append_token(0)
    for _ in range(greedy.count(False)):
        twin.random()
    assert state.next_uniform() == twin.random()
    assert other.next_uniform() == state_of(seed=seed).next_uniform()


@given(positions=st.lists(st.integers(0, 6), min_size=1, max_size=12), seed=st.integers(0, 5))
def test_the_number_of_a_position_is_the_same_however_often_and_in_whatever_order_it_is_asked_for(
    positions, seed
):
    """A step that failed or was interrupted is sampled again; a request may even begin again."""
    state, twin = state_of(seed=seed), Random(seed)
    numbers = [twin.random() for _ in range(7)]
    for position in positions:
        del state.sequence.token_ids[1:]
        state.sequence.token_ids.extend([0] * position)
        assert state.next_uniform() == numbers[position]


def test_a_request_without_a_seed_has_the_stream_of_its_fallback():
    assert state_of(fallback_seed=7).next_uniform() == state_of(seed=7).next_uniform()
    assert state_of(fallback_seed=7, seed=8).next_uniform() == state_of(seed=8).next_uniform()
    assert state_of(fallback_seed=7, seed=-1).next_uniform() == state_of(seed=7).next_uniform()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused_before_any_number_is_taken(value):
    state = state_of(seed=3)
    logits = torch.zeros(1, VOCAB)
    logits[0, 4] = value
    with pytest.raises(FloatingPointError, match=r"logits hold 1 (NaN|infinity) among"):
        Sampler(VOCAB).sample(logits, [state])
    assert state.next_uniform() == state_of(seed=3).next_uniform()


@pytest.mark.parametrize("build", [byte_level, byte_fallback])
@given(
    word=st.sampled_from(["cache", " fox", "quick brown", "键值", "q"]), start=st.sampled_from(["", "the"])
)
def test_a_bad_word_cannot_be_finished_at_the_start_of_a_text_or_after_a_space(build, word, start):
    tokenizer = Tokenizer(build())
    for spelled in (word.lstrip(), " " + word.lstrip()):
        *output, last = tokenizer.encode(spelled, add_special_tokens=False)
        before = tokenizer.encode(start, add_special_tokens=False)
        state = state_of([*before, *output], tokenizer=tokenizer, bad_words=[word])
        assert last in state.banned_token_ids()
    assert not state_of([], tokenizer=tokenizer, bad_words=["the quick"]).banned_token_ids()


def test_a_bad_word_without_tokens_is_refused():
    class Mute:
        def encode(self, text, add_special_tokens=True):
            return []

    with pytest.raises(ValueError, match=r"bad_words must hold words that have tokens; 'x' has none"):
        state_of(tokenizer=Mute(), bad_words=["x"])
