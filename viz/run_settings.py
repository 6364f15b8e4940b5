"""What can be set about a run that is made on the page, in three forms: fields, the engine's words, code.

    RunSettings ──► fields of the page          one for each attribute, by the engine's own name for it
        │     ◄──► the link                     only what is not as at first
        ├──► the job of the other process       `minivllm/console/run_requests.py`
        └──► Python lines that do the same

The page checks nothing but types and choices: whether the settings can work is for the engine to say, in the
words that it has for the same settings elsewhere. `field_of` finds the field that they are about.

Read next: `run_process.py`, then `views/run.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pprint import pformat
from typing import Any

from viz.language import N_

POLICIES = (
    "fcfs", "priority", "shortest-remaining", "shortest-remaining-oracle", "tail", "waiting-served-ratio",
    "prefill-first", "decode-first", "chunked", "static",
)  # fmt: skip
"""The engine's own; one in a file would be code, and no page runs code that was typed into it."""
CHOICES: dict[str, tuple[str, ...]] = {
    "scheduling_policy": POLICIES,
    "prefix_cache": ("off", "hash", "radix"),
    "preemption_mode": ("recompute", "swap"),
    "speculation": ("off", "ngram", "draft_model"),
    "attention_backend": ("torch", "auto"),
}
MOST_PROMPTS = 400
MOST_LINK = 1800
"""Characters: longer prompts would make a link that some program cuts."""
PROMPT_BREAK = re.compile(r"\n[ \t]*\n")
MIB_PER_GIB = 1024
MOST_NUMBER = 2**53
"""What a browser's field can hold."""
NGRAM = 3

BACKGROUND = (
    "A large language model writes one token at a time. To choose the next token it looks back at the keys "
    "and values of all tokens before it. These keys and values are kept in the KV cache, so that they are "
    "computed once and not again at every step."
)
DIFFERENT = (
    "Question: What is a KV cache?\nAnswer:", "Once upon a time,", "问：什么是KV缓存？\n答：",
    f"{BACKGROUND}\nQuestion: What is a block table?\nAnswer:", "Question: What is preemption?\nAnswer:",
    "从前，", "Long ago, a small fox", "Question: What is continuous batching?\nAnswer:",
)  # fmt: skip
ALIKE = tuple(
    f"{BACKGROUND}\nQuestion: What is {word}?\nAnswer:"
    for word in ("a block table", "preemption", "paging", "a prefix cache")
)


@dataclass(frozen=True)
class RunSettings:
    """Prompts and settings, under the engine's names."""

    prompts: tuple[str, ...] = DIFFERENT
    arrive_every: int = 3
    scheduling_policy: str = "fcfs"
    num_gpu_blocks_override: int = 24
    block_size: int = 16
    max_num_batched_tokens: int = 48
    max_num_seqs: int = 8
    prefix_cache: str = "off"
    preemption_mode: str = "recompute"
    swap_mib: float = 1.0
    """Only where `preemption_mode` is "swap"."""
    n: int = 1
    use_beam_search: bool = False
    temperature: float = 0.0
    max_tokens: int = 60
    seed: int = 0
    speculation: str = "off"
    num_speculative_tokens: int = 4
    attention_backend: str = "torch"

    def engine(self) -> dict[str, Any]:
        """Settings of the engine."""
        names = ("scheduling_policy", "num_gpu_blocks_override", "block_size", "max_num_batched_tokens",
                 "max_num_seqs", "preemption_mode", "seed", "attention_backend")  # fmt: skip
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.prefix_cache != "off":
            found["prefix_cache"] = self.prefix_cache
        if self.preemption_mode == "swap":
            found["swap_space"] = self.swap_mib / MIB_PER_GIB
        if self.speculation != "off":
            guess: dict[str, Any] = {
                "method": self.speculation, "num_speculative_tokens": self.num_speculative_tokens,
                # Never: else the clock says how many, and two runs would differ by more than their settings.
                "disable_by_batch_size": self.max_num_seqs,
            }  # fmt: skip
            if self.speculation == "ngram":
                guess["prompt_lookup_max"] = NGRAM
            found["speculative_config"] = guess
        return found

    def sampling(self) -> dict[str, Any]:
        """Parameters of each request."""
        found: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.max_tokens, "n": self.n}
        if self.use_beam_search:
            found["use_beam_search"] = True
        return found

    def job(self, trace: str, workload: str | None = None) -> dict[str, Any]:
        """For the other process."""
        return {
            "trace": trace,
            "prompts": [] if workload else list(self.prompts),
            "workload": workload,
            "arrive_every": self.arrive_every,
            "engine": self.engine(),
            "sampling": self.sampling(),
        }

    def words(self) -> str:
        """What tells this run from others, for the name of its trace."""
        parts = [self.scheduling_policy, f"{self.num_gpu_blocks_override}x{self.block_size}"]
        parts += [self.prefix_cache] if self.prefix_cache != "off" else []
        parts += ["swap"] if self.preemption_mode == "swap" else []
        parts += [self.speculation.replace("_", "-")] if self.speculation != "off" else []
        parts += [f"{'beams' if self.use_beam_search else 'n'}{self.n}"] if self.n > 1 else []
        return "-".join(parts)


