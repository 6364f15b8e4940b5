"""One output on its way through a structure: where it stands, and which tokens may come next.

    tokens so far ──► state ──► mask          a function of the tokens alone: after an interrupt it is made
                        │                     again from them, and what happens to the KV cache (preemption,
                        └── is anything left? swapping, shared prefixes, chunks) changes nothing

The output is over when nothing can come any more: its last token is the last of the structure, and no
end-of-sequence token needs to be computed. Where something may come, but need not, an ending token ends it.

Read next: `../output_state.py`, which owns it; `../logits_processors.py`, which applies the masks.
"""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

from minivllm.decoding.structured.compile import Structure
from minivllm.decoding.structured.expressions import StructureError
from minivllm.decoding.structured.pushdown import Stacks
from minivllm.decoding.structured.token_masks import TokenMask


class AllowedHere(NamedTuple):
    """What a token was chosen from."""

    num_allowed: int
    candidates: list[tuple[int, float, bool]]
    """`(token_id, probability, is it allowed)` of the likeliest by the model's own probabilities, and of the
    chosen token."""


class Progress:
    """The state of one output.

    Attributes:
        problem: why no token can be allowed any more, in words; empty while all is well.
        is_over: nothing can come any more.
        is_told: a trace is to tell what each token was chosen from.
        told: what the newest token was chosen from, if that is to be told: the sampler says it.
    """

    __slots__ = ("_state", "is_over", "is_told", "problem", "structure", "told")

    def __init__(self, structure: Structure, *, is_told: bool = False) -> None:
        self.structure = structure
        self.is_told = is_told
        self.rewind()

    def rewind(self) -> None:
        """Stand at the beginning again."""
        self._state: Stacks | None = self.structure.pushdown.start
        self.problem = ""
        self.is_over = False
        self.told: AllowedHere | None = None

    def after(self, token_id: int) -> Progress:
        """Another output, which is this one with one more token."""
        other = copy(self)
        other.append(token_id)
        return other

    def append(self, token_id: int) -> None:
        """One more token of the output. One that the structure does not allow, as an ending, ends it."""
        masks, state = self.structure.masks, self._state
        known = masks.vocabulary.token_bytes
        data = known[token_id] if token_id < len(known) else None
        try:
            state = masks.pushdown.read(state, data) if data else None
        except StructureError as error:
            self.problem = str(error)
            return
        self._state = state
        self.is_over = state is None or state.is_exhausted

    def mask(self) -> TokenMask:
        """Which tokens may come next; none, if there is a `problem`."""
        masks = self.structure.masks
        if not self.problem and self._state is not None:
            try:
                return masks.of(self._state)
            except StructureError as error:
                self.problem = str(error)
        return TokenMask(bytearray(b"\1") * len(masks.vocabulary))

    @property
    def may_end(self) -> bool:
        """Is the output complete as it is?"""
        return self._state is not None and self._state.has_empty
