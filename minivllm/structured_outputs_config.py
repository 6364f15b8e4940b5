"""What follows structured outputs: vLLM's `structured_outputs_config`.

    {"backend": "auto"}        our own automata (`minivllm/decoding/structured/`); so does "minivllm"
    {"backend": "guidance"}    llguidance, in Rust, under vLLM's name (pip install minivllm[structured])

As a dictionary for `LLM(structured_outputs_config=…)`, as JSON for `--structured-outputs-config`, or as
`--structured-outputs-config.backend guidance`.

Read next: `minivllm/decoding/structured/__init__.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib.util import find_spec

from minivllm.validation import check_boolean, check_choice, check_entries

NAME = "structured_outputs_config"
OWN, GUIDANCE = "minivllm", "guidance"
BACKENDS = ("auto", OWN, GUIDANCE)
ALIASES = {"auto": OWN, "llguidance": GUIDANCE}


@dataclass(frozen=True)
class StructuredOutputsConfig:
    """Which engine strikes tokens out.

    Attributes:
        backend: one of `BACKENDS`; "auto" is our own, and "llguidance" another word for "guidance".
        disable_fallback: accepted as in vLLM, without effect: no request goes to another engine than this.
        disable_any_whitespace, disable_additional_properties: accepted as in vLLM, without effect: so it is.

    Raises:
        ValueError: a value that cannot work, named, with what is allowed.
    """

    backend: str = "auto"
    disable_fallback: bool = False
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False

    def __post_init__(self) -> None:
        given = ALIASES.get(self.backend, self.backend) if isinstance(self.backend, str) else self.backend
        object.__setattr__(self, "backend", check_choice(f"{NAME}['backend']", given, BACKENDS))
        for field in fields(self)[1:]:
            check_boolean(f"{NAME}[{field.name!r}]", getattr(self, field.name))
        if self.backend == GUIDANCE and find_spec("llguidance") is None:
            raise ValueError(
                f"{NAME}['backend'] is {GUIDANCE!r}, which needs llguidance: "
                "pip install 'minivllm[structured]'"
            )

    @classmethod
    def of(cls, value: object) -> StructuredOutputsConfig:
        """What a user gave: a dictionary, its JSON, a config, or nothing.

        Raises:
            ValueError: it is none of these, or one of its entries cannot work.
        """
        if value is None:
            return cls()
        if isinstance(value, StructuredOutputsConfig):
            return value
        return cls(**check_entries(NAME, value, [field.name for field in fields(cls)]))
