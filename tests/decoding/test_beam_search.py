"""Beam search over tables of random numbers, against brute force; over real models, against transformers."""

import math
import random
from functools import cache
from itertools import pairwise, product
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers import logging as transformers_logging

from minivllm.decoding.beam_candidates import best_continuations
from minivllm.decoding.beam_search import Candidate, Hypothesis
from minivllm.model.tiny import MODEL_PATH
from tests.decoding.beams import BeamSearch

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

PENALTIES = [-1.0, 0.0, 0.5, 1.0, 2.0]
EARLY_STOPPING = [False, True, "never"]


class TableModel:
    """Log-probabilities that depend on the whole text before, and on nothing but it and the seed."""

    def __init__(self, vocab_size, seed, spread=2.0):
        self.vocab_size, self.seed, self.spread = vocab_size, seed, spread
        self.row = cache(self._row)

    def _row(self, prefix):
        rng = random.Random(repr((self.seed, prefix)))
        logits = [rng.gauss(0, self.spread) for _ in range(self.vocab_size)]
        total = math.log(math.fsum(map(math.exp, logits)))
        return [min(0.0, logit - total) for logit in logits]

    def score(self, tokens):
        return math.fsum(self.row(tokens[:at])[token] for at, token in enumerate(tokens))

    def candidates(self, search):
        """All continuations of the running beams, best first, cut to those that the search asks for."""
        found = [
            Candidate(beam, token, score + logprob)
            for beam, (prefix, score) in enumerate(zip(search.beams, search.scores, strict=True))
            for token, logprob in enumerate(self.row(prefix))
        ]
        return sorted(found, key=lambda candidate: -candidate.score)[: search.num_candidates]

    def run(self, search):
        while not search.is_done:
            search.advance(self.candidates(search))
        return search.best()


def random_settings(rng, endings):
    return dict(
        beam_width=rng.randint(1, 8),
        max_tokens=rng.randint(1, 12),
        eos_token_ids=set(endings),
        length_penalty=rng.choice(PENALTIES),
    )


def random_case(seed):
    rng = random.Random(seed)
    vocab_size = rng.choice([1, 2, 3, 5, 9, 16])
    model = TableModel(vocab_size, seed, rng.choice([0.3, 1.0, 3.0]))
    endings = rng.sample(range(vocab_size + 1), rng.randint(0, min(3, vocab_size)))
    settings = random_settings(rng, endings)
    return SimpleNamespace(
        model=model, settings=settings, early_stopping=rng.choice(EARLY_STOPPING), **settings
    )


# Seeds, because Hypothesis prefers numbers so small that no early stop decides anything.
seeds = st.integers(0, 2**32)
cases = seeds.map(random_case)


def new_search(case, **changes):
    return BeamSearch(**{**case.settings, "early_stopping": case.early_stopping, **changes})


@given(cases)
def test_each_step_keeps_and_finishes_what_the_rules_say(case):
    search, eos = new_search(case), case.eos_token_ids
    assert search.scores == [0.0] and search.beams == [()] and search.best() == []
    for length in range(1, case.max_tokens + 1):
        candidates, beams, scores = case.model.candidates(search), search.beams, search.scores
        kept, finished, rejected = search.advance(candidates)
        ended = [candidate for candidate, _ in finished]
        assert sorted(kept + ended + rejected) == sorted(candidates), "each candidate is in one list"
        assert all(worse.score <= better.score for better, worse in pairwise(rejected))
        is_last = length == case.max_tokens
        going_on = [] if is_last else [c for c in candidates if c.token_id not in eos]
        assert kept == ([] if search.is_done else going_on[: case.beam_width])
        assert search.scores == [candidate.score for candidate in kept]
        assert search.beams == [(*beams[candidate.beam], candidate.token_id) for candidate in kept]
        assert all(candidate.score <= scores[candidate.beam] for candidate in kept)
        best = [(hypothesis.token_ids, hypothesis.score) for hypothesis in search.best()]
        for candidate, score in finished:
            assert candidate in candidates[: case.beam_width]
            assert candidate.token_id in eos or is_last
            assert score == pytest.approx(candidate.score / length**case.length_penalty)
            assert ((*beams[candidate.beam], candidate.token_id), score) in best
        if search.is_done:
            break
    assert search.is_done and search.scores == [] == search.beams


