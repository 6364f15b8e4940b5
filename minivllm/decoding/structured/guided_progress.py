"""One output on its way through a structure that `llguidance` follows; and which of the two engines begins.

Read next: `progress.py`, our own.
"""

from __future__ import annotations

from copy import copy

from minivllm.decoding.structured.compile import AnyStructure
from minivllm.decoding.structured.guidance import GuidedStructure
from minivllm.decoding.structured.progress import Progress
from minivllm.decoding.structured.token_masks import TokenMask

STRUCK_OUT = bytes([1]) + bytes(255)
"""Of a byte that is 0 where a token is not allowed."""


def begin(structure: AnyStructure, *, is_told: bool = False) -> Progress:
    """An output at the beginning of a structure."""
    if isinstance(structure, GuidedStructure):
        return GuidedProgress(structure, is_told=is_told)
    return Progress(structure, is_told=is_told)


class GuidedProgress(Progress):
    """As `Progress`, by the other engine. Its state is changed by each token, so branches are copies."""

    __slots__ = ("_mask", "_matcher", "guided")

    def __init__(self, structure: GuidedStructure, *, is_told: bool = False) -> None:
        self.guided = structure
        self.is_told = is_told
        self.rewind()

    def rewind(self) -> None:
        self._matcher = self.guided.matcher.deep_copy()
        self._mask: TokenMask | None = None
        self.problem = ""
        self.is_over = False
        self.told = None

    def after(self, token_id: int) -> GuidedProgress:
        other = copy(self)
        other._matcher = self._matcher.deep_copy()
        other.append(token_id)
        return other

    def append(self, token_id: int) -> None:
        self._mask = None
        known = self.guided.vocabulary.token_bytes
        has_bytes = token_id < len(known) and bool(known[token_id])
        if self.is_over or not has_bytes or not self._matcher.try_consume_tokens([token_id]):
            self.is_over = True
        else:
            self.is_over = bool(self._matcher.is_stopped())
        self._look_for_problem()

    def mask(self) -> TokenMask:
        if self._mask is None:
            self._mask = self._make_mask()
        return self._mask

    def _make_mask(self) -> TokenMask:
        size = len(self.guided.vocabulary.token_bytes)
        if self.problem or self.is_over:
            return TokenMask(bytearray(b"\1") * size)
        allowed = self._matcher.compute_logit_bias()
        self._look_for_problem()
        if self.problem:
            return TokenMask(bytearray(b"\1") * size)
        struck_out = bytearray(allowed[:size].translate(STRUCK_OUT))
        if allowed[self.guided.vocabulary.end_token]:
            for token in self.guided.endings:
                struck_out[token] = 0
        return TokenMask(struck_out)

    def _look_for_problem(self) -> None:
        if self._matcher.is_error():
            self.problem = str(self._matcher.get_error()).strip().splitlines()[0][:300]

    @property
    def may_end(self) -> bool:
        return bool(self._matcher.is_accepting())
