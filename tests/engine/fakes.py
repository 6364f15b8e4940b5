"""A model without a model: it stores token ids in the slots of a paged cache and reads them back.

The next token is a hash of everything that the block table leads to. So if any block is mixed up, lost,
written late, or shared by mistake, the very next token is wrong: the cheapest oracle there is for paging.
"""

import numpy as np

from minivllm.config import SchedulerConfig
from minivllm.decoding.sampler import SampledToken
from minivllm.engine import Engine

VOCAB_SIZE = 97


def next_token(tokens) -> int:
    """What the fake model says after `tokens`."""
    state = 7
    for token in tokens:
        state = (state * 1_000_003 + int(token) + 1) % 2_147_483_647
    return state % VOCAB_SIZE


def expected_output(prompt, count) -> list[int]:
    """What a request gives when it is alone and nothing is paged."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class FakeExecutor:
    """Paged memory of token ids; poison (-1) where nobody has written."""

    last_attention_seconds = 0.0

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.cells = np.full((num_blocks, block_size), -1)
        self.block_size = block_size
        self.fail_next = False

    def execute(self, plan):
        if self.fail_next:  # before anything is written, so that a step counted as done is found out
            self.fail_next = False
            raise RuntimeError("the fake device failed")
        for item in plan.scheduled:
            for offset, token in enumerate(item.token_ids):
                block, place = divmod(item.start + offset, self.block_size)
                self.cells[item.block_table[block], place] = token
        rows = []
        for item in plan.scheduled:
            context = self.cells[np.asarray(item.block_table)].reshape(-1)[: item.end]
            assert (context >= 0).all(), "a slot is read that was never written"
            for end in range(item.end - item.num_logits + 1, item.end + 1):
                rows.append(next_token(context[:end]))
        return np.eye(VOCAB_SIZE)[rows] if rows else np.zeros((0, VOCAB_SIZE))


class FakeSampler:
    """Always the largest logit."""

    def sample(self, logits, states):
        assert len(logits) == len(states)
        return [SampledToken(int(row.argmax()), None) for row in logits]

    def prompt_logprobs(self, logits, next_token_ids, num_logprobs):
        assert len(logits) == len(next_token_ids)
        return [{int(token): float(row[token])} for row, token in zip(logits, next_token_ids, strict=True)]


def make_engine(num_blocks=64, block_size=4, recorder=None, eos_token_ids=(), **limits) -> Engine:
    """An engine around the fake model."""
    config = SchedulerConfig(num_blocks=num_blocks, block_size=block_size, **limits)
    executor = FakeExecutor(num_blocks, block_size)
    return Engine(
        config,
        executor,
        FakeSampler(),
        vocab_size=VOCAB_SIZE,
        eos_token_ids=eos_token_ids,
        recorder=recorder,
    )