@given(cases)
def test_hypotheses_are_whole_distinct_and_in_order(case):
    search = new_search(case)
    before: list[Hypothesis] = []
    while not search.is_done:
        search.advance(case.model.candidates(search))
        best = search.best()
        assert len(best) >= len(before), "a place once taken is not given up"
        assert all(new.score >= old.score for new, old in zip(best, before, strict=False))
        before = best
    assert 1 <= len(best) <= case.beam_width
    assert all(better.score >= worse.score for better, worse in pairwise(best))
    assert len({hypothesis.token_ids for hypothesis in best}) == len(best)
    for tokens, cum_logprob, score, reason, stop_token in best:
        assert 1 <= len(tokens) <= case.max_tokens
        assert not case.eos_token_ids.intersection(tokens[:-1])
        assert cum_logprob == pytest.approx(case.model.score(tokens))
        assert score == pytest.approx(cum_logprob / len(tokens) ** case.length_penalty)
        if tokens[-1] in case.eos_token_ids:
            assert (reason, stop_token) == ("stop", tokens[-1])
        else:
            assert (reason, stop_token) == ("length", None) and len(tokens) == case.max_tokens
    for count in range(case.beam_width + 2):
        assert search.best(count) == best[:count]


def everything(model, eos, max_tokens, length_penalty):
    """The scores of all that can be said in up to `max_tokens` tokens, best first."""
    scores = {}
    for length in range(1, max_tokens + 1):
        for tokens in product(range(model.vocab_size), repeat=length):
            ended = tokens[-1] in eos or length == max_tokens
            if ended and not eos.intersection(tokens[:-1]):
                scores[tokens] = model.score(tokens) / length**length_penalty
    return sorted(scores.items(), key=lambda item: -item[1])


