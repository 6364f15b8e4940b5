"""What the tests of structured output have in common: small vocabularies, and random walks."""

import random
from functools import cache
from heapq import heappop, heappush
from itertools import count

from minivllm.decoding.structured.compile import StructureCompiler, rules_of
from minivllm.decoding.structured.progress import Progress
from minivllm.decoding.structured.pushdown import Pushdown
from minivllm.decoding.structured.rules import make_rules
from minivllm.structured_outputs import StructuredOutputsParams

EOS = 0
PIECES = [
    '{"',
    '": ',
    '", "',
    "ab",
    "ba",
    "aab",
    "true",
    "}]",
    "10",
    "0]",
    "null",
    "é",
    "一",
    '"}',
    " a",
    "-1",
    "éab",
]


@cache
def compiler(pieces=tuple(PIECES), singles=bytes(range(256))):
    """A vocabulary of an EOS token without bytes, of all single bytes, and of some longer pieces."""
    tokens = [None, *(bytes([byte]) for byte in singles), *(piece.encode() for piece in pieces)]
    return StructureCompiler(lambda: tokens, len(tokens))


def structure(using=None, **asked):
    return (using or compiler()).compile(StructuredOutputsParams(**asked), (EOS,))


def allowed(progress):
    return [token for token, is_struck in enumerate(progress.mask().struck_out) if not is_struck]


def walk(made, seed, most=60, hurry=30):
    """A random output: `(bytes, is it complete)`. After `hurry` tokens it takes endings, and short ways."""
    rng = random.Random(seed)
    progress, data = Progress(made), b""
    known = made.masks.vocabulary.token_bytes
    for made_so_far in range(most):
        tokens = allowed(progress)
        assert tokens, f"nothing is allowed after {data!r}"
        assert (EOS in tokens) == progress.may_end
        if EOS in tokens and (made_so_far >= hurry or rng.random() < 0.3):
            return data, True
        token = rng.choice([token for token in tokens if token != EOS])
        progress.append(token)
        data += known[token]
        if progress.is_over:
            assert progress.may_end
            return data, True
    return data, False


def complete(made, data):
    """Bytes with which a beginning becomes a whole text: states with short stacks are tried first.

    By length alone there would be too many: a value that may be anything has millions of beginnings that are
    shorter than what the rest of its object must have.
    """
    pushdown = made.pushdown
    state = pushdown.read(pushdown.start, data)
    assert state is not None, data
    order = count()
    seen, waiting = {state}, [(0, 0, next(order), state, b"")]
    while waiting:
        *_, state, added = heappop(waiting)
        if state.has_empty:
            return data + added
        for byte in {byte for node in state.branches for byte in node.steps}:
            reached = pushdown.advance(state, byte)
            if reached is not None and reached not in seen:
                seen.add(reached)
                longer = added + bytes([byte])
                heappush(waiting, (reached.depth, len(longer), next(order), reached, longer))
    raise AssertionError(f"{data!r} cannot be completed")


def accepts(pushdown, data):
    """Does the whole text fit?"""
    state = pushdown.read(pushdown.start, data)
    return state is not None and state.has_empty


def pushdown_of(**asked):
    return Pushdown(make_rules(rules_of(StructuredOutputsParams(**asked)), "root"))
