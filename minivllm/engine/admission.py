"""At the door: could this request ever be served? If not, it is refused at once, with the numbers.

A request that outgrows the cache half-way, or that waits for blocks which do not exist, would hang its
client for ever. Both can be known before anything is computed, so they are.

Read next: `engine.py`, which asks before it queues anything.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from minivllm.config import SchedulerConfig
from minivllm.memory.cache_manager import CacheManager


def check_prompt(token_ids: Sequence[int], vocab_size: int, max_model_len: int) -> None:
    """Raise `ValueError` unless there are tokens, all of them exist, and one more would fit the model."""
    if not len(token_ids):
        raise ValueError("the prompt is empty: it must have at least one token")
    for position, token in enumerate(token_ids):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise ValueError(
                f"prompt_token_ids[{position}] must be an integer from 0 to {vocab_size - 1} "
                f"(the vocabulary has {vocab_size} tokens), got {token!r}"
            )
    if len(token_ids) >= max_model_len:
        raise ValueError(
            f"the prompt has {len(token_ids)} tokens; with max_model_len {max_model_len} it may have at most "
            f"{max_model_len - 1}, so that one token can be generated"
        )


def check_salt(salt: object) -> None:
    """Raise `ValueError` unless it is None or a text that is not empty."""
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise ValueError(f"cache_salt must be a string that is not empty, or None, got {salt!r}")


def check_width(width: int, *, in_lockstep: bool, config: SchedulerConfig) -> None:
    """Raise `ValueError` unless a step has places for all sequences of the request."""
    name = "beam_width (best_of)" if in_lockstep else "n (best_of)"
    if width > config.max_num_seqs:
        raise ValueError(
            f"{name} must be at most max_num_seqs ({config.max_num_seqs}), because all its sequences run "
            f"at once; got {width}"
        )
    if in_lockstep and width > config.max_num_batched_tokens:
        raise ValueError(
            f"{name} must be at most max_num_batched_tokens ({config.max_num_batched_tokens}), because all "
            f"beams advance in the same step; got {width}"
        )


def limit_output(
    prompt_length: int, max_tokens: int | None, config: SchedulerConfig, memory: CacheManager, width: int = 1
) -> int:
    """The final limit of output tokens: as asked for, capped by the model's length.

    Raises:
        ValueError: the memory could not hold that many even if it were empty.
    """
    longest = config.max_model_len - prompt_length

    def blocks(num_tokens: int) -> int:
        # The last token is returned but never computed, so it needs no room in the cache.
        return memory.max_blocks(prompt_length, prompt_length + num_tokens - 1, width)

    if max_tokens is None:
        fitting = bisect_right(range(1, longest + 1), config.num_blocks, key=blocks)
        if fitting:
            return fitting
    wanted = longest if max_tokens is None else min(max_tokens, longest)
    if blocks(wanted) > config.num_blocks:
        several = f" for {width} sequences" if width > 1 else ""
        raise ValueError(
            f"the request can never fit: {prompt_length} prompt tokens and max_tokens {wanted}{several} need "
            f"{blocks(wanted)} blocks of {config.block_size} tokens, the pool has {config.num_blocks} "
            f"({config.num_blocks * config.block_size} tokens)"
        )
    return wanted