@given(
    vocab_and_length=st.sampled_from(
        [(1, 3), (2, 1), (2, 2), (2, 5), (3, 2), (3, 3), (4, 2), (5, 1), (5, 2)]
    ),
    seed=st.integers(0, 10**6),
    eos=st.sets(st.integers(0, 5), max_size=2),
    length_penalty=st.sampled_from(PENALTIES),
    early_stopping=st.sampled_from(EARLY_STOPPING),
    data=st.data(),
)
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all(
    vocab_and_length, seed, eos, length_penalty, early_stopping, data
):
    vocab_size, max_tokens = vocab_and_length
    model = TableModel(vocab_size, seed)
    expected = everything(model, eos, max_tokens, length_penalty)
    # With two tokens, one beam for each word of the vocabulary holds the whole tree already.
    widest = vocab_size**max_tokens
    width = data.draw(st.sampled_from([vocab_size, widest] if max_tokens <= 2 else [widest]))
    search = BeamSearch(
        width,
        max_tokens=max_tokens,
        eos_token_ids=eos,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    found = model.run(search)
    assert [hypothesis.token_ids for hypothesis in found] == [tokens for tokens, _ in expected[:width]]
    assert [hypothesis.score for hypothesis in found] == pytest.approx(
        [score for _, score in expected[:width]]
    )


@given(cases)
def test_a_stricter_rule_never_takes_more_steps(case):
    steps = []
    for early_stopping in (True, False, "never"):
        search = new_search(case, early_stopping=early_stopping)
        steps.append(0)
        while not search.is_done:
            search.advance(case.model.candidates(search))
            steps[-1] += 1
    assert steps == sorted(steps)
    if case.length_penalty <= 0:
        assert steps[1] == steps[2], "both assume the length that is reached"


@given(cases)
def test_never_misses_nothing_that_going_on_to_the_end_would_find(case):
    class Tireless(BeamSearch):
        def _may_stop(self, best_running, length):
            return False

    tireless = Tireless(**case.settings, early_stopping="never")
    assert case.model.run(new_search(case, early_stopping="never")) == case.model.run(tireless)


@given(seed=st.integers(0, 10**6), vocab_size=st.integers(2, 9), max_tokens=st.integers(1, 8))
def test_one_beam_without_an_ending_is_greedy(seed, vocab_size, max_tokens):
    model = TableModel(vocab_size, seed)
    tokens = ()
    for _ in range(max_tokens):
        row = model.row(tokens)
        tokens = (*tokens, row.index(max(row)))
    (hypothesis,) = model.run(BeamSearch(1, max_tokens=max_tokens))
    assert hypothesis.token_ids == tokens


def test_of_equals_the_first_stays_first():
    search = BeamSearch(2, max_tokens=3, eos_token_ids=[0], length_penalty=0)
    step = search.advance([Candidate(0, token, -1.0) for token in (0, 1, 2, 3)])
    assert step == ([(0, 1, -1.0), (0, 2, -1.0)], [((0, 0, -1.0), -1.0)], [(0, 3, -1.0)])
    step = search.advance([Candidate(0, 0, -1.0), Candidate(1, 0, -1.0), Candidate(1, 5, -1.0)])
    assert step.finished == [(Candidate(0, 0, -1.0), -1.0)], "the third to end finds both places taken"
    assert search.is_done, "the best that runs on can be as good, but not better"
    assert [hypothesis.token_ids for hypothesis in search.best()] == [(0,), (1, 0)]


def test_an_ending_outside_the_width_is_dropped_and_not_followed():
    search = BeamSearch(1, max_tokens=5, eos_token_ids=[0])
    step = search.advance([Candidate(0, 1, -1.0), Candidate(0, 0, -1.1)])
    assert step == ([(0, 1, -1.0)], [], [(0, 0, -1.1)])


@pytest.mark.parametrize(("early_stopping", "stops"), [(True, True), (False, False), ("never", False)])
def test_only_a_better_place_than_the_worst_finished_one_is_worth_going_on(early_stopping, stops):
    search = BeamSearch(2, max_tokens=9, eos_token_ids=[0], early_stopping=early_stopping)
    search.advance([Candidate(0, 1, -0.5), Candidate(0, 0, -2.0), Candidate(0, 2, -3.0)])
    assert not search.is_done, "one place is free"
    search.advance([Candidate(0, 0, -1.0), Candidate(0, 1, -1.5), Candidate(1, 0, -4.0)])
    assert [hypothesis.score for hypothesis in search.best()] == [-0.5, -2.0]
    # The best that runs on, −1.5 / 2, does not beat the first, but the second.
    assert search.is_done == stops


@pytest.mark.parametrize(
    ("early_stopping", "length_penalty", "stops"),
    [
        (True, 2.0, True),
        (False, 2.0, True),
        ("never", 2.0, False),
        ("never", 0.5, False),
        ("never", -1.0, True),
    ],
)
def test_never_assumes_the_length_that_suits_the_running_beam_best(early_stopping, length_penalty, stops):
    search = BeamSearch(
        1, max_tokens=9, eos_token_ids=[0], length_penalty=length_penalty, early_stopping=early_stopping
    )
    search.advance([Candidate(0, 0, -1.0), Candidate(0, 1, -2.0)])
    assert search.is_done == stops, "-2 / 9 ** 0.5 would beat -1, but -2 * 9 would not"
    if not stops:
        search.advance([Candidate(0, 1, -82.0)])
        assert search.is_done, "now nothing can beat it"


def test_a_vocabulary_of_nothing_but_endings_is_done_after_one_token():
    search = BeamSearch(3, max_tokens=5, eos_token_ids=[0, 1])
    search.advance([Candidate(0, 1, -0.2), Candidate(0, 0, -1.7)])
    assert search.is_done and [hypothesis.token_ids for hypothesis in search.best()] == [(1,), (0,)]


@pytest.mark.parametrize(
    ("num_eos", "expected"), [(0, 8), (1, 8), (2, 12), (7, 32)], ids=lambda value: str(value)
)
def test_there_are_enough_candidates_for_every_ending_and_every_beam(num_eos, expected):
    assert BeamSearch(4, max_tokens=1, eos_token_ids=range(num_eos)).num_candidates == expected


# Hugging Face transformers as the oracle. It computes scores in float32, whatever the model computes in.


@cache
def random_llama(vocab_size, seed):
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).double().eval()


