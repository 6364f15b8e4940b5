"""A draft model: a small model guesses what a large one will say, token by token, before each of its steps.

    target's plan    … t │ ? ? ?       one token, and three drafts that are not known yet
    draft model      … t → a           a pass for each: all sequences that have drafts at once
                         a → b
                             b → c     c is drawn, and not computed
    target's step    … t │ a b c       four rows of logits

It keeps keys and values of its own in a storage with as many blocks as the target's, and finds them by the
*same block tables*: so what the memory manager does for the target, copies on write, swaps, shared prefixes,
it does for both, and a block that the plan moves is moved in both storages.

It computes only what it needs: `computed` catches up with tokens by the rule of the house, block by block.
When a sequence gets its first drafts, the draft model reads its prompt; steps without drafts cost it
nothing. What a step writes anew is not computed by this model until then, so drafts that were rejected are
forgotten in the same way.

Source: Leviathan et al. (ICML 2023); Chen et al., "Accelerating Large Language Model Decoding with
Speculative Sampling" (2023). Read next: `minivllm/decoding/speculation/verify_drafts.py`, where its drafts
are judged.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from minivllm.decoding.finite_logits import NotFiniteError
from minivllm.decoding.sampler import Sampler
from minivllm.decoding.sampling_state import SamplingState
from minivllm.decoding.speculation.proposer import UNKNOWN, Completed
from minivllm.decoding.speculation.rejection import draw
from minivllm.executor.attention.choose import BackendFactory
from minivllm.executor.attention.metadata import build_metadata, one_token_each
from minivllm.executor.batch_invariance import invariant
from minivllm.executor.block_mover import BlockMover
from minivllm.executor.cpu_hazards import guard_step
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.runners.choose import choose_runner
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.memory.block_move import BlockMove
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.model.hub import ModelNotFoundError, resolve_model
from minivllm.model.load import load_decoder
from minivllm.scheduling.plan import ScheduledSequence, StepPlan
from minivllm.scheduling.request import Sequence as TokenSequence

MAX_PASS_TOKENS = 2048
"""Tokens that one pass catches up with, at most."""
NO_TOKEN = 0
"""The draft where a draft model can say nothing: a guess like any other."""


@dataclass
class _Guess:
    """A sequence whose drafts are being made."""

    item: ScheduledSequence
    state: SamplingState
    first: int = 0
    """Position from which on this step computes."""
    token_ids: list[int] = field(default_factory=list)
    laws: list[Any] = field(default_factory=list)


class DraftModel:
    """A `Proposer` that computes its drafts.

    Args:
        decoder: with the target's vocabulary.
        storage, host_storage: with as many blocks as the target's, of the same size.
        backend: makes its attention.
        batch_invariant: a draft does not depend on what else is guessed, either: of greedy requests it would
            only be accepted or not, but what is drawn depends on the law that a draft was drawn from.
    """

    draws_by_law = True

    def __init__(
        self,
        decoder: Decoder,
        storage: KVStorage,
        backend: BackendFactory,
        host_storage: KVStorage | None = None,
        *,
        enforce_eager: bool = False,
        max_num_seqs: int = 128,
        max_model_len: int | None = None,
        batch_invariant: bool = False,
    ) -> None:
        self.decoder = decoder
        self.storage = storage
        self.sampler = Sampler(decoder.config.vocab_size)
        self.mover = BlockMover(storage, host_storage)
        self.runner = choose_runner(
            decoder,
            (invariant(backend) if batch_invariant else backend)(decoder.config, storage),
            enforce_eager=enforce_eager,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            batch_invariant=batch_invariant,
        )
        self._filled = np.zeros(storage.num_blocks, np.int64)
        """Of each block, tokens at its beginning whose keys and values are this model's."""
        self._host_filled = np.zeros(host_storage.num_blocks if host_storage else 0, np.int64)
        self._is_on_cpu = decoder.embedding.device.type == "cpu"

    @classmethod
    def beside(
        cls,
        target: TorchExecutor,
        path: str | Path,
        backend: BackendFactory,
        *,
        enforce_eager: bool = False,
        max_num_seqs: int = 128,
        max_model_len: int | None = None,
        batch_invariant: bool = False,
    ) -> DraftModel:
        """Load a draft model for a target, in its type and on its device.

        Raises:
            ValueError: it cannot speak for the target, and why.
        """
        config = check_draft_model(path, target.config, max_model_len)
        dtype, device = target.decoder.dtype, target.device
        kind = target.storage.block_size, dtype
        host = target.host_storage
        return cls(
            load_decoder(resolve_model(path), config, dtype, device),
            KVStorage(config, target.storage.num_blocks, *kind, device),
            backend,
            KVStorage(config, host.num_blocks, *kind, torch.device("cpu")) if host else None,
            enforce_eager=enforce_eager,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            batch_invariant=batch_invariant,
        )

    def propose(self, sequence: TokenSequence, limit: int) -> array[int]:
        """As many as are allowed: they are computed when there is a plan, and blocks for them."""
        return array("i", [UNKNOWN]) * limit

    def forget_others(self, sequences: Mapping[int, TokenSequence]) -> None:
        """Nothing is kept of a sequence but what lies in its blocks."""

    @torch.inference_mode()
    def complete(
        self, plan: StepPlan, sequences: Mapping[int, TokenSequence], states: Mapping[int, SamplingState]
    ) -> Completed:
        """Follow the plan's moves, catch up with the sequences that have drafts, and make the drafts."""
        if plan.moves:
            self.mover.carry_out(plan.moves)
            for move in plan.moves:
                self._note_move(move)
        for item in plan.scheduled:
            self._note_written(item)
        guesses = [_Guess(item, states[item.seq_id]) for item in plan.scheduled if item.num_draft_tokens]
        if not guesses:
            return Completed(plan, {})
        with guard_step(torch.get_num_threads()) if self._is_on_cpu else nullcontext():
            self._guess_all(guesses, sequences)
        for guess in guesses:
            # Drafts are counted, too, but for the last: the next step writes anew those that are rejected.
            self._note_computed(guess.item, guess.first, guess.item.start + guess.item.num_draft_tokens)
        known = {guess.item.seq_id: guess for guess in guesses}
        items = tuple(
            _with_drafts(item, known[item.seq_id].token_ids) if item.num_draft_tokens else item
            for item in plan.scheduled
        )
        laws = {seq_id: g.laws for seq_id, g in known.items() if any(law is not None for law in g.laws)}
        return Completed(msgspec.structs.replace(plan, scheduled=items), laws)

    # ── what lies in the blocks ───────────────────────────────────────────────────────────────────────

    def _note_move(self, move: BlockMove) -> None:
        source = self._host_filled if move.kind == "swap_in" else self._filled
        target = self._host_filled if move.kind == "swap_out" else self._filled
        target[move.target] = source[move.source]

    def _note_written(self, item: ScheduledSequence) -> None:
        """The step writes from `start` on: what this model had there is of other tokens, if of any."""
        size = self.storage.block_size
        first, offset = divmod(item.start, size)
        block = item.block_table[first]
        if self._filled[block] > offset:
            self._filled[block] = offset
        for block in item.block_table[first + 1 : -(-item.end // size)]:
            self._filled[block] = 0

    def _first_missing(self, item: ScheduledSequence) -> int:
        """The first position before `start` that this model has not computed; else `start`."""
        size = self.storage.block_size
        whole, rest = divmod(item.start, size)
        blocks = np.frombuffer(item.block_table, np.intc)[: whole + (rest > 0)]
        filled = self._filled[blocks]
        lacking = filled[:whole] < size
        if lacking.any():
            place = int(lacking.argmax())
            return place * size + int(filled[place])
        return whole * size + min(int(filled[whole]), rest) if rest else item.start

    def _note_computed(self, item: ScheduledSequence, first: int, end: int) -> None:
        size = self.storage.block_size
        for place in range(first // size, -(-end // size)):
            self._filled[item.block_table[place]] = min(size, end - place * size)

    # ── passes ────────────────────────────────────────────────────────────────────────────────────────

    def _guess_all(self, guesses: list[_Guess], sequences: Mapping[int, TokenSequence]) -> None:
        """One draft for each sequence a pass, until all have theirs."""
        parts = []
        for guess in guesses:
            item = guess.item
            tokens = sequences[item.seq_id].token_ids
            guess.first = first = self._catch_up(item, tokens)
            parts.append(
                ScheduledSequence(item.seq_id, first, tokens[first : item.start + 1], item.block_table, 1)
            )
        metadata = build_metadata(StepPlan(0, tuple(parts)), self.storage.block_size)
        self._choose(guesses, self.runner.run(metadata, 0))
        tables = metadata.block_tables
        positions = metadata.context_lens - 1
        is_plain = all(guess.state.is_plain_greedy for guess in guesses)
        while True:
            missing = np.array([guess.item.num_draft_tokens - len(guess.token_ids) for guess in guesses])
            if not missing.all():
                if not missing.any():
                    return
                going_on = missing > 0
                guesses = [guess for guess, goes_on in zip(guesses, going_on, strict=True) if goes_on]
                tables, positions, missing = tables[going_on], positions[going_on], missing[going_on]
            last = np.array([guess.token_ids[-1] for guess in guesses], np.int64)
            metadata = one_token_each(last, positions + 1, tables, self.storage.block_size)
            count = int(missing.min()) if is_plain else 1
            positions = positions + count
            if is_plain:
                found = self.runner.continue_greedily(metadata, count, self.storage.block_size)
                for guess, tokens in zip(guesses, found.T.tolist(), strict=True):
                    guess.token_ids += tokens
                    guess.laws += [None] * count
            else:
                self._choose(guesses, self.runner.run(metadata, 0))

    def _catch_up(self, item: ScheduledSequence, tokens: array[int]) -> int:
        """Compute what is missing but for the last few tokens; returns the first of those."""
        first, size = self._first_missing(item), self.storage.block_size
        while item.start + 1 - first > size:
            end = min(item.start + 1 - size, first + MAX_PASS_TOKENS)
            part = ScheduledSequence(item.seq_id, first, tokens[first:end], item.block_table, 0)
            self.runner.run(build_metadata(StepPlan(0, (part,)), size), 0)
            self._note_computed(item, first, end)
            first = end
        return first

    def _choose(self, guesses: Sequence[_Guess], logits: Tensor) -> None:
        """One more draft for each: the likeliest token of the greedy, a draw for all others."""
        states = [guess.state.ahead(guess.token_ids) for guess in guesses]
        rows = [row for row, state in enumerate(states) if state.is_greedy]
        for row, token in zip(rows, self._likeliest(logits, rows, states), strict=True):
            guesses[row].token_ids.append(token)
            guesses[row].laws.append(None)
        for row, state in enumerate(states):
            if state.is_greedy:
                continue
            try:
                (law,) = self.sampler.laws(logits[row : row + 1], [state])
                token = draw(law, state.next_draft_uniforms()[0])
            except NotFiniteError:
                law, token = None, NO_TOKEN
            guesses[row].token_ids.append(token)
            guesses[row].laws.append(law)

    def _likeliest(self, logits: Tensor, rows: list[int], states: list[SamplingState]) -> list[int]:
        if not rows:
            return []
        wanted = logits if len(rows) == len(logits) else logits[rows]
        try:
            return [token.token_id for token in self.sampler.sample(wanted, [states[row] for row in rows])]
        except NotFiniteError:
            return [self._likeliest_of(logits[row : row + 1], states[row]) for row in rows]

    def _likeliest_of(self, logits: Tensor, state: SamplingState) -> int:
        try:
            return self.sampler.sample(logits, [state])[0].token_id
        except NotFiniteError:
            return NO_TOKEN


def check_draft_model(path: str | Path, target: ModelConfig, max_model_len: int | None = None) -> ModelConfig:
    """The configuration of a draft model; `ValueError` unless it has the target's vocabulary and length."""
    name = "speculative_config['model']"
    try:
        folder = resolve_model(path)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{name}: {str(error).removeprefix('model: ')}") from None
    config = ModelConfig.from_folder(folder)
    if config.vocab_size != target.vocab_size:
        raise ValueError(
            f"{name} must have the target's vocabulary of {target.vocab_size:,} tokens; "
            f"{str(path)!r} has {config.vocab_size:,}"
        )
    wanted = target.check_max_model_len(max_model_len)
    if config.max_model_len < wanted:
        raise ValueError(
            f"{name} must read texts of max_model_len ({wanted:,}) tokens; {str(path)!r} reads "
            f"{config.max_model_len:,}"
        )
    return config


def _with_drafts(item: ScheduledSequence, drafts: list[int]) -> ScheduledSequence:
    known = item.token_ids[: -item.num_draft_tokens]
    return msgspec.structs.replace(item, token_ids=known + array("i", drafts))
