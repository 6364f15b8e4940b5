"""Two features at once, on random requests, beside the same requests alone.

    same       every request has, with both features and in company, the tokens of its run alone
    waits      the same, but with asynchronous scheduling no step of a request with both is planned ahead
    law        the same, but for drawn tokens: their law is the same, and which come is another draw
    refused    asking for both is an error that names one of them
    either     both set the same thing, so only one of them can be asked for

Anything else, a token or an error that names neither, is a fault of the engine.
"""

from __future__ import annotations

import atexit
import random
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any
from unittest.mock import patch

from minivllm.engine.create_engine import create_engine
from minivllm.engine.engine import Engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.executor.distributed import create
from minivllm.model.tiny import DRAFT_MODEL_PATH, MODEL_PATH
from minivllm.quantize import Calibration, plan_quantization, quantize
from minivllm.sampling_params import SamplingParams
from minivllm.trace.events import BatchPlanned, Event, RequestQueued, SequenceForked
from minivllm.trace.recorder import Recorder
from tests.composition.features import ARITHMETIC, BASE, CHECKPOINTS, DRAFT, FEATURES, Feature
from tests.executor.distributed.thread_ranks import start_threads

PAIRS = [(a, b) for a, b in combinations_with_replacement(FEATURES, 2) if a is not b]
RANKS = ("tensor_parallel_size", "pipeline_parallel_size")
WITH_BOTH = 3
"""Of a run's requests, the one that has both features."""
COMMON = {"temperature": 0, "max_tokens": 9, "ignore_eos": True}
Request = tuple[str, list[int], SamplingParams]
Tokens = list[list[int]]


def merged(*some: dict[str, Any]) -> dict[str, Any] | None:
    """All of them as one; None if two say different things."""
    whole: dict[str, Any] = {}
    for one in some:
        if any(key in whole and whole[key] != value for key, value in one.items()):
            return None
        whole |= one
    return whole


def try_pair(first: Feature, second: Feature) -> str:
    """The word for two features. `AssertionError` if tokens differ, or an error names neither."""
    settings, params = merged(first.settings, second.settings), merged(first.params, second.params)
    if settings is None or params is None:
        return "either"
    is_redrawn = settings.get("speculative_config") == DRAFT
    try:
        kinds = [{}, first.params, second.params, params]
        requests = make_requests(kinds, first.name + second.name)
        redrawn = [name for name, _, own in requests if is_redrawn and own.temperature > 0]
        recorder = Recorder() if settings.get("async_scheduling") else None
        together = run_together(settings, requests, redrawn, recorder)
    except ValueError as error:
        names = {
            str(word)
            for own in (first, second)
            for pair in (own.settings | own.params).items()
            for word in pair
        }
        assert any(name in str(error) for name in names), f"an error that names neither feature: {error}"
        return "refused"
    plain = plain_engine(
        tuple((key, settings[key]) for key in ARITHMETIC if key in settings) + parts(settings)
    )
    for request in requests:
        if (name := request[0]) not in redrawn:
            alone, found = _run_once(plain, [request])[name], together[name]
            assert found == alone, (
                f"request {name} of {first.name} with {second.name}: {found}, alone {alone}"
            )
    if recorder and not is_planned_ahead(requests[WITH_BOTH][0], recorder.events):
        return "waits"
    return "law" if redrawn else "same"


def is_planned_ahead(request: str, events: Sequence[Event]) -> bool:
    """Was a step of this request planned while another was computed?"""
    seqs: set[int] = set()
    for event in events:
        if isinstance(event, RequestQueued | SequenceForked) and event.request == request:
            seqs.add(event.seq if isinstance(event, RequestQueued) else event.child)
        elif isinstance(event, BatchPlanned) and event.is_ahead and {seq for seq, _, _ in event.items} & seqs:
            return True
    return False


def parts(settings: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Ranks sum in parts, and one rank that computes the same parts has the same sums."""
    return (("reduction_parts", 2),) if any(name in settings for name in RANKS) else ()


def args(settings: dict[str, Any]) -> EngineArgs:
    own = {**BASE, "model": MODEL_PATH, **settings}
    if own["model"] in CHECKPOINTS:
        own["model"] = checkpoint(CHECKPOINTS[own["model"]])
    if own.get("speculative_config") == DRAFT:
        own["speculative_config"] = DRAFT | {"model": DRAFT_MODEL_PATH}
    return EngineArgs(**own)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@cache
def checkpoint(method: str) -> Path:
    """The shipped model, quantised: with so few samples that it takes no time, and says what it likes."""
    place = Path(_folder().name) / method
    plan = plan_quantization(MODEL_PATH, method, Calibration(num_samples=2, seq_len=16))
    return quantize(plan, place).folder


@cache
def plain_engine(settings: tuple[tuple[str, Any], ...]) -> Engine:
    """What requests run alone on, one after another: nothing is left of one for the next."""
    engine = create_engine(args(dict(settings)))
    atexit.register(engine.close)
    return engine


def make_requests(kinds: list[dict[str, Any]], seed: str) -> list[Request]:
    """A request of each kind, and one more: prompts that begin alike, of random lengths."""
    rng = random.Random(seed)
    shared = [rng.randrange(10, 4000) for _ in range(20)]
    requests = []
    for number, kind in enumerate([*kinds, {}]):
        prompt = shared + [rng.randrange(10, 4000) for _ in range(rng.randint(1, 25))]
        requests.append((str(number), prompt, SamplingParams(**{**COMMON, **kind})))
    return requests


def run_together(
    settings: dict[str, Any], requests: list[Request], redrawn: list[str], recorder: Recorder | None = None
) -> dict[str, Tokens]:
    """The tokens of all outputs of each request, all at once, twice: a cache then has what it can find."""
    with patch.object(create, "start_processes", start_threads):
        engine = create_engine(args(settings), [recorder] if recorder else [])
    try:
        once, again = _run_once(engine, requests), _run_once(engine, requests)
    finally:
        engine.close()
    for name, tokens in once.items():
        assert [len(one) for one in tokens] == [len(one) for one in again[name]]
        assert name in redrawn or tokens == again[name], "the second time is as the first"
    return once


def _run_once(engine: Engine, requests: list[Request]) -> dict[str, Tokens]:
    for name, prompt, params in requests:
        engine.add_request(name, prompt, params)
    found: dict[str, Tokens] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            found[output.request_id] = [list(one.token_ids) for one in output.outputs]
    engine.check_invariants()
    return found
