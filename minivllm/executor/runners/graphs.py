"""CUDA graphs for decoding: a step recorded once, and replayed with other numbers in the same places.

A decode step of a small model is some hundred short kernels, and telling the device about each takes the
host longer than the device needs for it. A graph tells it about all of them at once. The price: everything is
where it was when it was recorded, so the step has a fixed size and fixed memory.

    sizes 1, 2, 4, 8, 16, 24, …      a step of 13 sequences runs as one of 16: three places are empty
    an empty place                    slot -1 (nothing is written), length 0 (nothing is read)

    plan ──► metadata ──► copied into the tensors of that size ──► replay ──► logits of the first 13

A size is recorded when it is first needed. Steps with prompts in them have no fixed size: the eager runner
computes them.

Source: vLLM's `cudagraph_capture_sizes`; NVIDIA, CUDA C++ Programming Guide, "CUDA Graphs".
Read next: `minivllm/executor/attention/kernel_backend.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from minivllm.executor.attention.kernel_backend import KernelAttention
from minivllm.executor.attention.metadata import AttentionMetadata
from minivllm.executor.runners.model_runner import ModelRunner
from minivllm.model.decoder import Decoder

Replay = Callable[[], Tensor]
"""Computes the step again, from what is in its tensors now; the logits are always the same tensor."""
SMALL_SIZES = (1, 2, 4)
SIZE_STEP = 8
MAX_SEQUENCES = 256
WARM_UPS = 2
"""Runs before recording: kernels must be compiled, and libraries have their workspaces."""


class GraphRunner(ModelRunner):
    """Decode steps, recorded by size. A replay is one piece: `attention_seconds` stays 0.

    Args:
        max_blocks: of the longest block table.
        max_sequences: of a step; larger ones are not supported.
        capture: makes a replay from a function that computes the step; CUDA's recording if None.
    """

    def __init__(
        self,
        decoder: Decoder,
        attention: KernelAttention,
        *,
        max_blocks: int,
        max_sequences: int,
        capture: Callable[[Replay], Replay] | None = None,
    ) -> None:
        self.decoder = decoder
        self.attention = attention
        self.max_blocks = max_blocks
        self.sizes = graph_sizes(min(max_sequences, MAX_SEQUENCES))
        self._capture = capture or capture_cuda_graph
        self._recorded: dict[int, tuple[StaticStep, Replay]] = {}
        self._has_windows = any(window is not None for window in decoder.config.layer_windows)

    def supports(self, metadata: AttentionMetadata, num_padding: int) -> bool:
        """Steps in which every sequence computes one token and wants its logits, up to the largest size."""
        return (
            not self._has_windows
            and not num_padding
            and metadata.is_decode
            and metadata.num_sequences <= self.sizes[-1]
            and metadata.block_tables.shape[1] <= self.max_blocks
        )

    def run(self, metadata: AttentionMetadata, num_padding: int) -> Tensor:
        count = metadata.num_sequences
        size = next(size for size in self.sizes if size >= count)
        if size not in self._recorded:
            self._recorded[size] = self._record(size)
        step, replay = self._recorded[size]
        step.fill(metadata)
        return replay()[:count].clone()

    def _record(self, size: int) -> tuple[StaticStep, Replay]:
        step = StaticStep(size, self.max_blocks, self.decoder.embedding.device)

        def forward() -> Tensor:
            self.attention.begin_static(step.slots, step.tables, step.lengths)
            hidden = self.decoder.forward(step.token_ids, step.positions, self.attention)
            return self.decoder.compute_logits(hidden)

        return step, self._capture(forward)


class StaticStep:
    """The inputs of a decode step of `size` sequences, in memory that stays where it is."""

    def __init__(self, size: int, max_blocks: int, device: torch.device) -> None:
        self.size = size
        self.token_ids = torch.zeros(size, dtype=torch.int64, device=device)
        self.positions = torch.zeros(size, dtype=torch.int64, device=device)
        self.slots = torch.full((size,), -1, dtype=torch.int32, device=device)
        self.tables = torch.zeros(size, max_blocks, dtype=torch.int32, device=device)
        self.lengths = torch.zeros(size, dtype=torch.int32, device=device)

    def fill(self, metadata: AttentionMetadata) -> None:
        """Copy a step in; places that it does not need become empty."""
        count, width = metadata.block_tables.shape
        for target, values, empty in (
            (self.token_ids, metadata.token_ids, 0),
            (self.positions, metadata.positions, 0),
            (self.slots, metadata.slot_mapping, -1),
            (self.lengths, metadata.context_lens, 0),
        ):
            whole = np.full(self.size, empty, np.int64)
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


def graph_sizes(most: int) -> tuple[int, ...]:
    """Sizes of steps, so that no step of up to `most` sequences has to be much larger than it is."""
    sizes = [size for size in SMALL_SIZES if size < most]
    sizes += range(SIZE_STEP, most, SIZE_STEP)
    return (*sizes, most)