@dataclass(frozen=True)
class Example:
    """Settings to begin with."""

    title: str
    settings: RunSettings = field(default_factory=RunSettings)


EXAMPLES = {
    "paging": Example(N_("A pool that is too small")),
    "sharing": Example(
        N_("Prompts that begin alike"),
        RunSettings(
            ALIKE, arrive_every=8, prefix_cache="radix", block_size=8, num_gpu_blocks_override=40,
            max_num_batched_tokens=96, max_tokens=32,
        ),
    ),
    "samples": Example(
        N_("Three stories of one beginning"),
        RunSettings(
            ("Once upon a time,", "从前，"), n=3, temperature=0.9, seed=7, block_size=8, max_tokens=48
        ),
    ),
    "beams": Example(
        N_("Beam search"),
        RunSettings(("Long ago, a small fox",), n=4, use_beam_search=True, block_size=8, max_tokens=32),
    ),
    "speculation": Example(
        N_("Guessing ahead"),
        RunSettings(
            ("Once upon a time,", "Question: What is paging?\nAnswer:"), speculation="draft_model",
            max_num_batched_tokens=64, max_tokens=80,
        ),
    ),
    "static": Example(
        N_("Batches of old"), RunSettings(scheduling_policy="static", num_gpu_blocks_override=80)
    ),
}  # fmt: skip


# ── the prompts as a text ─────────────────────────────────────────────────────────────────────────────


def as_text(prompts: tuple[str, ...]) -> str:
    """All prompts in one field: an empty line parts them."""
    return "\n\n".join(prompts)


def from_text(text: str) -> tuple[str, ...]:
    """The prompts of such a field: `MOST_PROMPTS` of them at most."""
    return _all_prompts(text)[:MOST_PROMPTS]


def num_left_out(text: str) -> int:
    """How many more than `MOST_PROMPTS` there are in such a field."""
    return max(0, len(_all_prompts(text)) - MOST_PROMPTS)


def _all_prompts(text: str) -> tuple[str, ...]:
    parts = (part.strip("\n") for part in PROMPT_BREAK.split(text.replace("\r\n", "\n")))
    return tuple(part for part in parts if part.strip())


# ── the link ──────────────────────────────────────────────────────────────────────────────────────────


def to_link(settings: RunSettings) -> str:
    """What is not as at first, as JSON; without the prompts where they are too long for a link."""
    before = asdict(RunSettings())
    changed = {name: value for name, value in asdict(settings).items() if value != before[name]}
    if not changed:
        return ""
    link = json.dumps(changed, ensure_ascii=False, separators=(",", ":"))
    return link if len(link) <= MOST_LINK else to_link(replace(settings, prompts=RunSettings.prompts))


