"""What vLLM answered, and what we answer to the same requests, field by field.

`vllm_exchanges.jsonl` has requests that were sent to vLLM 0.32 serving the shipped model in float32, and what
came back. Whatever differs is in `DIFFERENCES`, with a reason that `docs/serving.md` gives, too.
"""

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXCHANGES = [
    json.loads(line)
    for line in Path(__file__).with_name("vllm_exchanges.jsonl").read_text(encoding="utf-8").splitlines()
]
CLOSE = 2e-4
"""The file has four digits of a log-probability."""

OWN_NAME = "The server names itself: `owned_by`, `system_fingerprint` and `/version` say minivllm."
NOT_HERE = (
    "Fields of what is not here are left out: images and audio, LoRA, KV transfer between servers, "
    "routed experts."
)
OLD = "Fields that OpenAI has given up are left out: `permission` of a model, `function_call` of a message."
OWN_WORDS = (
    "A refused sampling parameter is named in minivllm's own sentence, and always in `param`; status, "
    "`type` and `code` are vLLM's."
)
ALL_NAMES = "`/v1/models` lists every name of the model; `root` is the folder that was loaded."
TEXT = "`prompt_text` of a chat is left out: `return_token_ids` tells the prompt, and `/detokenize` its text."
NOT_YET = "`/v1/responses` and Anthropic's `/v1/messages` are not here."

DIFFERENCES = [
    # (kind, exchange and field, reason)
    ("differs", "models: data[[]].owned_by", OWN_NAME),
    ("differs", "version: version", OWN_NAME),
    ("differs", "models: data[[]].root", ALL_NAMES),
    ("more", "models: data", ALL_NAMES),
    ("missing", "models: data[[]].permission", OLD),
    ("missing", "*: choices[[]].message.function_call", OLD),
    ("missing", "*: choices[[]].message.annotations", NOT_HERE),
    ("missing", "*: choices[[]].message.audio", NOT_HERE),
    ("missing", "*: choices[[]].routed_experts", NOT_HERE),
    ("missing", "*: kv_transfer_params", NOT_HERE),
    ("missing", "*: ec_transfer_params", NOT_HERE),
    ("missing", "*: metrics", NOT_HERE),
    ("missing", "*: usage.prompt_tokens_details.multimodal_tokens", NOT_HERE),
    ("missing", "*: usage.prompt_tokens_details.created_cache_tokens", NOT_HERE),
    ("differs", "*: system_fingerprint", OWN_NAME),
    ("differs", "*:[[]].system_fingerprint", OWN_NAME),
    ("missing", "*: prompt_text", TEXT),
    ("missing", "*:[[]].prompt_text", TEXT),
    ("missing", "*:[[]].usage.prompt_tokens_details.created_cache_tokens", NOT_HERE),
    ("differs", "refused model: error.message", ALL_NAMES),
    ("differs", "refused temp: error.message", OWN_WORDS),
    ("differs", "refused n: error.message", OWN_WORDS),
    ("differs", "refused n: error.param", OWN_WORDS),
    ("differs", "max tokens 0: error.message", OWN_WORDS),
    ("differs", "responses: status", NOT_YET),
    ("more", "responses: *", NOT_YET),
    ("differs", "messages: status", NOT_YET),
    ("more", "messages: *", NOT_YET),
]


@pytest.fixture(scope="module")
def found(http):
    """All differences: (kind, exchange and field, theirs, ours)."""
    for _ in range(10):
        http.post("/reset_prefix_cache")
        differences = [difference for exchange in EXCHANGES for difference in replayed(http, exchange)]
        # A reader that is slow, on a busy machine, gets two pieces as one: then all is asked again.
        if not any(kind == "missing" and place.endswith(":") for kind, place, _, _ in differences):
            break
    return differences


def replayed(http, exchange):
    method, path, body = exchange["ask"]
    headers = {"Content-Type": "application/json"}
    if method == "OPTIONS":
        headers |= {"Origin": "http://somewhere", "Access-Control-Request-Method": "POST"}
    content = body if isinstance(body, str) else json.dumps(body)
    response = http.request(method, path, headers=headers, content=None if body is None else content)
    name = exchange["name"]
    if response.status_code != exchange["status"]:
        yield "differs", f"{name}: status", exchange["status"], response.status_code
    if "chunks" in exchange:
        *events, done = [line for line in response.text.split("\n\n") if line]
        assert done == "data: [DONE]"
        ours = [json.loads(event.removeprefix("data: ")) for event in events]
        yield from compared(f"{name}:", in_order(exchange["chunks"]), in_order(ours))
    else:
        is_json = response.headers.get("content-type") == "application/json"
        yield from compared(f"{name}:", exchange["answer"], response.json() if is_json else response.text)


def in_order(chunks):
    """Chunks of several choices may come in any order; each choice's own may not."""
    return sorted(chunks, key=lambda chunk: chunk["choices"][0]["index"] if chunk["choices"] else 99)


def compared(place, theirs, ours):
    """How our answer differs from theirs, place by place."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in theirs.keys() | ours.keys():
            inner = f"{place} {key}" if place.endswith(":") else f"{place}.{key}"
            if key not in ours:
                yield "missing", inner, theirs[key], None
            elif key not in theirs:
                yield "more", inner, None, ours[key]
            else:
                yield from compared(inner, theirs[key], ours[key])
    elif isinstance(theirs, list) and isinstance(ours, list):
        if len(theirs) != len(ours):
            yield ("more" if len(ours) > len(theirs) else "missing"), place, len(theirs), len(ours)
        for their_item, our_item in zip(theirs, ours, strict=False):
            yield from compared(f"{place}[]", their_item, our_item)
    elif type(theirs) is not type(ours) or not means_the_same(place, theirs, ours):
        yield "differs", place, theirs, ours


def means_the_same(place, theirs, ours):
    name = re.split(r"[ .]", place)[-1]
    if name == "created":
        return True
    if name == "id" and "-" in theirs:  # the rest is drawn at random
        return theirs.split("-")[0] == ours.split("-")[0] and len(theirs) == len(ours)
    return abs(theirs - ours) < CLOSE if isinstance(theirs, float) else theirs == ours


def allowed(kind, place):
    return [entry for entry in DIFFERENCES if entry[0] == kind and fnmatchcase(place, entry[1])]


def test_our_answers_are_vllms_but_for_what_is_listed(found):
    assert not [difference for difference in found if not allowed(*difference[:2])]


def test_every_listed_difference_is_one(found):
    used = {id(entry) for kind, place, *_ in found for entry in allowed(kind, place)}
    assert [entry for entry in DIFFERENCES if id(entry) not in used] == []


def test_every_reason_is_in_the_documentation():
    text = " ".join((ROOT / "docs" / "serving.md").read_text(encoding="utf-8").split())
    assert [reason for _, _, reason in DIFFERENCES if reason not in text] == []
