"""The vectorised sampler against plain Python, row by row, whatever is mixed in a batch."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from minivllm.decoding.finite_logits import NotFiniteError
from minivllm.decoding.sampler import Sampler
from minivllm.decoding.sampling_state import SamplingState
from minivllm.decoding.structured.token_masks import TokenMask
from minivllm.sampling_params import SamplingParams
from minivllm.scheduling.request import Sequence
from tests.decoding.rows import distribution, make_state, process, softmax

VOCAB = 12
token_ids = st.integers(0, VOCAB - 1)
# A coarse grid, so that ties are common and differences are never a matter of rounding.
logit_rows = st.lists(st.integers(-12, 12).map(lambda value: value / 4), min_size=VOCAB, max_size=VOCAB)


@st.composite
def parameters(draw):
    return SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.5, 1.0, 1.7])),
        top_p=draw(st.sampled_from([0.13, 0.51, 0.87, 1.0])),
        top_k=draw(st.sampled_from([-1, 0, 1, 3, 7, 100])),
        min_p=draw(st.sampled_from([0.0, 0.07, 0.43])),
        presence_penalty=draw(st.sampled_from([0.0, 0.5, -1.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.25, -0.5])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.5, 0.75])),
        logit_bias=draw(st.none() | st.dictionaries(token_ids, st.sampled_from([-4.0, 2.0]), max_size=3)),
        allowed_token_ids=draw(st.none() | st.lists(token_ids, min_size=1, max_size=6, unique=True)),
        stop_token_ids=draw(st.lists(token_ids, max_size=2, unique=True)),
        min_tokens=draw(st.sampled_from([0, 2])),
        logprobs=draw(st.sampled_from([None, 0, 3, -1])),
        seed=draw(st.integers(0, 99)),
    )


@st.composite
def rows(draw):
    """One row of a batch: logits, parameters, and a past."""
    past = st.lists(token_ids, max_size=5)
    return draw(logit_rows), draw(parameters()), draw(past.filter(bool)), draw(past)


state_of = make_state


def sample(batch):
    logits = torch.tensor([row[0] for row in batch], dtype=torch.float64)
    return Sampler(VOCAB).sample(logits, [state_of(*row[1:]) for row in batch])


def reference(row, params, prompt, output):
    """The same choice in plain Python; None where rounding alone could decide it."""
    banned = params.stop_token_ids if len(output) < params.min_tokens else []
    steered = process(row, params, prompt, output)
    if any(math.isfinite(v) for t, v in enumerate(steered) if t not in banned):
        steered = process(row, params, prompt, output, banned)
    if params.is_greedy:
        best = max(steered)
        return steered.index(best) if sum(value > best - 1e-9 for value in steered) == 1 else None
    probabilities = distribution(steered, params)
    target = state_of(params, prompt, output).next_uniform()
    reached = 0.0
    for token, probability in enumerate(probabilities):
        reached += probability
        if abs(reached - target) < 1e-9:
            return None
        if reached > target:
            return token
    return None


@given(batch=st.lists(rows(), min_size=1, max_size=5))
def test_every_row_gets_what_plain_python_gives_it(batch):
    for row, token in zip(batch, sample(batch), strict=True):
        expected = reference(*row)
        assert expected is None or token.token_id == expected


@given(batch=st.lists(rows(), min_size=2, max_size=5))
def test_a_row_does_not_notice_the_rest_of_its_batch(batch):
    assert sample(batch) == [sample([row])[0] for row in batch]


@given(row=rows())
def test_what_is_not_allowed_is_never_chosen(row):
    logits, params, prompt, output = row
    assume(params.allowed_token_ids)
    assert sample([row])[0].token_id in params.allowed_token_ids


@given(row=rows())
def test_logprobs_are_those_of_the_untouched_logits(row):
    logits, params, prompt, output = row
    token, entry = sample([row])[0]
    if params.logprobs is None:
        assert entry is None
        return
    probabilities = softmax(logits)
    assert next(iter(entry)) == token, "the chosen token comes first"
    likeliest = sorted(probabilities, reverse=True)[: params.logprobs if params.logprobs >= 0 else VOCAB]
    others = sorted((math.exp(entry[t].logprob) for t in entry), reverse=True)
    assert others[: len(likeliest)] == pytest.approx(likeliest)
    assert len(likeliest) <= len(entry) <= len(likeliest) + 1
    for candidate, logprob in entry.items():
        assert math.exp(logprob.logprob) == pytest.approx(probabilities[candidate])
    likelier = sum(p > probabilities[token] + 1e-12 for p in probabilities)
    as_likely = sum(p > probabilities[token] - 1e-12 for p in probabilities)
    assert likelier < entry[token].rank <= as_likely


@given(logits=st.lists(logit_rows, min_size=1, max_size=4), data=st.data())
def test_prompt_logprobs_name_the_token_that_followed(logits, data):
    following = data.draw(st.lists(token_ids, min_size=len(logits), max_size=len(logits)))
    entries = Sampler(VOCAB).prompt_logprobs(torch.tensor(logits, dtype=torch.float64), following, 2)
    for row, token, entry in zip(logits, following, entries, strict=True):
        assert next(iter(entry)) == token and 2 <= len(entry) <= 3
        assert math.exp(entry[token].logprob) == pytest.approx(softmax(row)[token])


def test_drawn_tokens_follow_the_distribution():
    params = SamplingParams(temperature=0.8, top_k=6, seed=5)
    row = [0.0, 1.0, 2.0, 0.5, -1.0, 1.5, 0.25, -3.0, 0.1, 1.1, -0.5, 0.9]
    draws = 20_000
    states = [state_of(replace(params, seed=seed), [1], []) for seed in range(draws)]
    tokens = [token for token, _ in Sampler(VOCAB).sample(torch.tensor([row] * draws), states)]
    expected = distribution(row, params)
    for token in range(VOCAB):
        spread = math.sqrt(expected[token] * (1 - expected[token]) / draws)
        assert abs(tokens.count(token) / draws - expected[token]) <= 5 * spread


def test_a_stream_depends_on_its_seed_and_on_nothing_else():
    logits = torch.zeros(1, VOCAB)
    params = SamplingParams(seed=11)

    def story(company):
        mine = state_of(params, [1], [])
        others = [state_of(SamplingParams(seed=seed), [1], []) for seed in range(company)]
        batch = logits.repeat(company + 1, 1)
        for _ in range(30):
            mine.sequence.append_token(Sampler(VOCAB).sample(batch, [*others, mine])[-1].token_id)
        return mine.output_token_ids

    assert story(0) == story(3)
    assert len(set(story(0))) > 4


def test_the_engines_logits_are_left_as_they_were():
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    params = SamplingParams(top_k=2, repetition_penalty=2.0, seed=1)
    Sampler(VOCAB).sample(logits, [state_of(params, [1, 2], [3]) for _ in range(3)])
    assert torch.equal(logits, before)


def test_half_precision_logits_are_sampled_in_single_precision():
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    states = [
        state_of(SamplingParams(seed=1, logprobs=1), [1], []),
        state_of(SamplingParams(temperature=0), [1], []),
    ]
    drawn, greedy = Sampler(VOCAB).sample(logits, states)
    assert greedy.token_id == int(logits[1].argmax())
    assert math.exp(drawn.logprobs[drawn.token_id].logprob) == pytest.approx(
        softmax(logits[0].tolist())[drawn.token_id], rel=1e-5
    )


class Letters:
    """A tokenizer of one token for each letter; a space and what follows it are one token."""

    def encode(self, text, add_special_tokens=True):
        return [ord(letter) - ord("a") for letter in text.replace(" ", "")]


def test_a_bad_word_is_never_completed():
    params = SamplingParams(temperature=0, bad_words=["abc", "f"])
    logits = torch.zeros(1, VOCAB)
    for output, expected in [([0, 1], 3), ([1], 2), ([], 2)]:
        logits[0] = 0
        logits[0, 2], logits[0, 3], logits[0, 5] = 2.0, 1.0, 9.0
        state = make_state(params, [1], output, tokenizer=Letters())
        assert Sampler(VOCAB).sample(logits, [state])[0].token_id == expected


@given(
    st.lists(
        st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0, np.nan]), min_size=8, max_size=8),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=4, max_size=4),
)
def test_the_fast_way_to_the_likeliest_allowed_token_is_the_plain_one(rows, struck):
    """The plain way is that of a request whose likelihoods are told: the same token, or the same refusal."""

    def outcome(logprobs):
        states = []
        for number, _ in enumerate(rows):
            structure = Fixed(TokenMask(bytearray(struck[number]))) if number else None
            params = SamplingParams(temperature=0, logprobs=logprobs)
            states.append(SamplingState(params, Sequence(0, [1]), structure=structure))
        try:
            return [token.token_id for token in Sampler(8).sample(torch.tensor(rows), states)]
        except NotFiniteError as error:
            return error.found

    assert outcome(None) == outcome(0)


class Fixed:
    """A structure that stands still."""

    problem, is_told = "", False

    def __init__(self, mask):
        self.mask = lambda: mask
