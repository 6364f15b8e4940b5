"""One rank at work: its share of a decoder over its share of the KV cache.

Every rank gets every plan. It moves the same blocks and computes the same tokens as all others, of its own
parts and layers; block 7 is block 7 everywhere. Only rank 0 has logits in the end.

    plan ──► BlockMover ──► build_metadata ──► EagerRunner(ShardedDecoder, attention) ──► logits, or nothing
                                                        │
                                                  peers: sums, lookups, hidden states

Read next: `minivllm/model/parallel/sharded_decoder.py`, `worker.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from minivllm.executor.attention.choose import backend_factory
from minivllm.executor.attention.metadata import build_metadata
from minivllm.executor.batch_invariance import invariant
from minivllm.executor.block_mover import BlockMover
from minivllm.executor.cpu_hazards import guard_step
from minivllm.executor.distributed.fixed_rows import ROWS, check_rows, in_pieces
from minivllm.executor.distributed.heartbeat import COMPUTING, IDLE, Activity
from minivllm.executor.distributed.messages import CacheSizes, RankSettings
from minivllm.executor.kv_format import scales_of_layers
from minivllm.executor.quantized_storage import make_storage, twin_of
from minivllm.executor.runners.eager import EagerRunner
from minivllm.executor.runners.row_groups import in_groups
from minivllm.model.config import ModelConfig
from minivllm.model.hub import resolve_model
from minivllm.model.parallel.layout import share_of
from minivllm.model.parallel.load import load_share
from minivllm.model.parallel.peers import Peers
from minivllm.model.parallel.sharded_decoder import ShardedDecoder
from minivllm.scheduling.plan import StepPlan
from minivllm.trace.rank_spans import RankSpans

Result = TypeVar("Result")


class RankExecutor:
    """Carries out plans, of one rank's share. See `Executor` for the contract."""

    def __init__(self, decoder: ShardedDecoder, settings: RankSettings, sizes: CacheSizes) -> None:
        config, device = decoder.config, decoder.embedding.device
        attention_backend = settings.attention_backend
        self.decoder = decoder
        self.storage = make_storage(
            config,
            sizes.num_blocks,
            settings.block_size,
            decoder.dtype,
            device,
            settings.kv_cache_dtype,
            scales_of_layers(settings.kv_cache_dtype, decoder.kv_scales),
        )
        self.host_storage = None
        if sizes.num_host_blocks:
            self.host_storage = twin_of(self.storage, config, sizes.num_host_blocks, torch.device("cpu"))
        self.mover = BlockMover(self.storage, self.host_storage)
        factory, self._is_invariant = backend_factory(attention_backend), settings.batch_invariant
        if self._is_invariant:
            factory = invariant(factory)
            check_rows(decoder)
        self.attention = factory(config, self.storage)
        if attention_backend == "numba-cpu":
            self._compile()
        self.runner = EagerRunner(decoder, self.attention)
        self.last_attention_seconds = 0.0
        self.spans: RankSpans | None = None
        self.activity = Activity()
        self._is_on_cpu = device.type == "cpu"
        logits_type = torch.float64 if decoder.dtype == torch.float64 else torch.float32
        self._no_logits = torch.empty(0, decoder.share.config.vocab_size, dtype=logits_type, device=device)

    def _compile(self) -> None:
        from minivllm.executor.attention.numba_cpu_backend import NumbaCpuAttention

        assert isinstance(self.attention, NumbaCpuAttention)
        self.attention.compile()

    def execute(self, plan: StepPlan) -> Tensor:
        """On rank 0 logits `[sum of num_logits, vocab_size]`; elsewhere nothing that matters."""
        return self._noting(plan, lambda: self.logits_of(self._forward(plan)))

    def begin(self, plan: StepPlan) -> Tensor | None:
        """The same without waiting for logits: `logits_of` what this returns, perhaps in another thread."""
        return self._noting(plan, lambda: self._forward(plan))

    @torch.inference_mode()
    def logits_of(self, hidden: Tensor | None) -> Tensor:
        """The end of a step."""
        if hidden is None:
            return self._no_logits
        if self._is_invariant:
            return in_groups(ROWS, self.decoder.compute_logits, hidden)
        return self.decoder.compute_logits(hidden)

    def _noting(self, plan: StepPlan, work: Callable[[], Result]) -> Result:
        self.activity.step = plan.step
        self.activity.begin(COMPUTING)
        began = perf_counter()
        result = work()
        if self.spans is not None:
            self.spans.note_step(plan.step, began, perf_counter())
        self.activity.begin(IDLE)
        return result

    @torch.inference_mode()
    def _forward(self, plan: StepPlan) -> Tensor | None:
        """Hidden states of the tokens that logits are wanted for; None if no token is computed."""
        with guard_step(torch.get_num_threads()) if self._is_on_cpu else nullcontext():
            if plan.moves:
                self.mover.carry_out(plan.moves)
            self.last_attention_seconds = 0.0
            if not plan.scheduled:
                return None
            if self._is_invariant:
                return torch.cat([self._forward_piece(piece) for piece in in_pieces(plan)])
            return self._forward_piece(plan)

    def _forward_piece(self, plan: StepPlan) -> Tensor:
        metadata = build_metadata(plan, self.storage.block_size)
        hidden = self.runner.forward(metadata, plan.num_padding_tokens)
        self.last_attention_seconds += self.attention.seconds
        return hidden


def load_rank(settings: RankSettings, rank: int, device: torch.device, peers: Peers) -> ShardedDecoder:
    """A rank's weights, read from where this machine has the model.

    Raises:
        ValueError: the folder's files are not what they promise.
    """
    config = ModelConfig.from_folder(folder := resolve_model(settings.model))
    share = share_of(config, settings.grid, rank, settings.num_parts)
    return load_share(folder, share, getattr(torch, settings.dtype), device, peers, settings.quantization)
