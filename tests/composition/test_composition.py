"""Features compose: what `docs/composition.md` says of two of them is what happens."""

import random

import pytest

from tests import profiles
from tests.composition.features import FEATURES, digest
from tests.composition.make_table import PAGE, words_of_page
from tests.composition.pairs import PAIRS, try_pair

BY_DAY = 5


def test_the_page_is_made_from_these_features():
    assert digest() in PAGE.read_text(encoding="utf-8"), (
        "python -m tests.composition.make_table > docs/composition.md"
    )
    names = [feature.name for feature in FEATURES]
    assert len(names) == len({*names}), "a name stands for one feature"
    found = words_of_page()
    assert found.keys() == {(a, b) for a in names for b in names}
    assert all(found[a.name, b.name] == found[b.name, a.name] for a, b in PAIRS)
    assert {found[a.name, b.name] for a, b in PAIRS} == {"same", "waits", "law", "refused", "either"}


def chosen():
    """By day a sample, another one after each change of the features; all of them every night."""
    found = words_of_page()
    worth_it = [pair for pair in PAIRS if found[pair[0].name, pair[1].name] != "either"]
    return PAIRS if profiles.is_night() else random.Random(digest()).sample(worth_it, BY_DAY)


def test_pairs_do_what_the_page_says():
    found = words_of_page()
    for first, second in chosen():
        assert try_pair(first, second) == found[first.name, second.name], (first.name, second.name)


def test_a_fault_is_caught(monkeypatch):
    """A sampler that remembers what it drew for the request before."""
    from minivllm.decoding.sampling_state import SamplingState

    stream = random.Random(1)
    monkeypatch.setattr(SamplingState, "next_uniform", lambda self: stream.random())
    by_name = {feature.name: feature for feature in FEATURES}
    with pytest.raises(AssertionError):
        try_pair(by_name["n > 1"], by_name["log-probabilities"])
