"""The lives of sequences: how they fork, what they keep, and how they and their requests end.

    fork            the child has the tokens of its parent, and maps all its blocks; no data moves
    advance_beams   forks for beams that branch, an end for beams that are outdone
    keep_accepted   drafts that were right stay in the cache, the others leave it
    end             a finished sequence frees its blocks; the request leaves with its last sequence, or is
                    parked until its whole batch has finished (static batching)

Source: Kwon et al. (SOSP 2023), section 4.4. Read next: `minivllm/memory/copy_on_write.py` for what a fork
costs, `minivllm/decoding/beam_search.py` for which beams go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from minivllm.memory.cache_manager import CacheManager
from minivllm.scheduling.batch_state import BatchState
from minivllm.scheduling.plan import BeamStep, Sampled, ScheduledSequence
from minivllm.scheduling.policy import SchedulingPolicy
from minivllm.scheduling.request import Finish, Request, RequestStatus
from minivllm.scheduling.request import Sequence as TokenSequence
from minivllm.trace.events import (
    BeamsAdvanced,
    DraftsVerified,
    Event,
    SequenceFinished,
    SequenceForked,
    VerifiedDrafts,
)


class StepChanges(NamedTuple):
    """What a finished step has changed."""

    grown: list[TokenSequence]
    """The sequence that each sampled token went to, in the order of `Sampled.tokens`."""
    forked: list[tuple[TokenSequence, TokenSequence]]
    """Parent and child of each fork."""
    finished: list[Request]
    """Requests whose last sequence has ended in this step."""
    released: list[Request]
    """Requests that have left: the finished ones, unless they are parked until their batch is done."""


class Lifecycle:
    """Forks and ends sequences, in the queues and in the memory. Times are those of events.

    Args:
        requests: the core's own dictionary of all unfinished requests.
        new_seq_id: gives the next sequence its id.
    """

    def __init__(
        self,
        requests: dict[str, Request],
        state: BatchState,
        cache: CacheManager,
        policy: SchedulingPolicy,
        new_seq_id: Callable[[], int],
        emit: Callable[[Event], None] | None,
    ) -> None:
        self._requests = requests
        self._state = state
        self._cache = cache
        self._policy = policy
        self._new_seq_id = new_seq_id
        self._emit = emit

    def fork(self, parent: TokenSequence, changes: StepChanges) -> TokenSequence:
        """One more sequence for the request of `parent`, which shares everything with it."""
        request = self._requests[parent.request_id]
        child = parent.fork(self._new_seq_id())
        self._state.sequences[child.seq_id] = child
        request.sequences.append(child)
        self._cache.fork(parent.seq_id, child.seq_id)
        changes.forked.append((parent, child))
        if self._emit:
            self._emit(SequenceForked(request.request_id, parent.seq_id, child.seq_id))
        return child

    def advance_beams(self, step: BeamStep, changes: StepChanges, time: float) -> list[tuple[int, int, str]]:
        """Give beams their next tokens: one, several (a fork for each but the first), or none (pruned)."""
        request = self._requests[step.request_id]
        grown: list[TokenSequence] = []
        parents: set[int] = set()
        for parent_id, *_ in step.kept:
            parent = self._state.sequences[parent_id]
            grown.append(self.fork(parent, changes) if parent_id in parents else parent)
            parents.add(parent_id)
        # Only now, when all have forked, may a sequence grow: a fork is its parent as it was.
        for sequence, (_, token_id, _, _) in zip(grown, step.kept, strict=True):
            sequence.token_ids.append(token_id)
        if grown:  # when the search is over, the last beams stay until their request leaves
            for beam in [beam for beam in request.sequences if beam not in grown]:
                self.drop(request, beam, Finish("pruned"), time)
            request.sequences[:] = grown
        if self._emit:
            kept = tuple(
                (parent_id, sequence.seq_id, token_id, score, text)
                for sequence, (parent_id, token_id, score, text) in zip(grown, step.kept, strict=True)
            )
            self._emit(BeamsAdvanced(step.request_id, kept, tuple(step.finished), tuple(step.rejected)))
        return [
            (sequence.seq_id, token_id, text)
            for sequence, (_, token_id, _, text) in zip(grown, step.kept, strict=True)
        ]

    def keep_accepted(self, drafted: Sequence[ScheduledSequence], sampled: Sampled) -> None:
        """A sequence that got m tokens keeps m − 1 drafts: computed tokens and blocks behind them go.

        Blocks that are full of verified tokens enter the prefix cache with the sequence's next step.
        """
        num_sampled = Counter(token.seq_id for token in sampled.tokens)
        verified: list[VerifiedDrafts] = []
        for item in drafted:
            seq_id, sequence = item.seq_id, self._state.sequences[item.seq_id]
            num_accepted = max(0, num_sampled[seq_id] - 1)
            sequence.num_computed_tokens = computed = item.end - item.num_draft_tokens + num_accepted
            self._cache.truncate(seq_id, computed)
            if self._emit:
                drafts = tuple(item.token_ids[-item.num_draft_tokens :])
                texts = sampled.draft_texts.get(seq_id, ())
                verified.append(VerifiedDrafts(seq_id, drafts, num_accepted, texts))
        if self._emit:
            self._emit(DraftsVerified(tuple(verified)))

    def end(self, ended: dict[int, Finish], changes: StepChanges, time: float) -> None:
        """Sequences end, and requests with the last of theirs; a static batch leaves only as a whole."""
        for request_id in dict.fromkeys(self._state.sequences[seq_id].request_id for seq_id in ended):
            request = self._requests[request_id]
            for sequence in tuple(request.sequences):
                finish = ended.get(sequence.seq_id)
                if finish is None:
                    continue
                if len(request.sequences) > 1:
                    self.drop(request, sequence, finish, time)
                    continue
                request.finish = finish
                changes.finished.append(request)
                if self._policy.releases_together:
                    self._state.park(request, RequestStatus(finish.reason))
                else:
                    self._release(request, changes, time)
        for request in self._state.take_completed_batch():
            self._release(request, changes, time)

    def _release(self, request: Request, changes: StepChanges, time: float) -> None:
        assert request.finish is not None
        del self._requests[request.request_id]
        self.remove(request, request.finish, time)
        changes.released.append(request)

    def remove(self, request: Request, finish: Finish, time: float) -> None:
        """A request leaves, with its last sequence."""
        sequence = request.sequences[0]
        self._state.remove(request, RequestStatus(finish.reason))
        self._cache.free(sequence.seq_id)
        self._emit_finished(sequence, finish, time)

    def drop(self, request: Request, sequence: TokenSequence, finish: Finish, time: float) -> None:
        """A sequence ends, others of its request may go on."""
        request.sequences.remove(sequence)
        del self._state.sequences[sequence.seq_id]
        self._cache.free(sequence.seq_id)
        self._emit_finished(sequence, finish, time)

    def _emit_finished(self, sequence: TokenSequence, finish: Finish, time: float) -> None:
        if self._emit:
            self._emit(SequenceFinished(sequence.seq_id, finish.reason, time, finish.stop))
