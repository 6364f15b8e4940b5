"""How to guess ahead: the settings of speculative decoding, under vLLM's names.

    {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}
    {"method": "draft_model", "num_speculative_tokens": 4, "model": "a folder"}

As a dictionary for `LLM(speculative_config=…)`, or as JSON for `--speculative-config`.

Read next: `minivllm/decoding/speculation/proposer.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from minivllm.validation import check_choice, check_entries, check_int64, check_path, shown

METHODS = ("ngram", "draft_model")
NAME = "speculative_config"
MOST_DRAFTS = 64
"""Of one sequence in one step."""
DEFAULT_NGRAM = 5


@dataclass(frozen=True)
class SpeculativeConfig:
    """How drafts are made.

    Attributes:
        num_speculative_tokens: most drafts of a sequence in one step.
        method: "ngram" or "draft_model"; left out, it is the one that `model` is for, if that is given.
        model: the draft model, a folder or an id on the hub, with the target's vocabulary.
        prompt_lookup_min, prompt_lookup_max: tokens that an n-gram has at least and at most. Each is the
            other if left out, and 5 if both are.
        disable_by_batch_size: no drafts in a step with more running sequences than that.

    Raises:
        ValueError: a value that cannot work, named, with what is allowed.
    """

    num_speculative_tokens: int
    method: str | None = None
    model: str | Path | None = None
    prompt_lookup_min: int | None = None
    prompt_lookup_max: int | None = None
    disable_by_batch_size: int | None = None

    def __post_init__(self) -> None:
        method = self.method or ("draft_model" if self.model is not None else None)
        self._set("method", check_choice(f"{NAME}['method']", method, METHODS))
        self._set(
            "num_speculative_tokens", self._integer("num_speculative_tokens", at_least=1, at_most=MOST_DRAFTS)
        )
        if self.disable_by_batch_size is not None:
            self._set("disable_by_batch_size", self._integer("disable_by_batch_size", at_least=0))
        if self.method == "ngram":
            self._check_ngram()
        else:
            self._check_model()

    def _check_ngram(self) -> None:
        if self.model is not None:
            raise ValueError(f"{NAME}['model'] is for the method 'draft_model', got {shown(self.model)}")
        for name in ("prompt_lookup_min", "prompt_lookup_max"):
            if getattr(self, name) is not None:
                self._set(name, self._integer(name, at_least=1))
        low, high = self.prompt_lookup_min, self.prompt_lookup_max
        if low is None:
            low = DEFAULT_NGRAM if high is None else high
        high = low if high is None else high
        if low > high:
            raise ValueError(
                f"{NAME}['prompt_lookup_min'] must be at most prompt_lookup_max ({high}), got {low}"
            )
        self._set("prompt_lookup_min", low)
        self._set("prompt_lookup_max", high)

    def _check_model(self) -> None:
        if not isinstance(self.model, str | Path) or not str(self.model).strip():
            raise ValueError(
                f"{NAME}['model'] must be a folder or a hub id where the method is 'draft_model', "
                f"got {shown(self.model)}"
            )
        check_path(f"{NAME}['model']", self.model)
        for name in ("prompt_lookup_min", "prompt_lookup_max"):
            if getattr(self, name) is not None:
                raise ValueError(f"{NAME}[{name!r}] is for the method 'ngram', got {getattr(self, name)!r}")

    def _integer(self, name: str, *, at_least: int, at_most: int | None = None) -> int:
        return check_int64(f"{NAME}[{name!r}]", getattr(self, name), at_least=at_least, at_most=at_most)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def of(cls, value: object) -> SpeculativeConfig | None:
        """What a user gave: a dictionary, its JSON, a config, or nothing.

        Raises:
            ValueError: it is none of these, or one of its entries cannot work.
        """
        if value is None or isinstance(value, SpeculativeConfig):
            return value
        entries = check_entries(NAME, value, [field.name for field in fields(cls)])
        if "num_speculative_tokens" not in entries:
            raise ValueError(
                f"{NAME}['num_speculative_tokens'] must be given: most drafts of a sequence in a step"
            )
        return cls(**entries)
