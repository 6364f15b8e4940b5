"""The random models are real checkpoints of the stated sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from minivllm.executor.torch_executor import TorchExecutor
from minivllm.lab.subjects.shapes import SHAPES, write_checkpoint
from minivllm.model.config import ModelConfig

PARAMETERS = {"nano": 1_115_264, "small": 27_271_680, "medium": 110_512_896}
READ_IN_EVERY_STEP_MILLIONS = {"nano": 0.9, "small": 23, "medium": 86}


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_has_the_stated_number_of_parameters(name: str) -> None:
    shape = SHAPES[name]
    counted = 0
    for _, size in shape.tensor_shapes():
        product = 1
        for length in size:
            product *= length
        counted += product
    assert counted == PARAMETERS[name]
    assert ModelConfig.from_dict(shape.config()).num_parameters == counted
    read = counted - shape.vocab_size * shape.hidden_size  # of the embedding only a few rows
    assert read / 1e6 == pytest.approx(READ_IN_EVERY_STEP_MILLIONS[name], rel=0.06)


def test_a_written_checkpoint_loads_without_anything_missing_or_left_over(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder = write_checkpoint("nano", tmp_path / "nano")
    executor = TorchExecutor.from_folder(folder, num_blocks=1, device="cpu")
    assert executor.model_shape.num_parameters == PARAMETERS["nano"]
    assert not [
        warning for warning in recwarn if "tensors that the model does not use" in str(warning.message)
    ]


def test_the_weights_are_the_same_whenever_they_are_written_and_spread_as_stated(tmp_path: Path) -> None:
    first = load_file(write_checkpoint("nano", tmp_path / "a") / "model.safetensors")
    second = load_file(write_checkpoint("nano", tmp_path / "b") / "model.safetensors")
    assert first.keys() == second.keys() == dict(SHAPES["nano"].tensor_shapes()).keys()
    assert all(first[name].equal(second[name]) for name in first)
    assert float(first["lm_head.weight"].std()) == pytest.approx(SHAPES["nano"].spread, rel=0.02)
    assert bool((first["model.norm.weight"] == 1).all())


def test_a_checkpoint_that_is_there_is_left_alone_and_one_of_another_shape_is_replaced(
    tmp_path: Path,
) -> None:
    weights = write_checkpoint("nano", tmp_path) / "model.safetensors"
    written = weights.stat().st_mtime_ns
    write_checkpoint("nano", tmp_path)
    assert weights.stat().st_mtime_ns == written
    (tmp_path / "config.json").write_text("{}")
    write_checkpoint("nano", tmp_path)
    assert weights.stat().st_mtime_ns > written


def test_an_unknown_shape_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shape must be one of 'nano', 'small', 'medium', got 'huge'"):
        write_checkpoint("huge", tmp_path)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="the random model cannot be written to"):
        write_checkpoint("nano", tmp_path / "file" / "nano")
