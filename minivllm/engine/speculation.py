"""Speculation in the engine: which sequences get drafts in a step, and how many.

    propose ──► drafts of sequences ──► plan_step ──► complete ──► execute ──► accepted, rejected
       │                                    │             │
       what decodes, and is there room?     cuts          a draft model computes its own

A sequence that decodes may have drafts, and so may every output of a request with several. While a prompt or
a preempted request catches up there is nothing to guess. Drafts take what is left of the step's budget when
every running sequence has its token. How many are worth their price is measured (`draft_length.py`): in a
large batch the processor has enough to do without them, and where guesses are mostly wrong they do not pay,
either. With `disable_by_batch_size` the user decides it. What a draft model draws at random is left alone
by measured times: there the number of drafts would decide which token is drawn. Drafts that a structure does
not allow are cut off before they cost anything.

Read next: `minivllm/decoding/speculation/proposer.py`.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from minivllm.decoding.speculation.draft_length import DraftLength
from minivllm.decoding.speculation.proposer import UNKNOWN, Completed, Proposer
from minivllm.scheduling.request import NO_DRAFTS, Sequence

if TYPE_CHECKING:
    from minivllm.decoding.parallel_sampling import SampleSlot
    from minivllm.decoding.structured.progress import Progress
    from minivllm.engine.core import EngineCore
    from minivllm.engine.request_state import RequestState
    from minivllm.model.tokenizer import Tokenizer
    from minivllm.scheduling.plan import StepPlan


class Speculation:
    """Lets a proposer guess, within the limits of a step.

    Args:
        proposer: where drafts come from.
        num_tokens: most drafts of one sequence in one step.
        max_sequences: with more running sequences than that there are no drafts; None sets no limit.
        length: measures how many are worth it; None takes as many as there may be.
    """

    def __init__(
        self,
        proposer: Proposer,
        num_tokens: int,
        max_sequences: int | None = None,
        length: DraftLength | None = None,
    ) -> None:
        self.proposer = proposer
        self.num_tokens = num_tokens
        self.max_sequences = max_sequences
        self.length = length
        self._drafted: list[Sequence] = []
        """The sequences that have drafts."""

    def propose(self, core: EngineCore, requests: Mapping[str, RequestState]) -> None:
        """Give drafts to the sequences that will decode in the next step, if they run on."""
        running = core.state.running
        num_sequences = sum(len(request.sequences) for request in running.values())
        room = core.config.max_num_batched_tokens - num_sequences
        if self.max_sequences is not None and num_sequences > self.max_sequences:
            room = 0
        worth_it = self.num_tokens
        if self.length is not None and num_sequences:
            worth_it = self.length.choose(num_sequences, self.num_tokens)
        self.proposer.forget_others(core.state.sequences)
        for sequence in self._drafted:
            sequence.draft_token_ids = NO_DRAFTS
        self._drafted.clear()
        if room <= 0 or not (worth_it or self.proposer.draws_by_law):
            return
        for request in running.values():
            state = requests.get(request.request_id)
            if state is None:  # it is over, and stays until a plan in flight is finished
                continue
            sampling = state.sampling
            for sequence in request.sequences:
                if room <= 0 or sampling is None or sequence.num_uncomputed_tokens != 1:
                    continue
                if sequence.num_pending_tokens:  # it is held, until they are known
                    continue
                if request.status.is_finished:  # parked until its batch is done
                    continue
                output = sampling.by_sequence.get(sequence.seq_id)
                # The last token of an output is never computed, so nothing can follow it.
                missing = request.max_total_tokens - len(sequence.token_ids) - 1
                if output is None or missing <= 0:
                    continue
                is_drawn = self.proposer.draws_by_law and not output.sampling.is_greedy
                limit = min(self.num_tokens if is_drawn else worth_it, room, missing)
                if not limit:
                    continue
                drafts = self.proposer.propose(sequence, limit)
                if output.sampling.structure and drafts and drafts[0] != UNKNOWN:
                    drafts = _allowed(drafts, output.sampling.structure)
                if drafts:
                    sequence.draft_token_ids = drafts
                    self._drafted.append(sequence)
                    room -= len(drafts)

    def complete(
        self, plan: StepPlan, sequences: Mapping[int, Sequence], requests: Mapping[str, RequestState]
    ) -> Completed:
        """Let the proposer compute what it only promised."""
        states = {}
        for item in plan.scheduled:
            if item.num_draft_tokens:
                sampling = requests[sequences[item.seq_id].request_id].sampling
                assert sampling is not None, "beams have no drafts"
                states[item.seq_id] = sampling.by_sequence[item.seq_id].sampling
        return self.proposer.complete(plan, sequences, states)

    def note(self, plan: StepPlan, slots: Iterable[SampleSlot], seconds: float, draft_seconds: float) -> None:
        """A step is over: what became of its drafts, and how long it took without them and for them."""
        if self.length is None:
            return
        num_rows, longest = len(plan.scheduled), 0
        if drafted := [item for item in plan.scheduled if item.num_draft_tokens]:
            tokens = Counter(slot.parent.seq_id for slot in slots)
            longest = max(item.num_draft_tokens for item in drafted)
            num_rows += sum(item.num_draft_tokens for item in drafted)
            for item in drafted:
                if tokens[item.seq_id]:
                    self.length.note_drafts(item.num_draft_tokens, tokens[item.seq_id] - 1)
        if num_rows == plan.total_num_scheduled_tokens:  # no chunk of a prompt was computed with them
            self.length.note_step(num_rows, seconds, draft_seconds / longest if longest else 0.0)

    def texts(self, plan: StepPlan, tokenizer: Tokenizer | None) -> dict[int, tuple[str, ...]]:
        """The texts of all drafts of a plan, for the trace."""
        if tokenizer is None:
            return {}
        return {
            item.seq_id: tuple(map(tokenizer.token_text, item.token_ids[-item.num_draft_tokens :]))
            for item in plan.scheduled
            if item.num_draft_tokens
        }


def _allowed(drafts: array[int], structure: Progress) -> array[int]:
    """The drafts up to the first that the structure does not allow."""
    for count, token_id in enumerate(drafts):
        if structure.is_over or structure.mask().struck_out[token_id]:
            return drafts[:count]
        structure = structure.after(token_id)
    return drafts
