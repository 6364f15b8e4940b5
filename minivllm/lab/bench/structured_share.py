"""What structured output costs: its part of the steps of a request with a schema of twenty properties.

    first of all         the vocabulary as a tree, the automaton of the schema, all masks
    first of a schema    the automaton, and the masks of its states
    later                what is known is looked up
    sixteen at once      of one schema, and the first of it

Every value is bounded, so the model writes all twenty properties and comes to the end by itself. Counted is
the time of the engine's thread that is spent with making the automaton, following it and making masks,
against all its other time: what is added to a request that has no structure. Time of the processor, not of
the clock: a busy machine changes both alike.

Read next: `minivllm/decoding/structured/token_masks.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from time import thread_time
from typing import TYPE_CHECKING, Any

from minivllm.lab.bench.report import Section, microseconds, milliseconds, percent
from minivllm.lab.bench.step_profile import Stopwatch
from minivllm.lab.bench.timing import no_garbage_collection
from minivllm.lab.subjects.subject import Subject

if TYPE_CHECKING:
    from minivllm.engine.engine import Engine

AUTOMATON, FOLLOWING, MASKS = "automaton", "following", "masks"
PARTS = (AUTOMATON, FOLLOWING, MASKS)
NUM_PROPERTIES = 20
PROMPT = "A record of the archive:"
MOST_TOKENS = 1500
AT_ONCE = 16
KINDS: Sequence[dict[str, Any]] = (
    {"type": "string", "maxLength": 40},
    {"type": "integer", "minimum": 0, "maximum": 150},
    {"type": "boolean"},
    {"enum": ["red", "green", "blue"]},
    {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 2},
)


def schema_of(family: str, num_properties: int = NUM_PROPERTIES) -> dict[str, Any]:
    """An object of so many properties, whose names begin with the family's."""
    names = [f"{family}_property_{number}" for number in range(num_properties)]
    properties = {name: KINDS[number % len(KINDS)] for number, name in enumerate(names)}
    return {"type": "object", "properties": properties, "required": names}


@dataclass(frozen=True)
class StructureShare:
    """One kind of requests: medians over the rounds."""

    requests: str
    num_tokens: int
    """Of one output."""
    step_seconds: float
    """Of a step, without what is counted here."""
    parts: dict[str, float]
    """Seconds of each part, for all steps together."""
    share: float
    """What all parts add to the time of the steps."""


def measure_structures(
    subject: Subject, repeat: int, *, num_properties: int = NUM_PROPERTIES, at_once: int = AT_ONCE
) -> tuple[StructureShare, ...]:
    """All kinds of requests, `repeat` times; none, if the model has no tokenizer."""
    if subject.tokenizer is None:
        return ()

    def one_round(number: int) -> list[StructureShare]:
        """One of each; names of their own make the schemas of a round new."""
        engine = subject.engine()
        a, b, c = (schema_of(f"{letter}{number}", num_properties) for letter in "abc")
        with no_garbage_collection():
            return [
                _measured("first of all", engine, [a]),
                _measured("first of a schema", engine, [b]),
                _measured("later", engine, [b]),
                _measured(f"{at_once} at once, first of a schema", engine, [c] * at_once),
            ]

    _run(subject.engine(), [schema_of("warm", num_properties)])  # pools, threads, compiled code
    rounds = [one_round(number) for number in range(repeat)]
    return tuple(map(_typical, zip(*rounds, strict=True)))


def _measured(requests: str, engine: Engine, schemas: Sequence[dict[str, Any]]) -> StructureShare:
    from minivllm.decoding.structured.progress import Progress

    watch = Stopwatch(PARTS, thread_time)
    places = ((type(engine), "compile_structure", AUTOMATON), (Progress, "append", FOLLOWING))
    began = thread_time()
    with watch.around(*places, (Progress, "mask", MASKS)):
        num_steps, num_tokens = _run(engine, schemas)
    cost = sum(watch.seconds.values())
    others = thread_time() - began - cost
    return StructureShare(requests, num_tokens, others / num_steps, watch.seconds, cost / others)


def _run(engine: Engine, schemas: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """A request for each schema: steps, and tokens of the first output.

    Raises:
        RuntimeError: an output is no whole object of its schema: its share would be another one.
    """
    from minivllm.sampling_params import RequestOutputKind, SamplingParams
    from minivllm.structured_outputs import StructuredOutputsParams

    assert engine.tokenizer is not None, "it was checked"
    prompt = engine.tokenizer.encode(PROMPT)
    for index, schema in enumerate(schemas):
        params = SamplingParams(
            temperature=0.0,
            max_tokens=MOST_TOKENS,
            structured_outputs=StructuredOutputsParams(json=schema),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        engine.add_request(f"structured-{index}", prompt, params)
    steps, outputs = 0, []
    while engine.has_unfinished_requests():
        outputs += engine.step()
        steps += 1
    for output in outputs:
        text, found = output.outputs[0].text, None
        with suppress(ValueError):
            found = json.loads(text)
        if not isinstance(found, dict) or [*found] != schemas[0]["required"]:
            raise RuntimeError(f"an output is not whole: {text!r:.200}")
    return steps, len(outputs[0].outputs[0].token_ids)


def _typical(found: Sequence[StructureShare]) -> StructureShare:
    first = found[0]
    return StructureShare(
        first.requests,
        first.num_tokens,
        median(one.step_seconds for one in found),
        {part: median(one.parts[part] for one in found) for part in PARTS},
        median(one.share for one in found),
    )


def structures_section(shares: Sequence[StructureShare]) -> Section:
    """The table."""
    rows = [
        [
            one.requests,
            str(one.num_tokens),
            microseconds(one.step_seconds),
            *(milliseconds(one.parts[part]) for part in PARTS),
            percent(one.share),
        ]
        for one in shares
    ]
    columns = ("requests", "tokens", "a step without", *PARTS, "adds")
    note = (
        "a schema of 20 properties, greedy; time of the engine's thread, whole requests. Automata without "
        "names (strings, numbers) are kept from round to round"
    )
    return Section("Structured output: share of a step", columns, rows, note)
