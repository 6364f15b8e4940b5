"""A model without a model: it stores token ids in the slots of a paged cache and reads them back.

The next token is a hash of everything that the block table leads to. So if any block is mixed up, lost,
written late, or shared by mistake, the very next token is wrong: the cheapest oracle there is for paging.
"""

from time import monotonic, perf_counter
from unittest.mock import patch

import numpy as np
import torch

from minivllm.config import SchedulerConfig
from minivllm.decoding.beam_candidates import best_continuations
from minivllm.decoding.sampler import SampledToken
from minivllm.engine.engine import Engine
from minivllm.llm import LLM
from minivllm.scheduling import choose_policy

VOCAB_SIZE = 97
POLICIES = tuple("static(timeout_seconds=0)" if name == "static" else name for name in choose_policy.POLICIES)
"""No test waits for company that does not come."""


def next_token(tokens) -> int:
    """What the fake model says after `tokens`."""
    state = 7
    for token in tokens:
        state = (state * 1_000_003 + int(token) + 1) % 2_147_483_647
    return state % VOCAB_SIZE


def logits_after(tokens) -> np.ndarray:
    """A row of logits [VOCAB_SIZE] that depends on all of `tokens`; the largest is `next_token`'s."""
    best = next_token(tokens)
    row = -np.abs((np.arange(VOCAB_SIZE) * 37 + best * 11) % VOCAB_SIZE) / 10.0
    row[best] = 1.0
    return row


def expected_output(prompt, count) -> list[int]:
    """What a request gives when it is alone and nothing is paged."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class FakeExecutor:
    """Paged memory of token ids; poison (-1) where nobody has written."""

    last_attention_seconds = 0.0

    def __init__(self, num_blocks: int, block_size: int, num_host_blocks: int = 0) -> None:
        self.cells = np.full((num_blocks, block_size), -1)
        self.host_cells = np.full((num_host_blocks, block_size), -1)
        self.block_size = block_size
        self.fail_next = ""
        """"before" or "after" anything is moved and written; both must be survived."""
        self.num_copies = 0

    def execute(self, plan):
        if self.fail_next == "before":
            self.fail_next = ""
            raise RuntimeError("the fake device failed")
        for move in plan.moves:
            source = self.host_cells if move.kind == "swap_in" else self.cells
            target = self.host_cells if move.kind == "swap_out" else self.cells
            target[move.target] = source[move.source]
            self.num_copies += move.kind == "copy"
        written = self._cells_written(plan)
        for item in plan.scheduled:
            for offset, token in enumerate(item.token_ids):
                block, place = divmod(item.start + offset, self.block_size)
                self.cells[item.block_table[block], place] = token
        if self.fail_next == "after":
            self.fail_next = ""
            for block, place in written:
                self.cells[block, place] = -1
            for move in plan.moves:
                (self.host_cells if move.kind == "swap_out" else self.cells)[move.target] = -1
            raise RuntimeError("the fake device failed")
        rows = []
        for item in plan.scheduled:
            context = self.cells[np.asarray(item.block_table)].reshape(-1)[: item.end]
            assert (context >= 0).all(), "a slot is read that was never written"
            for end in range(item.end - item.num_logits + 1, item.end + 1):
                rows.append(logits_after(context[:end]))
        return np.stack(rows) if rows else np.zeros((0, VOCAB_SIZE))

    def _cells_written(self, plan):
        """The cells that a plan writes to: none of them for two sequences."""
        written = set()
        for item in plan.scheduled:
            for position in range(item.start, item.end):
                block, place = divmod(position, self.block_size)
                cell = (item.block_table[block], place)
                assert cell not in written, "two sequences write to the same cell"
                written.add(cell)
        return written


class FakeSampler:
    """The largest logit for the greedy; for the others one that depends on their own random stream."""

    def sample(self, logits, states):
        assert len(logits) == len(states)
        return [SampledToken(self._token(*pair), None) for pair in zip(logits, states, strict=True)]

    def _token(self, row, state):
        shift = 0 if state.params.is_greedy else int(state.next_uniform() * VOCAB_SIZE)
        return (int(row.argmax()) + shift) % VOCAB_SIZE

    def continuations(self, logits, scores, count, temperature):
        return best_continuations(torch.as_tensor(np.asarray(logits)), scores, count, temperature)

    def prompt_logprobs(self, logits, next_token_ids, num_logprobs):
        assert len(logits) == len(next_token_ids)
        return [{int(token): float(row[token])} for row, token in zip(logits, next_token_ids, strict=True)]


def make_engine(
    num_blocks=64,
    block_size=4,
    recorder=None,
    eos_token_ids=(),
    sinks=(),
    speculation=None,
    async_scheduling=False,
    **limits,
) -> Engine:
    """An engine around the fake model. Nothing is computed in a thread: on another clock, plans in flight are
    carried out when their logits are asked for, so that a run can be repeated line by line."""
    config = SchedulerConfig(num_blocks=num_blocks, block_size=block_size, **limits)
    executor = FakeExecutor(num_blocks, block_size, config.num_host_blocks)
    return Engine(
        config,
        executor,
        FakeSampler(),
        vocab_size=VOCAB_SIZE,
        eos_token_ids=eos_token_ids,
        recorder=recorder,
        sinks=sinks,
        speculation=speculation,
        async_scheduling=async_scheduling,
        clock=monotonic if async_scheduling else perf_counter,
    )


def make_llm(**settings) -> LLM:
    """An `LLM` around the fake model; settings are those of `make_engine`."""
    with patch("minivllm.llm.create_engine", lambda args: make_engine(**settings)):
        return LLM("fake")
