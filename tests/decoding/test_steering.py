"""What becomes of the logits themselves, compared number by number with plain Python."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivllm.decoding.logits_processors import apply_logits_processors, apply_temperature, apply_top_k_top_p
from minivllm.decoding.sampler import Sampler
from minivllm.sampling_params import SamplingParams
from tests.decoding.rows import distribution, make_state, process

VOCAB = 12
token_ids = st.integers(0, VOCAB - 1)
logit_rows = st.lists(st.integers(-12, 12).map(lambda value: value / 4), min_size=VOCAB, max_size=VOCAB)


@st.composite
def steered_rows(draw):
    """Logits, parameters of which most rows have some and none has all, and a past."""
    some = {
        "presence_penalty": st.sampled_from([0.5, -1.0]),
        "frequency_penalty": st.sampled_from([0.25, -0.5]),
        "repetition_penalty": st.sampled_from([1.5, 0.75]),
        "logit_bias": st.dictionaries(token_ids, st.sampled_from([-4.0, 2.0]), max_size=3),
        "allowed_token_ids": st.lists(token_ids, min_size=1, max_size=8),
    }
    names = draw(st.sets(st.sampled_from(sorted(some))))
    params = SamplingParams(**{name: draw(some[name]) for name in names})
    past = st.lists(token_ids, max_size=6)
    return draw(logit_rows), params, draw(past.filter(bool)), draw(past)


state_of = make_state


@given(batch=st.lists(steered_rows(), min_size=1, max_size=5))
def test_every_row_is_steered_by_its_own_parameters(batch):
    logits = torch.tensor([row[0] for row in batch], dtype=torch.float64)
    apply_logits_processors(logits, [state_of(*row[1:]) for row in batch])
    for row, steered in zip(batch, logits.tolist(), strict=True):
        assert steered == pytest.approx(process(*row))


@given(
    logits=st.lists(logit_rows, min_size=1, max_size=4),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    min_p=st.sampled_from([0.0, 0.07, 0.43, 1.0]),
    top_k=st.sampled_from([0, 1, 5]),
    top_p=st.sampled_from([0.13, 0.87, 1.0]),
)
def test_weights_have_the_proportions_of_the_distribution(logits, temperature, min_p, top_k, top_p):
    params = SamplingParams(temperature=temperature, min_p=min_p, top_k=top_k, top_p=top_p)
    weights = apply_temperature(torch.tensor(logits, dtype=torch.float64), [state_of(params)] * len(logits))
    kept = apply_top_k_top_p(
        weights,
        torch.full((len(logits),), top_k or VOCAB),
        torch.full((len(logits),), top_p, dtype=torch.float64),
    )
    for row, found in zip(logits, kept / kept.sum(-1, keepdim=True), strict=True):
        assert found.tolist() == pytest.approx(distribution(row, params))


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 1), (0.499, 1), (0.5, 2), (0.749, 2), (0.75, 4), (math.nextafter(1, 0), 4)]
)
def test_a_number_lands_on_the_token_whose_share_of_the_line_holds_it(uniform, token):
    """Weights 0, 2, 1, 0, 1, 0: shares end at 0, ½, ¾, ¾, 1, 1, and what weighs nothing is never drawn."""
    state = state_of(SamplingParams(allowed_token_ids=[1, 2, 4]))
    state.next_uniform = lambda: uniform
    logits = torch.tensor([[9.0, math.log(2), 0.0, 9.0, 0.0, 9.0]], dtype=torch.float64)
    assert Sampler(6).sample(logits, [state])[0].token_id == token


@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 100.0])
def test_extreme_temperatures_neither_overflow_nor_vanish(temperature):
    logits = torch.tensor([[-1e4, 1e4, 0.0, 1e4 - 1]])
    state = state_of(SamplingParams(temperature=temperature, seed=0))
    tokens = {Sampler(4).sample(logits, [state])[0].token_id for _ in range(50)}
    assert tokens <= ({1} if temperature < 1 else {1, 3})


@pytest.mark.parametrize(
    "extreme",
    [
        {"top_k": 2**80},
        {"temperature": 1e6},
        {"repetition_penalty": 1e6},
        {"repetition_penalty": 1e-6},
        {"min_tokens": 16, "min_p": 1.0},
        {"top_p": 5e-324},
    ],
)
def test_no_accepted_number_can_stop_the_batch(extreme):
    logits = torch.tensor([[-40.0, 0.0, 30.0, -0.0, 1e-30, -torch.inf]])
    state = state_of(SamplingParams(seed=1, **extreme), [0, 1, 2], [3, 4, 5])
    assert 0 <= Sampler(6).sample(logits, [state])[0].token_id < 5
