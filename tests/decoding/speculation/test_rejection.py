"""The rule that accepts drafts, tried exactly: every outcome with its chance, in fractions."""

import inspect
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.decoding.speculation import rejection

VOCABULARY = 3


@st.composite
def laws(draw):
    """A law of the next token, some of its tokens perhaps impossible."""
    weights = draw(st.lists(st.integers(0, 5), min_size=VOCABULARY, max_size=VOCABULARY).filter(any))
    return np.array([Fraction(weight, sum(weights)) for weight in weights], dtype=object)


@st.composite
def pairs(draw):
    """Target and draft: a law of the next token after every text of fewer than k + 1 tokens, and k."""
    k = draw(st.integers(1, 2))
    texts = [text for length in range(k + 1) for text in product(range(VOCABULARY), repeat=length)]
    return k, {text: draw(laws()) for text in texts}, {text: draw(laws()) for text in texts}


def pieces(*cuts):
    """A point of each interval between the cuts of [0, 1), and the interval's length."""
    edges = sorted({Fraction(0), Fraction(1), *(Fraction(cut) for cut in cuts if 0 < cut < 1)})
    return [((low + high) / 2, high - low) for low, high in pairwise(edges)]


def uniforms_of(p, q, draft):
    """All that two random numbers can decide at one position, with the chances."""
    accepts = pieces(min(1, p[draft] / q[draft])) if q is not None and draft is not None else pieces()
    rest = np.maximum(p - q, 0) if q is not None else p
    shares = [*np.cumsum(p), *np.cumsum(rest)] + ([*np.cumsum(rest) / rest.sum()] if rest.any() else [])
    for (accept, one), (drawn, other) in product(accepts, pieces(*shares)):
        yield rejection.Uniforms(accept, drawn), one * other


def outcomes(verify, k, target, drafts, draft_laws):
    """Every list of tokens that a step can give for these drafts, and its chance."""
    target_laws = [target[drafts[:place]] for place in range(k + 1)]
    places = [*zip(target_laws, [*draft_laws, None], [*drafts, None], strict=True)]
    for choice in product(*(tuple(uniforms_of(*place)) for place in places)):
        chance = Fraction(1)
        for _, part in choice:
            chance *= part
        yield verify(drafts, target_laws, draft_laws, [uniforms for uniforms, _ in choice]), chance


def law_of_steps(verify, k, target, draft):
    """List of tokens → its chance, over all drafts that the draft model may propose."""
    chances = {}
    for drafts in product(range(VOCABULARY), repeat=k):
        draft_laws = [draft[drafts[:place]] for place in range(k)]
        proposed = Fraction(1)
        for law, token in zip(draft_laws, drafts, strict=True):
            proposed *= law[token]
        if not proposed:
            continue
        for tokens, chance in outcomes(verify, k, target, drafts, draft_laws):
            assert 1 <= len(tokens) <= k + 1
            assert tuple(tokens) != drafts, "all drafts are accepted, and there is one token more"
            chances[tuple(tokens)] = chances.get(tuple(tokens), 0) + proposed * chance
    return chances


def check_law(chances, target):
    """After each beginning, the next token has the target's law."""
    assert sum(chances.values()) == 1
    for prefix in {tokens[:length] for tokens in chances for length in range(len(tokens))}:
        going_on = {t: c for t, c in chances.items() if t[: len(prefix)] == prefix and len(t) > len(prefix)}
        total = sum(going_on.values())
        for token in range(VOCABULARY):
            own = sum(c for tokens, c in going_on.items() if tokens[len(prefix)] == token)
            assert own == total * target[prefix][token], (prefix, token)


@settings(max_examples=15)
@given(pairs())
def test_the_next_token_has_the_targets_law_whatever_the_draft_is(pair):
    k, target, draft = pair
    check_law(law_of_steps(rejection.verify, k, target, draft), target)


@settings(max_examples=15)
@given(pairs(), st.data())
def test_so_it_has_for_drafts_that_are_no_laws_but_tokens(pair, data):
    k, target, _ = pair
    drafts = tuple(data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=k, max_size=k)))
    chances = {}
    for tokens, chance in outcomes(rejection.verify, k, target, drafts, [None] * k):
        chances[tuple(tokens)] = chances.get(tuple(tokens), 0) + chance
    check_law(chances, target)


@given(pairs(), st.data())
def test_a_draft_that_is_a_token_changes_no_draw(pair, data):
    k, target, _ = pair
    drafts = tuple(data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=k, max_size=k)))
    numbers = data.draw(st.lists(st.fractions(0, Fraction(999, 1000)), min_size=k + 1, max_size=k + 1))
    target_laws = [target[drafts[:place]] for place in range(k + 1)]
    tokens = rejection.verify(
        drafts, target_laws, [None] * k, [rejection.Uniforms(0, number) for number in numbers]
    )
    plain = ()
    for number in numbers[: len(tokens)]:
        plain = (*plain, rejection.draw(target[plain], number))
    assert tuple(tokens) == plain


FAULTS = {
    "accepted only if the target is likelier": (
        "uniform.accept * q[draft] < p[draft]",
        "q[draft] <= p[draft]",
    ),
    "drawn anew from p": ("p if q is None else residual(p, q)", "p"),
    "the token behind the drafts is lost": (
        "tokens.append(draw(target_laws[len(drafts)], uniforms[len(drafts)].draw))",
        "pass",
    ),
    "not normalised": ("uniform * total", "uniform"),
    "the law of another position": ("target_laws, draft_laws,", "target_laws, draft_laws[::-1],"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_rule_with_a_fault_is_caught(fault):
    old, new = FAULTS[fault]
    source = inspect.getsource(rejection)
    assert source.count(old) == 1
    wrong = {"__name__": "wrong"}
    exec(source.replace(old, new), wrong)
    p = np.array([Fraction(3, 6), Fraction(2, 6), Fraction(1, 6)], dtype=object)
    others = np.array([Fraction(1, 3)] * 3, dtype=object), np.array([Fraction(n, 6) for n in (0, 1, 5)])
    texts = [text for length in range(3) for text in product(range(VOCABULARY), repeat=length)]
    draft = {text: others[len(text) % 2] for text in texts}
    with pytest.raises(AssertionError):
        check_law(law_of_steps(wrong["verify"], 2, dict.fromkeys(texts, p), draft), dict.fromkeys(texts, p))


def test_rounding_cannot_draw_what_is_impossible():
    weights = np.array([0.1] * 10 + [0.0])
    assert rejection.draw(weights, np.nextafter(1.0, 0)) == 9
    same = np.array([0.5, 0.5])
    assert np.array_equal(rejection.residual(same, same), same)
