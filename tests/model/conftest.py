"""Tiny random checkpoints, written by `transformers` itself, and a way to run plans over them."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers import logging as transformers_logging

from minivllm.executor.torch_executor import TorchExecutor
from minivllm.scheduling.plan import ScheduledSequence, StepPlan

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

FAMILIES: dict[str, type[Any]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": None,
}
MakeCheckpoint = Callable[..., tuple[Path, Any]]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """`make_checkpoint(family, dtype=…, max_shard_size=…, **config)` → (folder, the transformers model)."""

    def make(
        family: str = "llama",
        *,
        dtype: torch.dtype = torch.float32,
        max_shard_size: str = "1GB",
        **changes: Any,
    ) -> tuple[Path, Any]:
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(FAMILIES[family](**{**TINY, **changes}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Spread wide enough that logits differ; norms stay near 1 or the layers fall silent.
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.1)
        model = model.to(dtype).eval()
        model.config.dtype = dtype
        folder = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        return folder, model

    return make


class Runner:
    """Feeds sequences to an executor in pieces, each sequence in random blocks of a shared pool."""

    def __init__(self, executor: TorchExecutor, seed: int = 0, *, poison: bool = True) -> None:
        self.executor = executor
        self.free = list(range(executor.num_blocks))
        random.Random(seed).shuffle(self.free)
        self.tables: dict[int, array[int]] = {}
        self.computed: dict[int, int] = {}
        self.logits: dict[int, list[torch.Tensor]] = {}
        self.steps = 0
        if poison:  # unwritten cells must not be seen
            for cells in (*executor.storage.keys, *executor.storage.values):
                cells.fill_(float("nan"))

    def step(self, pieces: dict[int, list[int]]) -> None:
        """Compute these tokens of these sequences in one plan, keeping the logits after each of them."""
        scheduled = []
        for seq_id, tokens in pieces.items():
            start = self.computed.get(seq_id, 0)
            table = self.tables.setdefault(seq_id, array("i"))
            while len(table) * self.executor.block_size < start + len(tokens):
                table.append(self.free.pop())
            scheduled.append(
                ScheduledSequence(seq_id, start, array("i", tokens), array("i", table), len(tokens))
            )
            self.computed[seq_id] = start + len(tokens)
        logits = self.executor.execute(StepPlan(self.steps, tuple(scheduled)))
        self.steps += 1
        assert logits.shape == (sum(map(len, pieces.values())), self.executor.config.vocab_size)
        for seq_id, rows in zip(pieces, logits.split([len(p) for p in pieces.values()]), strict=True):
            self.logits.setdefault(seq_id, []).append(rows)

    def result(self, seq_id: int) -> torch.Tensor:
        return torch.cat(self.logits[seq_id])


def random_tokens(count: int, seed: int = 0, vocab_size: int = TINY["vocab_size"]) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(vocab_size) for _ in range(count)]


def expected_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    """`transformers`' logits after each token, without a cache."""
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits
