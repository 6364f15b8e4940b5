"""Two features at once, on random requests, beside the same requests alone.

    same       every request has, with both features and in company, the tokens of its run alone
    refused    asking for both is an error that names one of them
    either     both set the same thing, so only one of them can be asked for

Anything else, a token or an error that names neither, is a fault of the engine.
"""

from __future__ import annotations

import random
from itertools import combinations_with_replacement
from typing import Any

from minivllm.engine.create_engine import create_engine
from minivllm.engine.engine import Engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.model.tiny import MODEL_PATH
from minivllm.sampling_params import SamplingParams
from tests.composition.features import ARITHMETIC, BASE, FEATURES, Feature

PAIRS = [(a, b) for a, b in combinations_with_replacement(FEATURES, 2) if a is not b]
COMMON = {"temperature": 0, "max_tokens": 9, "ignore_eos": True}


def merged(*some: dict[str, Any]) -> dict[str, Any] | None:
    """All of them as one; None if two say different things."""
    whole: dict[str, Any] = {}
    for one in some:
        if any(key in whole and whole[key] != value for key, value in one.items()):
            return None
        whole |= one
    return whole


def try_pair(first: Feature, second: Feature, seed: int = 0) -> str:
    """The word for two features. `AssertionError` if tokens differ, or an error names neither."""
    settings, params = merged(first.settings, second.settings), merged(first.params, second.params)
    if settings is None or params is None:
        return "either"
    try:
        requests = make_requests([{}, first.params, second.params, params], seed)
        together = run(create_engine(args(settings)), requests)
    except ValueError as error:
        names = {
            str(word)
            for own in (first, second)
            for pair in (own.settings | own.params).items()
            for word in pair
        }
        assert any(name in str(error) for name in names), f"an error that names neither feature: {error}"
        return "refused"
    plain = create_engine(args({key: value for key, value in settings.items() if key in ARITHMETIC}))
    for request in requests:
        (name, alone), (found,) = next(iter(run(plain, [request]).items())), [together[request[0]]]
        assert found == alone, f"request {name} of {first.name} with {second.name}: {found}, alone {alone}"
    return "same"


def args(settings: dict[str, Any]) -> EngineArgs:
    return EngineArgs(MODEL_PATH, **{**BASE, **settings})


def make_requests(kinds: list[dict[str, Any]], seed: int) -> list[tuple[str, list[int], SamplingParams]]:
    """A request of each kind, and one more: prompts that begin alike, of random lengths."""
    rng = random.Random(seed)
    shared = [rng.randrange(10, 4000) for _ in range(20)]
    requests = []
    for number, kind in enumerate([*kinds, {}]):
        prompt = shared + [rng.randrange(10, 4000) for _ in range(rng.randint(1, 25))]
        requests.append((str(number), prompt, SamplingParams(**{**COMMON, **kind})))
    return requests


def run(engine: Engine, requests: list[tuple[str, list[int], SamplingParams]]) -> dict[str, list[list[int]]]:
    """The tokens of all outputs of each request, all at once, twice: a cache then has what it can find."""
    once, again = _run_once(engine, requests), _run_once(engine, requests)
    assert once == again, "the second time is as the first"
    return once


def _run_once(
    engine: Engine, requests: list[tuple[str, list[int], SamplingParams]]
) -> dict[str, list[list[int]]]:
    for name, prompt, params in requests:
        engine.add_request(name, prompt, params)
    found: dict[str, list[list[int]]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            found[output.request_id] = [list(one.token_ids) for one in output.outputs]
    engine.check_invariants()
    return found
