"""Drafts for nothing: what followed the last time that a text ended as it ends now.

    … the cache of keys and values is paged. Why is the cache of keys
                                                    └──────┬────────┘   the last n tokens were there before:
          └──────┬────────┘ and values is paged                         what followed them there is the draft

The longest ending of at most `max_n` and at least `min_n` tokens counts, where it comes first in the text:
there is the most text behind it. Summaries, code and tables repeat themselves, and other text costs one
look-up.

An index keeps where each n-gram ended first, and learns each token once. `longest_match` finds the same
without an index, in one pass over the text from its end: the plain twin.

Source: Saxena, "Prompt Lookup Decoding" (2023); vLLM's `ngram_proposer.py`, which searches by the prefix
function of Knuth, Morris and Pratt. Read next: `verify_drafts.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

from minivllm.decoding.sampling_state import SamplingState
from minivllm.decoding.speculation.proposer import Completed
from minivllm.scheduling.plan import StepPlan
from minivllm.scheduling.request import NO_DRAFTS
from minivllm.scheduling.request import Sequence as TokenSequence

NOTHING_DRAWN: Mapping[int, Sequence[object]] = {}


class NgramProposer:
    """Proposes what followed the same n-gram before.

    Args:
        min_n, max_n: tokens that must be, and that are at most, compared.
    """

    draws_by_law = False

    def __init__(self, min_n: int, max_n: int) -> None:
        self.min_n = min_n
        self.max_n = max_n
        self._indexes: dict[int, NgramIndex] = {}

    def propose(self, sequence: TokenSequence, limit: int) -> array[int]:
        index = self._indexes.get(sequence.seq_id)
        if index is None or index.num_read > len(sequence.token_ids):
            index = self._indexes[sequence.seq_id] = NgramIndex(self.min_n, self.max_n)
        found = index.match(sequence.token_ids)
        return sequence.token_ids[found : found + limit] if found else NO_DRAFTS

    def complete(
        self, plan: StepPlan, sequences: Mapping[int, TokenSequence], states: Mapping[int, SamplingState]
    ) -> Completed:
        """Nothing is missing."""
        return Completed(plan, NOTHING_DRAWN)

    def forget_others(self, sequences: Mapping[int, TokenSequence]) -> None:
        """Drop the indexes of sequences that have ended."""
        if len(self._indexes) > 2 * len(sequences):
            self._indexes = {seq: index for seq, index in self._indexes.items() if seq in sequences}


class NgramIndex:
    """Where each n-gram of one growing text ended first.

    Attributes:
        num_read: n-grams that end within so many tokens are known.
    """

    __slots__ = ("_ends", "_lengths", "num_read")

    def __init__(self, min_n: int, max_n: int) -> None:
        self._lengths = range(max_n, min_n - 1, -1)
        self._ends: dict[bytes, int] = {}  # the lengths tell n-grams of different n apart
        self.num_read = 0

    def match(self, token_ids: array[int]) -> int:
        """The position behind the first occurrence of the text's longest known ending; 0 if there is none."""
        ends, last = self._ends, len(token_ids)
        for end in range(self.num_read + 1, last):
            for n in self._lengths:
                if n <= end:
                    ends.setdefault(token_ids[end - n : end].tobytes(), end)
        self.num_read = max(self.num_read, last - 1)
        for n in self._lengths:
            if n < last and (found := ends.get(token_ids[last - n :].tobytes())):
                return found
        return 0


def longest_match(token_ids: Sequence[int], min_n: int, max_n: int) -> int:
    """What `NgramIndex.match` says, by the prefix function of the reversed text: O(tokens)."""
    backwards = token_ids[::-1]
    prefix = [0] * max_n
    length = longest = place = 0
    at = 1
    while at < len(backwards):
        if backwards[length] == backwards[at]:
            length += 1
            if length >= longest:  # the later in the reversed text, the earlier in the text
                longest, place = length, at
            if at < max_n:
                prefix[at] = length
            if length == max_n:
                length = prefix[max_n - 1]
            at += 1
        elif length:
            length = prefix[length - 1]
        else:
            at += 1
    return len(token_ids) - 1 - place + longest if longest >= min_n else 0
