"""The history of every block: who took it, shared it, copied it, freed it, and at which step.

    block 7    step 3   taken by A as logical block 2          readers: A
               step 9   shared with B                          readers: A, B
               step 20  A lets go                              readers: B
               step 31  freed by B                             readers: none

One list for each block, told once for the whole run; blocks of the swap space have theirs. It is folded from
the same readers and marks as the picture of the pool, in the same pass, and costs nothing in a step in which
a block does not change hands.

Read next: `viz/player/panel.js`, which shows it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

from minivllm.trace.replay import SequenceState
from minivllm.trace.timeline import StepRecord
from viz.changes import column
from viz.figures.common import Name, listing
from viz.figures.readers import Readers, StepMarks
from viz.language import _

MOST_TOKENS = 1_000_000
"""Of longer runs the cards of blocks do not say which tokens they hold."""


class BlockHistory:
    """Grows step by step.

    Args:
        names: of requests.
        requests: the request of each sequence.
        is_host: its blocks are those of the swap space.
    """

    def __init__(
        self, names: Mapping[str, Name], requests: Mapping[int, str], *, is_host: bool = False
    ) -> None:
        self.names, self.requests, self.is_host = names, requests, is_host
        self._entries: dict[int, list[tuple[int, int, int]]] = {}
        self._sentences: dict[str, int] = {}
        self._reader_lists: dict[tuple[tuple[int, int], ...], int] = {(): 0}
        self._readers: dict[int, tuple[tuple[int, int], ...]] = {}

    def note(self, record: StepRecord, blocks: Iterable[int], marks: StepMarks, readers: Readers) -> None:
        """Take over what a step did to `blocks`, those whose readers or marks changed."""
        sources, cached = dict[int, int](), set[int]()
        if not self.is_host:
            sources = {target: source for source, target in marks.copies}
            cached = {block for event in record.cached for block in event.blocks}
        marked = marks.host if self.is_host else marks.device
        for block in blocks:
            now = tuple(sorted(readers.of.get(block, {}).items()))
            before = self._readers.get(block, ())
            happened = marked.get(block, set())
            told = self._words(happened, before, now, sources.get(block), block in cached)
            if not told:
                continue
            self._readers[block] = now
            sentence = self._sentences.setdefault(told, len(self._sentences))
            listed = self._reader_lists.setdefault(now, len(self._reader_lists))
            self._entries.setdefault(block, []).append((record.step, sentence, listed))

    def _words(
        self,
        happened: set[str],
        before: tuple[tuple[int, int], ...],
        now: tuple[tuple[int, int], ...],
        source: int | None,
        is_cached: bool,
    ) -> str:
        """What a step did to a block, as one sentence; nothing if there is nothing to tell."""
        # A sequence that had the block at another place before has left it and come again.
        lost = [reader for reader in before if reader not in now]
        gained = [reader for reader in now if reader not in before]
        if not lost and not gained and "allocated" in happened and now:
            lost = gained = list(now)  # freed and taken again in one step
        parts = []
        if lost:
            if self.is_host and "in" in happened:
                words = _("swapped in again with {who}")
            elif not self.is_host and "out" in happened:
                words = _("swapped out with {who}")
            else:
                words = _("{who} lets go") if len(lost) < len(before) else _("freed by {who}")
            parts.append(words.format(who=self._tags(lost)))
        if "evicted" in happened:
            parts.append(_("evicted from the prefix cache"))
        if gained:
            parts.append(self._arrival(happened, gained, source))
        if is_cached:
            parts.append(_("its tokens enter the prefix cache"))
        return _("; ").join(parts)

    def _arrival(self, happened: set[str], gained: list[tuple[int, int]], source: int | None) -> str:
        who, logical = self._tags(gained), gained[0][1]
        if source is not None and "copied" in happened:
            return _("a copy of block {source}, for {who}").format(source=source, who=who)
        if self.is_host:
            words = _("swapped out for {who} as logical block {logical}")
        elif "in" in happened:
            words = _("swapped in for {who} as logical block {logical}")
        elif "allocated" in happened:
            words = _("taken by {who} as logical block {logical}")
        else:
            words = _("shared with {who} as logical block {logical}")
        return words.format(who=who, logical=logical)

    def _tags(self, readers: list[tuple[int, int]]) -> str:
        tags = dict.fromkeys(self.names[self.requests[seq]].tag for seq, _logical in readers)
        return listing(list(tags))

    def to_data(self, sequences: Mapping[int, SequenceState], block_size: int) -> dict[str, Any]:
        """For the player: columns, one entry after the other, those of a block together."""
        blocks = sorted(self._entries)
        starts = array("I", [0, *accumulate(len(self._entries[block]) for block in blocks)][:-1])
        entries = [entry for block in blocks for entry in self._entries[block]]
        columns = [array("I", [entry[index] for entry in entries]) for index in range(3)]
        number_of = {request: index for index, request in enumerate(self.names)}
        return {
            "blocks": blocks,
            "starts": column(starts),
            "step": column(columns[0]),
            "sentence": column(columns[1]),
            "readers": column(columns[2]),
            "sentences": list(self._sentences),
            "lists": [
                [(number_of[self.requests[seq]], seq, logical) for seq, logical in listed]
                for listed in self._reader_lists
            ],
            "size": block_size,
            "tokens": _tokens(sequences),
        }


def _tokens(sequences: Mapping[int, SequenceState]) -> dict[str, Any] | None:
    """The text of every token of every sequence, or its id where a model has no tokenizer."""
    if sum(len(sequence.token_ids) for sequence in sequences.values()) > MOST_TOKENS:
        return None
    pieces: dict[str, int] = {}
    starts, piece = array("I"), array("I")
    for sequence in sequences.values():
        starts.append(len(piece))
        prompt = sequence.num_prompt_tokens
        known = dict(enumerate(sequence.prompt_pieces))
        known |= dict(enumerate(sequence.output_pieces, prompt))
        for index, token in enumerate(sequence.token_ids):
            text = known.get(index) or f"{token} "
            piece.append(pieces.setdefault(text, len(pieces)))
    return {
        "sequences": list(sequences),
        "starts": column(starts),
        "piece": column(piece),
        "pieces": list(pieces),
    }
