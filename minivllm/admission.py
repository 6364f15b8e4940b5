"""At the door: could this request ever be served? If not, it is refused at once, with the numbers.

A request that outgrows the cache half-way, or that waits for blocks which do not exist, would hang its
client for ever. Both can be known before anything is computed, so they are.

Read next: `engine.py`, which asks before it queues anything.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.config import SchedulerConfig
from minivllm.memory import blocks_needed


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


def limit_output(prompt_length: int, max_tokens: int | None, config: SchedulerConfig) -> int:
    """The final limit of output tokens: as asked for, capped by the model's length.

    Raises:
        ValueError: the pool could not hold that many even if it were empty.
    """
    longest = config.max_model_len - prompt_length
    capacity = config.num_blocks * config.block_size
    # The last token is returned but never computed, so it needs no room in the cache.
    in_pool = capacity + 1 - prompt_length
    if max_tokens is None and in_pool >= 1:
        return min(longest, in_pool)
    wanted = longest if max_tokens is None else min(max_tokens, longest)
    if wanted > in_pool:
        needed = blocks_needed(prompt_length + wanted - 1, config.block_size)
        raise ValueError(
            f"the request can never fit: {prompt_length} prompt tokens and max_tokens {wanted} need {needed} "
            f"blocks of {config.block_size} tokens, the pool has {config.num_blocks} ({capacity} tokens)"
        )
    return wanted
