"""CUDA graphs for decoding: a step recorded once, and replayed with other numbers in the same places.

A decode step of a small model is some hundred short kernels, and telling the device about each takes the
host longer than the device needs for it. A graph tells it about all of them at once. The price: everything is
where it was when it was recorded, so the step has a fixed size and fixed memory.

    sizes 1, 2, 4, 8, 16, 24, …      a step of 13 sequences runs as one of 16: three are nobody
    nobody                            slot -1 (nothing is written), length 0 (nothing is read)

    plan ──► metadata ──► copied into the tensors of that size ──► replay ──► logits of the first 13

A size is recorded when it is first needed. Steps with prompts in them are as long as they are, and are
computed as always.

Source: vLLM's `cudagraph_capture_sizes`; NVIDIA, CUDA C++ Programming Guide, "CUDA Graphs".
Read next: `attention/kernel_backend.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from minivllm.executor.attention.kernel_backend import KernelAttention
from minivllm.executor.attention.metadata import AttentionMetadata
from minivllm.model.decoder import Decoder

Replay = Callable[[], Tensor]
"""Computes the step again, from what is in its tensors now; the logits are always the same tensor."""
SMALL_SIZES = (1, 2, 4)
SIZE_STEP = 8
MOST_SEQUENCES = 256
WARM_UPS = 2
"""Runs before recording: kernels must be compiled, and libraries have their workspaces."""


class StaticStep:
    """The inputs of a decode step of `size` sequences, in memory that stays where it is."""

    def __init__(self, size: int, most_blocks: int, device: torch.device) -> None:
        self.size = size
        self.token_ids = torch.zeros(size, dtype=torch.int64, device=device)
        self.positions = torch.zeros(size, dtype=torch.int64, device=device)
        self.slots = torch.full((size,), -1, dtype=torch.int32, device=device)
        self.tables = torch.zeros(size, most_blocks, dtype=torch.int32, device=device)
        self.lengths = torch.zeros(size, dtype=torch.int32, device=device)

    def fill(self, metadata: AttentionMetadata) -> None:
        """Put a step in; places that it does not need are nobody's."""
        count, width = metadata.block_tables.shape
        for target, values, nobody in (
            (self.token_ids, metadata.token_ids, 0),
            (self.positions, metadata.positions, 0),
            (self.slots, metadata.slot_mapping, -1),
            (self.lengths, metadata.context_lens, 0),
        ):
            whole = np.full(self.size, nobody, np.int64)
            whole[:count] = values
            target.copy_(torch.from_numpy(whole))
        self.tables[:count, :width].copy_(torch.from_numpy(metadata.block_tables))


def capture_cuda_graph(forward: Replay) -> Replay:
    """Record what `forward` asks of the device."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = forward()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


class DecodeGraphs:
    """Decode steps, recorded by size.

    Args:
        most_blocks: of the longest block table.
        most_sequences: of a step; larger ones are computed as always.
        capture: makes something that can be replayed from a function that computes the step.
    """

    def __init__(
        self,
        decoder: Decoder,
        attention: KernelAttention,
        *,
        most_blocks: int,
        most_sequences: int,
        capture: Callable[[Replay], Replay] = capture_cuda_graph,
    ) -> None:
        self.decoder = decoder
        self.attention = attention
        self.most_blocks = most_blocks
        self.sizes = graph_sizes(min(most_sequences, MOST_SEQUENCES))
        self._capture = capture
        self._recorded: dict[int, tuple[StaticStep, Replay]] = {}
        self._has_windows = any(window is not None for window in decoder.config.layer_windows)

    attention_seconds = 0.0
    """Nobody can look into a replay."""

    def covers(self, metadata: AttentionMetadata, num_padding: int = 0) -> bool:
        """Does everybody decode one token, wants to know what comes next, and is there a size for them?"""
        return (
            not self._has_windows
            and not num_padding
            and metadata.is_decode
            and metadata.num_sequences <= self.sizes[-1]
            and metadata.block_tables.shape[1] <= self.most_blocks
        )

    def run(self, metadata: AttentionMetadata, num_padding: int = 0) -> Tensor:
        """Logits [S, vocab_size] of a step that `covers` has said yes to."""
        count = metadata.num_sequences
        size = next(size for size in self.sizes if size >= count)
        if size not in self._recorded:
            self._recorded[size] = self._record(size)
        step, replay = self._recorded[size]
        step.fill(metadata)
        return replay()[:count].clone()

    def _record(self, size: int) -> tuple[StaticStep, Replay]:
        step = StaticStep(size, self.most_blocks, self.decoder.embedding.device)

        def forward() -> Tensor:
            self.attention.begin_static(step.slots, step.tables, step.lengths)
            hidden = self.decoder.forward(step.token_ids, step.positions, self.attention)
            return self.decoder.compute_logits(hidden)

        return step, self._capture(forward)


def graph_sizes(most: int) -> tuple[int, ...]:
    """Sizes of steps, so that no step of up to `most` sequences has to be much larger than it is."""
    sizes = [size for size in SMALL_SIZES if size < most]
    sizes += range(SIZE_STEP, most, SIZE_STEP)
    return (*sizes, most)
