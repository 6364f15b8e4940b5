"""Before a request is queued: is it one, and could it ever be served? If not, it is refused at once.

    arguments ──► RequestArguments ──► check_request ──► its final limit of output tokens
                  each has its type     it would fit

A request that outgrows the cache half-way, or that waits for blocks which do not exist, would hang its
client for ever. Both can be known before anything is computed, so they are, and the refusal has the numbers.

Read next: `engine.py`, which asks before it queues anything.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from minivllm.config import SchedulerConfig
from minivllm.memory.cache_manager import CacheManager
from minivllm.sampling_params import BeamSearchParams, SamplingParams, in_sampling_params, own_copy
from minivllm.validation import check_int64, check_integer, check_list, check_number, check_text, shown

NO_DRAFTS = "no draft can be accepted before all beams have been compared"


class RequestArguments(NamedTuple):
    """What `Engine.add_request` was given, each argument in its one form."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams | BeamSearchParams
    arrival_time: float
    priority: int
    cache_salt: str | None

    @classmethod
    def checked(
        cls,
        request_id: object,
        prompt: object,
        prompt_token_ids: object,
        params: SamplingParams | BeamSearchParams | None,
        arrival_time: object,
        priority: object,
        cache_salt: object,
    ) -> RequestArguments:
        """The arguments, if each of them is what it should be; else `ValueError`, which names the first."""
        tokens = check_list("prompt_token_ids", prompt_token_ids, of="token ids")
        return cls(
            check_text("request_id", request_id, may_be_empty=False),
            None if prompt is None else check_text("prompt", prompt),
            [
                token if type(token) is int else check_integer(f"prompt_token_ids[{position}]", token)
                for position, token in enumerate(tokens)
            ],
            own_copy(params),
            check_number("arrival_time", arrival_time),
            check_int64("priority", priority),
            None if cache_salt is None else check_text("cache_salt", cache_salt, may_be_empty=False),
        )


def check_request(
    arguments: RequestArguments,
    *,
    config: SchedulerConfig,
    memory: CacheManager,
    vocab_size: int,
    has_tokenizer: bool,
    has_drafts: bool = False,
) -> int:
    """Could this request be served by an empty engine? Returns its final limit of output tokens.

    Raises:
        ValueError: it never could, and why.
    """
    params, prompt = in_sampling_params(arguments.params), arguments.prompt_token_ids
    if has_drafts and params.use_beam_search:
        raise ValueError(
            f"use_beam_search must be False where speculative_config is set: {NO_DRAFTS}; got True"
        )
    check_prompt(prompt, vocab_size, config.max_model_len)
    params.verify(vocab_size, has_tokenizer=has_tokenizer)
    check_width(params.width, is_beam_search=params.use_beam_search, config=config)
    return limit_output(len(prompt), params.max_tokens, config, memory, params.width)


def check_prompt(token_ids: list[int], vocab_size: int, max_model_len: int) -> None:
    """Raise `ValueError` unless there are tokens, all of them exist, and one more would fit the model."""
    if not token_ids:
        raise ValueError("the prompt is empty: it must have at least one token")
    for position, token in enumerate(token_ids):
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"prompt_token_ids[{position}] must be an integer from 0 to {vocab_size - 1} "
                f"(the vocabulary has {vocab_size} tokens), got {shown(token)}"
            )
    if len(token_ids) >= max_model_len:
        raise ValueError(
            f"the prompt has {len(token_ids)} tokens; with max_model_len {max_model_len} it may have at most "
            f"{max_model_len - 1}, so that one token can be generated"
        )


def check_width(width: int, *, is_beam_search: bool, config: SchedulerConfig) -> None:
    """Raise `ValueError` unless a step has slots for all sequences of the request."""
    name = "beam_width (best_of)" if is_beam_search else "n (best_of)"
    if width > config.max_num_seqs:
        raise ValueError(
            f"{name} must be at most max_num_seqs ({config.max_num_seqs}), because all its sequences run "
            f"at once; got {width}"
        )
    if is_beam_search and width > config.max_num_batched_tokens:
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
    limit = config.max_model_len - prompt_length

    def blocks(num_tokens: int) -> int:
        # The last token is returned but never computed, so it needs no room in the cache.
        return memory.max_blocks(prompt_length, prompt_length + num_tokens - 1, width)

    if max_tokens is None:
        fitting = bisect_right(range(1, limit + 1), config.num_blocks, key=blocks)
        if fitting:
            return fitting
    wanted = limit if max_tokens is None else min(max_tokens, limit)
    if blocks(wanted) > config.num_blocks:
        several = f" for {width} sequences" if width > 1 else ""
        raise ValueError(
            f"the request can never fit: {prompt_length} prompt tokens and max_tokens {wanted}{several} need "
            f"{blocks(wanted)} blocks of {config.block_size} tokens, the pool has {config.num_blocks} "
            f"({config.num_blocks * config.block_size} tokens)"
        )
    return wanted
