"""What one sequence remembers for the sake of its next token: plain Python, no tensors.

Every output has a random stream of its own, and the token at position i is drawn with its i-th number. So
its tokens depend on its seed and its own past, and never on the other requests of the batch, on how its
prompt was cut into chunks, or on whether it was preempted, or its step interrupted, in between.

Read next: `sampler.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING

from minivllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from minivllm.decoding.structured.progress import Progress
    from minivllm.model.tokenizer import Tokenizer
    from minivllm.scheduling.request import Sequence as TokenSequence


class SamplingState:
    """Parameters, past and random stream of one sequence.

    Args:
        params: what the request asked for.
        sequence: owner of the tokens; before a fork, the sequence that will be forked.
        fallback_seed: seed of the random stream if `params.seed` is None.
        eos_token_ids: end-of-sequence tokens, suppressed until `min_tokens` are out.
        tokenizer: needed only for `params.bad_words`.
        structure: where the output stands in the structure that it must have, if it must have one.
    """

    def __init__(
        self,
        params: SamplingParams,
        sequence: TokenSequence,
        *,
        fallback_seed: int = 0,
        eos_token_ids: Sequence[int] = (),
        tokenizer: Tokenizer | None = None,
        structure: Progress | None = None,
    ) -> None:
        self.params = params
        self.structure = structure
        self.sequence = sequence
        self.fallback_seed = fallback_seed
        self._random: Random | None = None
        self._numbers: list[float] = []  # taken from the stream so far
        self._draft_random: Random | None = None
        self._draft_numbers: list[float] = []
        # vLLM holds the end-of-sequence tokens back even where `ignore_eos` would let them pass.
        self._ending = sorted({*(params.stop_token_ids or ()), *eos_token_ids})
        self._bad_words = _bad_word_tokens(params.bad_words or (), tokenizer)
        self.is_greedy = params.is_greedy
        self.has_penalties = bool(
            params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1
        )
        self.changes_logits = structure is not None or self._changes_more(params)
        """Can anything but the temperature and the cuts behind it change which token is chosen?"""
        self.is_plain_greedy = self.is_greedy and not self.changes_logits and params.logprobs is None
        is_told = structure is not None and structure.is_told
        self.is_plain_structured = (
            self.is_greedy and not self._changes_more(params) and params.logprobs is None and not is_told
        )
        """Is it plain greedy, but for its structure?"""

    def _changes_more(self, params: SamplingParams) -> bool:
        """Does anything but a structure change the logits?"""
        return bool(
            params.allowed_token_ids
            or params.logit_bias
            or params.min_tokens
            or self._bad_words
            or self.has_penalties
        )

    @cached_property
    def prompt_tokens(self) -> frozenset[int]:
        """Which tokens the prompt has, for the repetition penalty."""
        return frozenset(self.sequence.token_ids[: self.sequence.num_prompt_tokens])

    @property
    def output_token_ids(self) -> Sequence[int]:
        """A copy of the output so far."""
        return self.sequence.output_token_ids()

    def next_uniform(self) -> float:
        """The number in [0, 1) for the next position: the same again if its token was never appended."""
        position = len(self.sequence.token_ids) - self.sequence.num_prompt_tokens
        if self._random is None:
            self._random = Random(self.fallback_seed if self.params.seed is None else self.params.seed)
        while len(self._numbers) <= position:
            self._numbers.append(self._random.random())
        return self._numbers[position]

    def next_draft_uniforms(self) -> tuple[float, float]:
        """Two more numbers for the next position, of a stream for drafts alone: one draws the draft, and one
        accepts it (`speculation/rejection.py`)."""
        position = len(self.sequence.token_ids) - self.sequence.num_prompt_tokens
        if self._draft_random is None:
            seed = self.fallback_seed if self.params.seed is None else self.params.seed
            self._draft_random = Random(f"drafts of {seed}")
        while len(self._draft_numbers) < 2 * position + 2:
            self._draft_numbers.append(self._draft_random.random())
        return self._draft_numbers[2 * position], self._draft_numbers[2 * position + 1]

    def ahead(self, drafts: Sequence[int]) -> SamplingState:
        """The state as it would be if these drafts were accepted; this one stays as it is."""
        if self.is_plain_greedy or not drafts:
            return self
        if not self.is_greedy:  # the streams are shared, so they must have begun
            self.next_uniform()
            self.next_draft_uniforms()
        if self.has_penalties:
            _ = self.prompt_tokens
        other = copy(self)
        other.sequence = self.sequence.ahead(drafts)
        for token_id in drafts:
            other.structure = other.structure and other.structure.after(token_id)
        return other

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
