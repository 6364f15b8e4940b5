"""The real sampler with drafts: what comes out has the law of the sampler without them."""

import numpy as np
import pytest
import torch

from minivllm.decoding.finite_logits import NotFiniteError
from minivllm.decoding.sampler import Sampler
from minivllm.decoding.sampling_state import SamplingState
from minivllm.decoding.speculation.rejection import draw
from minivllm.decoding.speculation.verify_drafts import Drafted, sample_drafted
from minivllm.sampling_params import SamplingParams
from minivllm.scheduling.request import Sequence

VOCABULARY, PROMPT = 12, [1, 2, 3]
GENTLE = {"temperature": 0.8, "repetition_penalty": 1.3, "presence_penalty": 0.4}
CASES = [{}, GENTLE, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 6, "top_p": 0.8}]
sampler = Sampler(VOCABULARY)


def logits_of(name, text):
    """A row of logits of the target, or of the draft model, which is not quite the same."""
    generator = torch.Generator().manual_seed(sum(7**place * (token + 1) for place, token in enumerate(text)))
    own, other = torch.randn(2, VOCABULARY, generator=generator)
    return 2 * own if name == "target" else 2 * own + other


def state_of(seed, more):
    return SamplingState(SamplingParams(seed=seed, **{"temperature": 1.0} | more), Sequence(0, PROMPT))


def step(state, k, by_law=True):
    """Tokens of one step with k drafts, drawn as a draft model draws them."""
    drafts, laws = [], []
    for _ in range(k):
        ahead = state.ahead(drafts)
        (law,) = sampler.laws(logits_of("draft", drafts)[None], [ahead])
        drafts.append(draw(law, ahead.next_draft_uniforms()[0]) if by_law else int(law.argmax()))
        laws.append(law)
    rows = torch.stack([logits_of("target", drafts[:count]) for count in range(k + 1)])
    ((*answer,),) = sample_drafted([Drafted(0, state, drafts, laws if by_law else None)], rows, sampler)
    return [token.token_id for token, _ in answer]


def expected_law(text, more):
    state = state_of(0, more).ahead(text)
    return sampler.laws(logits_of("target", text)[None], [state])[0]


@pytest.mark.parametrize("more", [{}, GENTLE | {"top_k": 6, "top_p": 0.9}], ids=str)
def test_tokens_of_many_seeds_have_the_samplers_law(more):
    told = [step(state_of(seed, more), 2) for seed in range(800)]
    firsts = [tokens[0] for tokens in told if len(tokens) > 1]
    for text in ([], [max(set(firsts), key=firsts.count)]):
        after = [t[len(text)] for t in told if t[: len(text)] == text and len(t) > len(text)]
        check_law(np.bincount(after, minlength=VOCABULARY), expected_law(text, more))


def check_law(counts, law):
    """χ² of these counts is no larger than once in a thousand times; rare tokens are counted together."""
    assert not counts[law == 0].any(), "what was cut is never drawn"
    expected = law * counts.sum()
    assert counts.sum() > 80
    rare = expected < 5
    pairs = [*zip(counts[~rare], expected[~rare], strict=True), (counts[rare].sum(), expected[rare].sum())]
    chi_squared = sum((seen - wanted) ** 2 / wanted for seen, wanted in pairs if wanted)
    freedom = sum(wanted > 0 for _, wanted in pairs) - 1
    # Wilson and Hilferty's approximation of the quantile.
    assert chi_squared < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3


def test_drafts_that_are_tokens_change_no_token_of_any_seed():
    for seed in range(50):
        plain = []
        while len(plain) < 3:
            (token,) = sampler.sample(logits_of("target", plain)[None], [state_of(seed, GENTLE).ahead(plain)])
            plain.append(token.token_id)
        told = step(state_of(seed, GENTLE), 2, by_law=False)
        assert told == plain[: len(told)]


def test_laws_are_what_is_drawn_from():
    logits = torch.stack([logits_of("target", [row]) for row in range(len(CASES))])
    states = [state_of(3, more) for more in CASES]
    for law, token, state in zip(
        sampler.laws(logits, states), sampler.sample(logits, states), states, strict=True
    ):
        assert law.sum() == pytest.approx(1) and draw(law, state.next_uniform()) == token.token_id


def test_a_row_of_no_numbers_behind_a_rejected_draft_harms_nobody():
    greedy = SamplingState(SamplingParams(temperature=0), Sequence(0, PROMPT))
    rows = torch.zeros(3, VOCABULARY)
    rows[0, 4] = 1
    rows[2] = torch.nan
    for drafts in ([5, 6], [4, 6]):
        ((*answer,),) = sample_drafted([Drafted(0, greedy, drafts)], rows, sampler)
        assert [token.token_id for token, _ in answer] == ([4] if drafts[0] == 5 else [4, 0])
    rows[0] = torch.nan
    with pytest.raises(NotFiniteError) as caught:
        sample_drafted([Drafted(0, greedy, [4, 6])], rows, sampler)
    assert list(caught.value.found) == [0]
    law = np.full(VOCABULARY, 1 / VOCABULARY)
    with pytest.raises(NotFiniteError):
        sample_drafted([Drafted(0, state_of(0, {}), [4, 6], [law, law])], rows, sampler)
