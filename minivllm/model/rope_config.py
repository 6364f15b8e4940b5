"""What a config says about rotary positions, and how long a text they allow.

A model that was trained on texts of some length reads longer ones if its rotation is slowed down. Recipes
differ in which pairs they slow (`rotary.py`), and in what their numbers say about the longest text:

    rope_type     the longest text, in tokens (vLLM's rules)
    ───────────   ─────────────────────────────────────────────────────────────────────
    default       max_position_embeddings
    linear        max_position_embeddings × factor
    yarn          original_max_position_embeddings × factor
    llama3        max_position_embeddings: the file has the scaled length there
    dynamic       max_position_embeddings: up to there it is the default        (see below)
    longrope      original_max_position_embeddings: up to there `short_factor`  (see below)

The last two turn *all* positions at another speed once a text outgrows that length. Keys that are cached
already cannot follow, so what such a model says would depend on how its text was cut into steps. Up to that
length logits are those of `transformers`; a longer `max_model_len` is refused.

Papers: Position Interpolation (arXiv 2306.15595), YaRN (2309.00071), LongRoPE (2402.13753).
Source of the lengths: `_get_and_verify_max_len` in vLLM. Read next: `minivllm/model/rotary.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from minivllm.validation import check_boolean, check_choice, check_integer, check_number, shown

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
OLDER_NAMES = {"su": "longrope"}
MAX_POSITIONS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions rotate queries and keys; `minivllm/model/rotary.py` says what each number does."""

    rope_type: str = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    """LongRoPE: by what each pair is slowed, [head_dim / 2], in texts of at most the original length."""

    def longest_text(self, key: str, length: int) -> tuple[int, str]:
        """Tokens of the longest text by the table above, and what says so.

        `length` is what the file has for `key`, which is `max_position_embeddings` or another name for it.
        """
        if self.rope_type in ("yarn", "longrope"):
            key, length = "original_max_position_embeddings", self.original_max_position_embeddings
        said = f"{key} {length}"
        if self.rope_type in ("dynamic", "longrope"):
            return length, f"{said}; with rope_type {self.rope_type!r}, cached keys cannot follow beyond it"
        if self.rope_type in ("linear", "yarn"):
            return int(length * self.factor), f"{said} × factor {self.factor:g}"
        return length, said


def read_rope(raw: Mapping[str, Any], max_positions: int, head_dim: int) -> RopeConfig:
    """The rotary settings of a `config.json`, in the old spelling or the new one.

    Old: `rope_theta` beside `rope_scaling`, and `type` for `rope_type`. New: all in `rope_parameters`.

    Raises:
        ValueError: a setting that cannot be served, by its key.
    """
    spelling = "rope_parameters" if raw.get("rope_scaling") in (None, {}) else "rope_scaling"
    given = {} if raw.get(spelling) is None else raw[spelling]
    if not isinstance(given, dict):
        raise ValueError(f"{spelling} must be an object, got {shown(given)}")
    for key, value in given.items():
        if isinstance(value, dict):
            raise ValueError(
                f"{spelling} must be one flat object for all layers; its {key} is {shown(value)}"
            )
    if given.get("mrope_section") is not None:
        raise ValueError(f"mrope_section (positions of images) is not supported; {spelling} has it")
    rope_type = next((given[key] for key in ("rope_type", "type") if given.get(key) is not None), None)
    if rope_type is None:
        if given.get("factor") is not None:  # by which recipe? Ignored, it would give other texts
            raise ValueError(f"rope_type is missing in {spelling}, which has factor {shown(given['factor'])}")
        rope_type = "default"
    if isinstance(rope_type, str):
        rope_type = OLDER_NAMES.get(rope_type, rope_type)
    check_choice(f"rope_type in {spelling}", rope_type, ROPE_TYPES)
    partial = given.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if partial is not None and (isinstance(partial, bool) or partial != 1):
        raise ValueError(f"partial_rotary_factor must be 1 (whole heads are rotated), got {shown(partial)}")
    theta = check_number("rope_theta", given.get("rope_theta", raw.get("rope_theta", 1e4)), more_than=1)
    reader = _Reader(given, rope_type, theta, _original(raw, given, max_positions))
    return reader.read(max_positions, head_dim)


def _original(raw: Mapping[str, Any], given: Mapping[str, Any], max_positions: int) -> int:
    """The length of the texts that the model was trained on: said beside the scaling, or within it."""
    key = "original_max_position_embeddings"
    named = [place[key] for place in (raw, given) if place.get(key) is not None]
    return check_integer(key, named[0], at_least=2, at_most=MAX_POSITIONS) if named else max_positions


@dataclass(frozen=True)
class _Reader:
    """Takes the numbers of one recipe out of what is given. Any that would make an infinity is refused."""

    given: Mapping[str, Any]
    rope_type: str
    theta: float
    original: int

    def read(self, max_positions: int, head_dim: int) -> RopeConfig:
        rope_type, theta, number = self.rope_type, self.theta, self.number
        if rope_type == "default":
            return RopeConfig(theta=theta)
        if rope_type in ("linear", "dynamic"):
            return RopeConfig(rope_type, theta, self.factor())
        if rope_type == "llama3":
            low, high = number("low_freq_factor"), number("high_freq_factor")
            if low >= high:
                raise ValueError(f"low_freq_factor ({low}) must be below high_freq_factor ({high})")
            return RopeConfig(rope_type, theta, self.factor(), self.original, low, high)
        attention_factor = self.optional("attention_factor")
        if self.given.get("factor") is None and max_positions < self.original:
            raise ValueError(
                f"original_max_position_embeddings must be at most max_position_embeddings ({max_positions}) "
                f"where factor is left out, got {self.original}"
            )
        factor = self.factor(max_positions / self.original)
        config = RopeConfig(rope_type, theta, factor, self.original, attention_factor=attention_factor)
        if rope_type == "longrope":
            return replace(config, short_factor=self.short_factor(head_dim // 2))
        return replace(
            config,
            beta_fast=number("beta_fast", 32),
            beta_slow=number("beta_slow", 1),
            mscale=self.optional("mscale", at_least=0),
            mscale_all_dim=self.optional("mscale_all_dim", at_least=0),
            truncate=check_boolean("truncate", self.given.get("truncate", True)),
        )

    def number(self, key: str, default: float | None = None, at_least: float = 1e-6) -> float:
        value = default if self.given.get(key) is None else self.given[key]
        return check_number(f"{key} of rope_type {self.rope_type!r}", value, at_least=at_least, at_most=1e6)

    def optional(self, key: str, at_least: float = 1e-6) -> float | None:
        return None if self.given.get(key) is None else self.number(key, at_least=at_least)

    def factor(self, default: float | None = None) -> float:
        return self.number("factor", default, at_least=1)

    def short_factor(self, num_pairs: int) -> tuple[float, ...]:
        values = self.given.get("short_factor")
        if not isinstance(values, list) or len(values) != num_pairs:
            raise ValueError(
                f"short_factor of rope_type 'longrope' must be a list of {num_pairs} numbers (one for each "
                f"pair of a head), got {shown(values)}"
            )
        return tuple(
            check_number(f"short_factor[{index}]", value, at_least=1e-6, at_most=1e6)
            for index, value in enumerate(values)
        )
