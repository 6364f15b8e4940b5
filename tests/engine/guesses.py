"""A proposer for the fake model that is right now and then, and knows some drafts only later."""

from array import array
from random import Random

import msgspec

from minivllm.decoding.speculation.proposer import UNKNOWN, Completed
from minivllm.engine.speculation import Speculation
from tests.engine.fakes import VOCAB_SIZE, next_token


class Guesser:
    """Right as often as `accuracy` says. Drafts that are `is_late` are known only when there is a plan."""

    draws_by_law = False

    def __init__(self, seed=0, accuracy=0.7, is_late=False):
        self.random, self.accuracy, self.is_late = Random(seed), accuracy, is_late
        self.num_proposed = 0

    def guesses(self, tokens, count):
        guesses = []
        for _ in range(count):
            off = 0 if self.random.random() < self.accuracy else self.random.randrange(1, VOCAB_SIZE)
            guesses.append((next_token([*tokens, *guesses]) + off) % VOCAB_SIZE)
        return array("i", guesses)

    def propose(self, sequence, limit):
        assert limit > 0
        count = self.random.randint(0, limit)
        self.num_proposed += count
        return array("i", [UNKNOWN] * count) if self.is_late else self.guesses(sequence.token_ids, count)

    def complete(self, plan, sequences, states):
        if not self.is_late:
            return Completed(plan, {})
        items = []
        for item in plan.scheduled:
            if count := item.num_draft_tokens:
                assert item.seq_id in states
                assert item.token_ids[-count:].tolist() == [UNKNOWN] * count
                known = item.token_ids[:-count]
                item = msgspec.structs.replace(
                    item, token_ids=known + self.guesses(sequences[item.seq_id].token_ids, count)
                )
            items.append(item)
        return Completed(msgspec.structs.replace(plan, scheduled=tuple(items)), {})

    def forget_others(self, sequences):
        pass


def guessing(seed=0, num_tokens=3, max_sequences=None, length=None, **how):
    """A `Speculation` for `make_engine`."""
    return Speculation(Guesser(seed, **how), num_tokens, max_sequences, length)
