"""Quantised checkpoints as a fixture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.model.conftest import MakeCheckpoint, make_checkpoint, one_thread
from tests.model.quantization.checkpoints import RECIPES, SIZES, Recipe, quantize

__all__ = ["make_checkpoint", "one_thread"]

MakeQuantized = Callable[..., tuple[Path, Any]]


@pytest.fixture
def make_quantized(make_checkpoint: MakeCheckpoint) -> MakeQuantized:
    """`make_quantized(recipe, family, **config)` → (folder, the transformers model with the same values)."""

    def make(recipe: str | Recipe, family: str = "llama", **changes: Any) -> tuple[Path, Any]:
        recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
        folder, model = make_checkpoint(family, **{**SIZES, **recipe.model, **changes})
        return folder, quantize(folder, model, recipe)

    return make
