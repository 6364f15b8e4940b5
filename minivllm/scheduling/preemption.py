"""Preemption: a running request gives up its slot and its blocks, and waits again.

It keeps its tokens and its place in the order, so what it says in the end is the same. What becomes of its
blocks is a choice:

    recompute   the blocks are freed, and the tokens are computed again when it is admitted again
    swap        the blocks move to the host's memory, and back; all sequences of a request, or none

Source: Kwon et al. (SOSP 2023), section 4.5. Read next: `minivllm/memory/swap_space.py`; `ranking.py` for
which request is preempted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from minivllm.config import SchedulerConfig
from minivllm.memory.cache_manager import CacheManager
from minivllm.scheduling.batch_state import BatchState
from minivllm.scheduling.ranking import Ranking
from minivllm.scheduling.request import NO_DRAFTS, Request
from minivllm.trace.events import Event, RequestPreempted

logger = logging.getLogger(__name__)


class Preemption:
    """Chooses requests to preempt, and preempts them.

    Args:
        mode: "recompute" or "swap" (`SchedulerConfig.preemption_mode`).
    """

    def __init__(
        self,
        config: SchedulerConfig,
        state: BatchState,
        cache: CacheManager,
        ranking: Ranking,
        emit: Callable[[Event], None] | None,
    ) -> None:
        self.config = config
        self.state = state
        self.cache = cache
        self.ranking = ranking
        self._emit = emit

    def candidates(self, request: Request, touched: Collection[str]) -> list[Request]:
        """The running requests that rank behind `request` and are not in the plan yet; the last one last."""
        own = self.ranking.key(request)
        keyed = [
            (key, other)
            for other in self.state.running.values()
            if other is not request
            and other.request_id not in touched
            and not other.status.is_finished
            and (key := self.ranking.key(other)) > own
        ]
        return [other for _, other in sorted(keyed, key=lambda pair: pair[0])]

    def preempt(self, request: Request, preempting: Request | None = None, shortage: str = "blocks") -> None:
        """Take a running request out of the batch, for the sake of the request `preempting`.

        Raises:
            PolicyError: the policy failed to rank it; nothing has changed.
        """
        rank = self.ranking.rank(request)
        mode, reason = self.config.preemption_mode, ""
        if mode == "swap":
            swapped = self.cache.swap_out([sequence.seq_id for sequence in request.sequences])
            if not swapped.is_done:
                mode, reason = "recompute", swapped.reason
                logger.warning("request %s is recomputed instead of swapped: %s", request.request_id, reason)
        request.rank = rank
        self._requeue(request, mode, reason, preempting.request_id if preempting else "", shortage)

    def restart(self, request: Request, reason: str) -> None:
        """Let a running request begin again with nothing computed, because its step failed."""
        self._requeue(request, "recompute", reason, "", "blocks")

    def drop_cache(self, request: Request) -> int:
        """Free all blocks of a request; returns the number of tokens that must be computed again."""
        lost = sum(sequence.num_computed_tokens for sequence in request.sequences)
        for sequence in request.sequences:
            self.cache.free(sequence.seq_id)
            sequence.num_computed_tokens = sequence.num_pending_tokens = 0
        return lost

    def _requeue(self, request: Request, mode: str, reason: str, preempting: str, shortage: str) -> None:
        lost = self.drop_cache(request) if mode == "recompute" else 0
        for sequence in request.sequences:
            sequence.draft_token_ids = NO_DRAFTS
        request.num_preemptions += 1
        self.state.preempt(request, self.ranking.last_key(request))
        if self._emit:
            self._emit(RequestPreempted(request.request_id, mode, lost, reason, preempting, shortage))
