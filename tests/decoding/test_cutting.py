"""Top-k and top-p: the fast way and the plain way against three lines of Python, with many ties."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.decoding import logits_processors
from minivllm.decoding.logits_processors import apply_top_k_top_p, top_tokens
from minivllm.decoding.sampler import Sampler
from minivllm.sampling_params import SamplingParams
from tests.decoding.rows import make_state

VOCAB = 12
# Powers of two add up without rounding, so "exactly the share" is a case that happens.
weights = st.lists(st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0]), min_size=VOCAB, max_size=VOCAB)
rows = st.tuples(
    weights.filter(any), st.integers(1, VOCAB), st.sampled_from([0.03, 0.25, 0.5, 0.75, 0.9, 1.0])
)


@contextmanager
def looking_at(count):
    """Let the fast way look at `count` of the heaviest tokens."""
    before, logits_processors.NUM_TOP_TOKENS = logits_processors.NUM_TOP_TOKENS, count
    try:
        yield
    finally:
        logits_processors.NUM_TOP_TOKENS = before


looks = st.sampled_from([1, 3, 5, VOCAB, 256])


def survivors(row, top_k, top_p):
    """Token ids, heaviest first: at most `top_k`, then no more than `top_p` of their sum needs."""
    kept = sorted(range(VOCAB), key=lambda token: (-row[token], token))[:top_k]
    share = top_p * sum(row[token] for token in kept)
    enough = next((n for n in range(1, len(kept)) if sum(row[t] for t in kept[:n]) >= share), len(kept))
    return kept[:enough] if top_p < 1 else kept


def expected_weights(row, top_k, top_p):
    kept = survivors(row, top_k, top_p)
    return [weight if token in kept else 0.0 for token, weight in enumerate(row)]


def columns(batch):
    table, top_k, top_p = zip(*batch, strict=True)
    return torch.tensor(table), torch.tensor(top_k), torch.tensor(top_p, dtype=torch.float64)


@given(batch=st.lists(rows, min_size=1, max_size=5))
def test_the_plain_way_keeps_the_heaviest_and_of_equals_the_lowest_ids(batch):
    assert apply_top_k_top_p(*columns(batch)).tolist() == [expected_weights(*row) for row in batch]


@settings(max_examples=200)
@given(batch=st.lists(rows, min_size=1, max_size=5), count=looks)
def test_where_the_fast_way_decides_it_decides_the_same(batch, count):
    with looking_at(count):
        look = top_tokens(*columns(batch))
    for row, ids, kept, decided in zip(batch, *(part.tolist() for part in look), strict=True):
        assert ids == sorted(set(ids))
        if decided:
            expected = expected_weights(*row)
            assert {token: weight for token, weight in zip(ids, kept, strict=True) if weight} == {
                token: weight for token, weight in enumerate(expected) if weight
            }


@pytest.mark.parametrize("count", [1, 2, 3, VOCAB])
def test_the_fast_way_decides_when_a_lighter_token_is_in_sight(count):
    steep = torch.tensor([[2.0**-n for n in range(VOCAB)]])
    top_k, top_p = torch.tensor([2]), torch.tensor([1.0], dtype=torch.float64)
    with looking_at(count):
        assert bool(top_tokens(steep, top_k, top_p).decided) == (count > 2)


@given(
    logits=st.lists(
        st.lists(st.integers(-6, 6).map(lambda v: v / 2), min_size=VOCAB, max_size=VOCAB),
        min_size=1,
        max_size=6,
    ),
    count=looks,
    data=st.data(),
)
def test_tokens_do_not_depend_on_how_far_the_fast_way_looks(logits, count, data):
    chosen = [
        SamplingParams(
            seed=data.draw(st.integers(0, 99)),
            temperature=data.draw(st.sampled_from([0.0, 0.5, 1.0])),
            top_k=data.draw(st.sampled_from([0, 1, 4, 50])),
            top_p=data.draw(st.sampled_from([0.37, 0.81, 1.0])),
            min_p=data.draw(st.sampled_from([0.0, 0.11])),
        )
        for _ in logits
    ]

    def tokens(rows):
        states = [make_state(chosen[row]) for row in rows]
        batch = torch.tensor([logits[row] for row in rows])
        return [token for token, _ in Sampler(VOCAB).sample(batch, states)]

    with looking_at(count):
        together = tokens(range(len(logits)))
    with looking_at(VOCAB):
        assert together == [tokens([row])[0] for row in range(len(logits))]


def test_large_vocabularies_draw_from_the_right_tokens():
    """Real sizes, where both ways are at work: every token drawn is one that top-k and top-p keep."""
    vocab = 3000
    logits = torch.randn(40, vocab, generator=torch.Generator().manual_seed(3))
    logits[::2] *= 8  # steep rows are decided by the first look, flat ones are not
    params = [SamplingParams(seed=row, top_p=0.7, top_k=900 * (row % 3)) for row in range(40)]
    sampled = Sampler(vocab).sample(logits, [make_state(p) for p in params])
    for row, (token, _) in enumerate(sampled):
        probabilities = logits[row].double().softmax(-1)
        kept = probabilities.sort(descending=True).values[: params[row].top_k or vocab]
        likelier = probabilities[probabilities > probabilities[token]].sum()
        assert likelier < 0.7 * kept.sum()