def from_link(link: str) -> RunSettings:
    """The settings that a link names; what no field could hold is as at first."""
    try:
        found = json.loads(link) if link else {}
    except (ValueError, RecursionError):
        found = {}
    if not isinstance(found, Mapping):
        return RunSettings()
    fitting: dict[str, Any] = {name: value for name, value in found.items() if _fits(name, value)}
    for name, value in fitting.items():
        if isinstance(getattr(RunSettings, name), float):
            fitting[name] = float(value)  # a field for parts takes no whole number
    prompts = found.get("prompts")
    if isinstance(prompts, list) and all(isinstance(text, str) for text in prompts):
        # Halves of a pair of surrogates are no characters, and cannot be sent.
        fitting["prompts"] = from_text(as_text(tuple(prompts)).encode(errors="replace").decode())
    return replace(RunSettings(), **fitting)


def _fits(name: str, value: Any) -> bool:
    if name in CHOICES:
        return isinstance(value, str) and value in CHOICES[name]
    kinds = {item.name: type(getattr(RunSettings, item.name)) for item in fields(RunSettings)}
    kind = kinds.get(name)
    if kind is float:
        return type(value) in (int, float) and abs(value) < MOST_NUMBER
    return kind in (int, bool) and type(value) is kind and abs(value) < MOST_NUMBER


# ── code ──────────────────────────────────────────────────────────────────────────────────────────────


def as_python(settings: RunSettings) -> str:
    """Lines that do the same, with the same tokens."""
    engine = {**settings.engine(), "trace": "run.jsonl"}
    draft = settings.speculation == "draft_model"
    arguments = "".join(f"    {name}={value!r},\n" for name, value in engine.items())
    if draft:
        arguments = arguments.replace("'method': 'draft_model'", "'model': DRAFT_MODEL_PATH")
    sampling = ", ".join(f"{name}={value!r}" for name, value in settings.sampling().items())
    imports = "DRAFT_MODEL_PATH, MODEL_PATH" if draft else "MODEL_PATH"
    lines = [
        "from minivllm import LLM, SamplingParams",
        f"from minivllm.model.tiny import {imports}",
        "",
        f"prompts = {pformat(list(settings.prompts), width=100)}",
        f"params = SamplingParams({sampling})",
        f"llm = LLM(\n    MODEL_PATH,\n{arguments})",
        "with llm:",
    ]
    if not settings.arrive_every or len(settings.prompts) < 2:
        lines.append("    llm.generate(prompts, params)")
    else:
        lines += [
            "    engine, step, coming = llm.engine, 0, list(enumerate(prompts))",
            "    while coming or engine.requests:",
            f"        while coming and step >= {settings.arrive_every} * coming[0][0]:",
            "            number, prompt = coming.pop(0)",
            "            tokens = engine.tokenizer.encode(prompt)",
            "            engine.add_request(str(number), tokens, params, prompt=prompt)",
            "        engine.step()",
            "        step += 1",
        ]
    return "\n".join(lines)


# ── what the engine refuses ───────────────────────────────────────────────────────────────────────────

NAMES = {
    "beam_width": "n", "best_of": "n", "swap_space": "swap_mib", "speculative_config": "speculation",
    "workload": "prompts", "prompt_token_ids": "prompts",
}  # fmt: skip
"""The engine's words for what has another name here."""


def field_of(words: str) -> str:
    """The field that a refusal is about: the first that it names."""
    said = re.sub(r"^(prompts\[\d+\]|request \S+): ", "", words)
    said = re.sub(r"speculative_config\['(\w+)'\]", r"\1", said)
    known = {item.name: item.name for item in fields(RunSettings)} | NAMES
    if "can never fit" in said:
        return "num_gpu_blocks_override"
    places = [
        (found.start(), name)
        for word, name in known.items()
        if (found := re.search(rf"(?<!\w){re.escape(word)}(?!\w)", said))
    ]
    return min(places)[1] if places else "prompts"
