"""How much a precision loses, by phase, on text that was in no calibration.

The texts are read as an engine would read and write them, through its executor and its KV cache: the first
half of each as a prompt, the second half as tokens that were generated. After every token the distribution of
the next one is held against that of float32 on the same text:

    perplexity   exp(mean −log p(the token that follows)): of the text, not of the reference
    KL           Σ p log(p / q), nats a token: p of float32, q of the variant; 0 where nothing changed
    kept         share of tokens after which the likeliest next one, greedy decoding's choice, is the same

Both are averages over the same tokens for every variant. KL sees what perplexity averages away: on a text
that a model reads badly, noise may even lower the perplexity.

Read next: `precision_speed.py`.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minivllm.executor.torch_executor import TorchExecutor
from minivllm.scheduling.plan import ScheduledSequence, StepPlan

BLOCK_SIZE = 16
TEXTS_AT_ONCE = 16
MOST_TOKENS = 160
"""Of a text: the rest is cut off."""
MOST_BYTES = 512 << 20
"""Of the reference's distributions, which are kept; a large vocabulary gets fewer texts."""


@dataclass(frozen=True)
class Quality:
    """A variant beside float32; KL in nats a token."""

    num_tokens: int
    perplexity: float
    kl: float
    kl_prompts: float
    kl_decoding: float
    kept: float


@dataclass(frozen=True)
class Scores:
    """What an executor says after each token of some texts.

    Attributes:
        log_probs: [tokens, vocab_size], text after text.
        following: [tokens] the token that really follows; −1 after a text's last.
        is_prompt: [tokens].
    """

    log_probs: Tensor
    following: Tensor
    is_prompt: Tensor


def most_texts(texts: Sequence[Sequence[int]], vocab_size: int) -> list[list[int]]:
    """The texts, cut, and as many of them as there is memory for the reference's distributions."""
    cut = [list(text[:MOST_TOKENS]) for text in texts if len(text) >= 4]
    room = MOST_BYTES // (4 * vocab_size)
    kept: list[list[int]] = []
    for text in cut:
        room -= len(text)
        if room < 0 and kept:
            break
        kept.append(text)
    return kept


def num_blocks_needed(texts: Sequence[Sequence[int]]) -> int:
    """Of the KV cache, for the texts that are read at once."""
    return TEXTS_AT_ONCE * -(-max(map(len, texts)) // BLOCK_SIZE)


def score(executor: TorchExecutor, texts: Sequence[Sequence[int]]) -> Scores:
    """Read all texts."""
    log_probs, following, is_prompt = [], [], []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        for text, logits in _read(executor, texts[start : start + TEXTS_AT_ONCE]):
            log_probs.append(torch.log_softmax(logits.float(), dim=-1))
            following.append(torch.tensor([*text[1:], -1]))
            is_prompt.append(torch.arange(len(text)) < len(text) // 2)
    return Scores(torch.cat(log_probs), torch.cat(following), torch.cat(is_prompt))


def compare(ours: Scores, reference: Scores) -> Quality:
    """The numbers of the module's docstring."""
    p, q = reference.log_probs, ours.log_probs
    divergence = (p.exp() * (p - q)).sum(-1)
    known = ours.following >= 0
    chosen = q[known].gather(1, ours.following[known, None])
    return Quality(
        num_tokens=len(divergence),
        perplexity=math.exp(-float(chosen.mean())),
        kl=float(divergence.mean()),
        kl_prompts=float(divergence[ours.is_prompt].mean()),
        kl_decoding=float(divergence[~ours.is_prompt].mean()),
        kept=float((p.argmax(-1) == q.argmax(-1)).float().mean()),
    )


def _read(executor: TorchExecutor, texts: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Each text with its logits [tokens, vocab_size]: two steps, prompts and what follows them."""
    halves: list[list[Tensor]] = [[] for _ in texts]
    blocks = num_blocks_needed(texts) // TEXTS_AT_ONCE
    for part in range(2):
        scheduled = []
        for number, text in enumerate(texts):
            middle = len(text) // 2
            start, tokens = (middle, text[middle:]) if part else (0, text[:middle])
            table = array("i", range(number * blocks, (number + 1) * blocks))
            scheduled.append(
                ScheduledSequence(
                    number, start, array("i", tokens), table, len(tokens), num_prompt_tokens=middle
                )
            )
        logits = executor.execute(StepPlan(part, tuple(scheduled)))
        for number, rows in enumerate(torch.split(logits, [item.num_logits for item in scheduled])):
            halves[number].append(rows.clone())
    yield from zip(texts, map(torch.cat, halves), strict=True)
