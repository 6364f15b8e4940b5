"""Beam search with the shipped model: how much its beams share, beside what the dice say.

The same play as everywhere in this comparison, but the plans are carried out, and the survivors of a step are
the model's own. Prompts are beginnings of texts that the model was not trained on; lengths are those of the
short requests; EOS is a token like any other, so that all lengths come out as planned.

Read next: `minivllm/decoding/beam_candidates.py`; `beam_dice.py` for the same without a model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minivllm.config import SchedulerConfig
from minivllm.decoding.beam_candidates import best_continuations
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.lab.compare.memory_play import MemoryPlay, Played
from minivllm.lab.tiny_model.corpus import build_corpus
from minivllm.lab.workloads.lengths import Lengths, draw_lengths
from minivllm.memory import KVCacheManager
from minivllm.model.tiny import MODEL_PATH
from minivllm.model.tokenizer import Tokenizer
from minivllm.scheduling.plan import StepPlan
from minivllm.scheduling.request import Request

NUM_REQUESTS = 24
LONGEST_OUTPUT = 256
"""A few very long answers would take most of the time."""


class ModelPlay(MemoryPlay):
    """A play in which a model chooses the tokens. It needs a memory that holds all requests at once."""

    executor: TorchExecutor

    def _execute(self, plan: StepPlan) -> None:
        logits = self.executor.execute(plan)
        wanted = [item.seq_id for item in plan.scheduled if item.num_logits]
        self._logits: dict[int, Tensor] = dict(zip(wanted, logits, strict=True))

    def _survivors(self, request: Request, scores: list[float]) -> list[tuple[int, int, float]]:
        logits = torch.stack([self._logits[sequence.seq_id] for sequence in request.sequences])
        best = best_continuations(logits, scores, self.width)
        return [(candidate.beam, candidate.token_id, candidate.score) for candidate in best]


def play_shipped_model(widths: Sequence[int], block_size: int, seed: int) -> list[Played]:
    """One play for each number of beams."""
    lengths = [
        Lengths(prompt, min(output, LONGEST_OUTPUT))
        for prompt, output in draw_lengths("alpaca", NUM_REQUESTS, seed)
    ]
    prompts = unseen_prompts([prompt for prompt, _ in lengths])
    longest = max(prompt + output for prompt, output in lengths)
    num_blocks = sum(max(widths) * -(-(prompt + output) // block_size) for prompt, output in lengths)
    executor = TorchExecutor.from_folder(
        MODEL_PATH, device="cpu", num_blocks=num_blocks, block_size=block_size
    )
    config = SchedulerConfig(num_blocks, block_size, max_num_seqs=1024, max_model_len=max(longest, 2048))
    results = []
    for width in widths:
        memory = KVCacheManager(num_blocks, block_size)
        play = ModelPlay(
            memory,
            config,
            lengths,
            width=width,
            beams=True,
            seed=seed,
            prompts=prompts,
            wait_for_full_memory=False,
        )
        play.executor = executor
        results.append(play.run())
    return results


def unseen_prompts(lengths: Sequence[int]) -> list[list[int]]:
    """Beginnings of held-out texts, of these lengths in tokens."""
    tokenizer = Tokenizer.from_folder(MODEL_PATH)
    texts = iter(build_corpus(0).held_out)
    prompts = []
    for length in lengths:
        tokens: list[int] = []
        while len(tokens) < length:  # a text that is too short goes on with the next
            tokens += tokenizer.encode(next(texts).text)
        prompts.append(tokens[:length])
    return prompts
