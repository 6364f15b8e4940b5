"""The best continuations of all beams, against a full sort in plain Python."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from minivllm.decoding import beam_candidates
from minivllm.decoding.beam_candidates import GROUP_SIZE, best_continuations
from minivllm.decoding.beam_search import Candidate

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


@st.composite
def tables(draw, dtypes=DTYPES):
    """Logits [num_beams, vocab_size] and scores; small whole numbers now and then, so that many are equal."""
    num_beams, vocab_size = draw(st.integers(1, 5)), draw(st.integers(1, 3 * GROUP_SIZE))
    torch.manual_seed(draw(st.integers(0, 10**6)))
    logits = torch.randn(num_beams, vocab_size, dtype=torch.float64) * 3
    scores = (-10 * torch.rand(num_beams, dtype=torch.float64)).tolist()
    if draw(st.booleans()):
        # Rows of the same numbers have sums of exponentials that are the same, and scores that tie.
        logits = logits[:1].div(3).round()[:, torch.randperm(vocab_size)].expand(num_beams, -1).contiguous()
        scores = [float(round(score)) for score in scores]
    return logits.to(draw(dtypes)), scores


def everything(logits, scores, temperature=0.0):
    """All continuations that are possible, best first, equal ones in the order of beams and tokens."""
    precise = logits.dtype if logits.dtype == torch.float64 else torch.float32
    logits = logits.to(precise)
    if temperature not in (0, 1):
        logits = logits / temperature
    table = logits.log_softmax(dim=-1) + torch.tensor(scores, dtype=precise).unsqueeze(1)
    found = [
        Candidate(beam, token, score)
        for beam, row in enumerate(table.tolist())
        for token, score in enumerate(row)
        if score > -math.inf
    ]
    return sorted(found, key=lambda candidate: -candidate.score)


@given(tables(), st.integers(1, 40))
def test_they_are_the_first_of_all_in_order_with_equals_by_beam_and_token(table, count):
    assert best_continuations(*table, count) == everything(*table)[:count]


@given(tables())
def test_as_many_as_there_are_can_be_had_and_no_more(table):
    logits = table[0]
    assert best_continuations(*table, logits.numel() + 7) == everything(*table)
    assert best_continuations(*table, logits.numel()) == everything(*table)


@given(tables(), st.integers(1, 40), st.sampled_from([1, 4, 16, 1000]))
def test_the_size_of_the_groups_makes_no_difference(table, count, size):
    expected = best_continuations(*table, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beam_candidates, "GROUP_SIZE", size)
        assert best_continuations(*table, count) == expected


@given(tables(), st.integers(1, 40), st.floats(0.05, 20))
def test_temperature_divides_the_logits_first(table, count, temperature):
    # Rounding may exchange those that are nearly equal, so only the scores are compared, each with its own.
    best = best_continuations(*table, count, temperature)
    expected = everything(*table, temperature)
    scores = [candidate.score for candidate in best]
    assert scores == pytest.approx([candidate.score for candidate in expected[:count]], rel=1e-4, abs=1e-4)
    own = {(candidate.beam, candidate.token_id): candidate.score for candidate in expected}
    assert scores == pytest.approx([own[beam, token] for beam, token, _ in best], rel=1e-4, abs=1e-4)


@given(tables())
def test_temperatures_0_and_1_are_the_models_own(table):
    assert best_continuations(*table, 9, 1.0) == best_continuations(*table, 9, 0.0) == everything(*table)[:9]


@given(tables(), st.sampled_from([1e-320, 1e-45, 1e-30]))
def test_a_temperature_near_0_leaves_each_beam_its_likeliest_token(table, temperature):
    logits, scores = table
    assume(all((row == row.max()).sum() == 1 for row in logits))
    best = best_continuations(logits, scores, len(scores), temperature)
    assert sorted((beam, token) for beam, token, _ in best) == list(enumerate(logits.argmax(dim=-1).tolist()))
    assert {beam: score for beam, _, score in best} == pytest.approx(dict(enumerate(scores)))


@given(tables(), st.data())
def test_what_is_impossible_is_no_continuation(table, data):
    logits, scores = table
    cells = st.tuples(st.integers(0, logits.shape[0] - 1), st.integers(0, logits.shape[1] - 1))
    banned = data.draw(st.sets(cells, max_size=30))
    for cell in banned:
        logits[cell] = -math.inf
    assume((logits > -math.inf).any(dim=-1).all())
    best = best_continuations(logits, scores, 40)
    assert best == everything(logits, scores)[:40]
    assert not banned.intersection((beam, token) for beam, token, _ in best)


@given(tables(), st.sampled_from([0.0, 0.7]), st.sampled_from([math.nan, math.inf]), st.data())
def test_a_row_without_probabilities_is_refused(table, temperature, bad, data):
    logits, scores = table
    row = data.draw(st.integers(0, logits.shape[0] - 1))
    logits[row, data.draw(st.integers(0, logits.shape[1] - 1))] = bad
    with pytest.raises(FloatingPointError, match=r"logits hold 1 (NaN|infinity) among"):
        best_continuations(logits, scores, 5, temperature)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_row_in_which_nothing_is_possible_is_refused(temperature):
    logits = torch.zeros(2, 300)
    logits[1] = -math.inf
    with pytest.raises(FloatingPointError):
        best_continuations(logits, [0.0, -1.0], 5, temperature)


@given(tables())
def test_the_logits_are_left_as_they_were(table):
    logits, scores = table
    before = logits.clone()
    best_continuations(logits, scores, 5)
    best_continuations(logits, scores, 5, 0.5)
    assert torch.equal(logits, before)


def test_half_precision_logits_are_summed_in_single_precision():
    logits = torch.zeros(1, 3, dtype=torch.bfloat16)
    assert best_continuations(logits, [-100.0], 1)[0].score == pytest.approx(-100 - math.log(3), abs=1e-4)