@cache
def shipped_model():
    return AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float64).eval()


def their_search(model, prompt, beam_width, eos_token_ids, max_tokens, length_penalty, early_stopping):
    """`[(generated tokens, score)]` of transformers, best first."""
    given = torch.tensor([prompt])
    # `generate` with one beam is its greedy search; what runs behind more is asked for by name then.
    by_name = {"custom_generate": type(model)._beam_search} if beam_width == 1 else {}
    result = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        num_beams=beam_width,
        num_return_sequences=beam_width,
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=list(eos_token_ids) or None,
        pad_token_id=0,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        return_dict_in_generate=True,
        output_scores=True,
        **by_name,
    )
    lengths = (result.beam_indices >= 0).sum(dim=1).tolist()
    rows = zip(result.sequences.tolist(), lengths, result.sequences_scores.tolist(), strict=True)
    return [(tuple(row[len(prompt) : len(prompt) + length]), score) for row, length, score in rows]


@torch.inference_mode()
def our_search(model, prompt, beam_width, eos_token_ids, max_tokens, length_penalty, early_stopping):
    """The same of ours, and the smallest difference of scores that anything was decided by."""
    search = BeamSearch(
        beam_width,
        max_tokens=max_tokens,
        eos_token_ids=eos_token_ids,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    closest = math.inf
    while not search.is_done:
        texts = torch.tensor([[*prompt, *beam] for beam in search.beams])
        logits = model(texts, use_cache=False).logits[:, -1].float()
        candidates = best_continuations(logits, search.scores, search.num_candidates)
        search.advance(candidates)
        for rivals in (candidates, [c for c in candidates if c.token_id not in eos_token_ids]):
            gaps = (better.score - worse.score for better, worse in pairwise(rivals[: beam_width + 1]))
            closest = min([closest, *gaps])
    best = [(hypothesis.token_ids, hypothesis.score) for hypothesis in search.best()]
    return best, min([closest, *(a[1] - b[1] for a, b in pairwise(best))])


def assert_same(model, prompt, **search):
    expected = their_search(model, prompt, **search)
    found, closest = our_search(model, prompt, **search)
    # Which beams go on is chance where float32 cannot tell them apart: transformers has no order of its own.
    assume(closest > 1e-5)
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=1e-5)


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@given(seeds)
def test_sequences_and_scores_are_those_of_transformers(early_stopping, seed):
    rng = random.Random(seed)
    vocab_size = rng.choice([24, 97])
    model = random_llama(vocab_size, rng.randrange(4))
    prompt = [rng.randrange(vocab_size) for _ in range(rng.randint(1, 8))]
    # One ending of a random model is hardly ever reached; several make penalty and early stop matter.
    endings = rng.sample(range(vocab_size), rng.choice([0, 1, vocab_size // 8, vocab_size // 4]))
    assert_same(model, prompt, early_stopping=early_stopping, **random_settings(rng, endings))


@settings(max_examples=max(5, settings.default.max_examples // 4))
@given(seeds)
def test_the_shipped_model_searches_as_with_transformers(seed):
    rng = random.Random(seed)
    prompt = [1, *(rng.randrange(3, 4096) for _ in range(rng.randint(0, 8)))]
    endings = rng.choice([[2], range(0, 4096, 8)])
    early_stopping = rng.choice(EARLY_STOPPING)
    assert_same(shipped_model(), prompt, early_stopping=early_stopping, **random_settings(rng, endings))


@given(prompt=st.lists(st.integers(0, 23), min_size=1, max_size=6), eos=st.integers(0, 23))
def test_one_beam_ends_where_greedy_search_ends(prompt, eos):
    model = random_llama(24, 0)
    given = torch.tensor([prompt])
    greedy = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=eos,
        pad_token_id=0,
    )
    ((tokens, _),), _ = our_search(model, prompt, 1, [eos], 12, 1.0, False)
    assert tokens == tuple(greedy[0, len(prompt) :].tolist())
