"""N-gram drafts: the index finds what one pass over the whole text finds, and both what a reader would."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from minivllm.decoding.speculation.ngram import NgramIndex, NgramProposer, longest_match
from minivllm.scheduling.request import Sequence

texts = st.lists(st.integers(0, 2), min_size=1, max_size=40)
sizes = st.tuples(st.integers(1, 5), st.integers(0, 4)).map(lambda pair: (pair[0], sum(pair)))


def naive(tokens, min_n, max_n):
    """The longest ending that came before, at its first place: by looking everywhere."""
    for n in range(min(max_n, len(tokens) - 1), min_n - 1, -1):
        for end in range(n, len(tokens)):
            if tokens[end - n : end] == tokens[-n:]:
                return end
    return 0


@given(texts, sizes)
def test_one_pass_finds_what_looking_everywhere_finds(tokens, sizes):
    assert longest_match(tokens, *sizes) == naive(tokens, *sizes)


@given(texts, sizes, st.data())
def test_an_index_of_a_growing_text_finds_the_same(tokens, sizes, data):
    index, length = NgramIndex(*sizes), 0
    while length < len(tokens):
        length += data.draw(st.integers(1, len(tokens) - length))
        assert index.match(array("i", tokens[:length])) == longest_match(tokens[:length], *sizes)


@given(texts, sizes, st.integers(1, 4))
def test_drafts_are_what_followed(tokens, sizes, limit):
    proposer = NgramProposer(*sizes)
    place = longest_match(tokens, *sizes)
    expected = tokens[place : place + limit] if place else []
    assert proposer.propose(Sequence(0, tokens), limit).tolist() == expected


def test_a_sequence_that_began_anew_gets_an_index_of_its_own():
    proposer = NgramProposer(1, 1)
    assert proposer.propose(Sequence(0, [1, 2, 3, 1]), 4).tolist() == [2, 3, 1]
    assert proposer.propose(Sequence(0, [5, 1]), 4).tolist() == []
    proposer.forget_others({})
    assert not proposer._indexes
