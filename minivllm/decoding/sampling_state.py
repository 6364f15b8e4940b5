"""What one sequence remembers for the sake of its next token: plain Python, no tensors.

Every sequence has a random stream of its own and takes exactly one number from it for each token it
samples. So its tokens depend on its seed and its own past, and never on who else is in the batch, on how
its prompt was cut into chunks, or on whether it was preempted in between.

Read next: `sampler.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING

from minivllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from minivllm.model.tokenizer import Tokenizer


class SamplingState:
    """Parameters, past and random stream of one sequence.

    Args:
        params: what the request asked for.
        prompt_token_ids: the prompt.
        output_token_ids: the *live* list of output tokens, which its owner appends to.
        fallback_seed: seed of the random stream if `params.seed` is None.
        eos_token_ids: end-of-sequence tokens, suppressed until `min_tokens` are out.
        tokenizer: needed only for `params.bad_words`.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        output_token_ids: list[int],
        *,
        fallback_seed: int = 0,
        eos_token_ids: Sequence[int] = (),
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.params = params
        self.prompt_token_ids = prompt_token_ids
        self.output_token_ids = output_token_ids
        self._random = Random(fallback_seed if params.seed is None else params.seed)
        # vLLM holds the end-of-sequence tokens back even where `ignore_eos` would let them pass.
        self._ending = sorted({*(params.stop_token_ids or ()), *eos_token_ids})
        self._bad_words = _bad_word_tokens(params.bad_words or (), tokenizer)
        self.changes_logits = bool(
            params.allowed_token_ids or params.logit_bias or self._bad_words or self.has_penalties
        )
        self.is_plain_greedy = (
            params.is_greedy and not self.changes_logits and not params.min_tokens and params.logprobs is None
        )

    @cached_property
    def prompt_tokens(self) -> frozenset[int]:
        """Which tokens the prompt has, for the repetition penalty."""
        return frozenset(self.prompt_token_ids)

    @property
    def has_penalties(self) -> bool:
        params = self.params
        return bool(params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1)

    def next_uniform(self) -> float:
        """The next number of this sequence's own stream, in [0, 1)."""
        return self._random.random()

    def banned_token_ids(self) -> list[int]:
        """Tokens that must not come next: endings before `min_tokens`, and the last token of a bad word."""
        output = self.output_token_ids
        banned = list(self._ending) if len(output) < self.params.min_tokens else []
        for *beginning, last in self._bad_words:
            if not beginning or output[-len(beginning) :] == beginning:
                banned.append(last)
        return banned


def _bad_word_tokens(words: Sequence[str], tokenizer: Tokenizer | None) -> list[list[int]]:
    """Each word as tokens, at the start of a text and after a space: most tokenizers tell them apart.

    As in vLLM, other ways to spell a word with tokens (letter by letter, say) are not known here.
    """
    if not words or tokenizer is None:
        return []
    spellings: list[list[int]] = []
    for word in words:
        bare = word.lstrip() or word
        known = [tokenizer.encode(text, add_special_tokens=False) for text in (bare, " " + bare)]
        if not any(known):
            raise ValueError(f"bad_words must hold words that have tokens; {word!r} has none")
        spellings += [tokens for tokens in known if tokens and tokens not in spellings]
    return spellings
