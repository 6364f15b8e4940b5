"""The other engine: what it allows, we allow; what it completes, parses; and it is chosen by name."""

import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm import LLM, SamplingParams
from minivllm.decoding.structured.compile import StructureCompiler
from minivllm.decoding.structured.expressions import StructureError
from minivllm.decoding.structured.guided_progress import GuidedProgress, begin
from minivllm.decoding.structured.progress import Progress
from minivllm.model.tiny import MODEL_PATH
from minivllm.structured_outputs import StructuredOutputsParams
from minivllm.structured_outputs_config import GUIDANCE
from tests.decoding.structured.test_oracle import GRAMMARS, patterns, schemas
from tests.decoding.structured.walks import EOS, PIECES, allowed, compiler, structure

pytest.importorskip("llguidance", reason='pip install "minivllm[structured]"')

TOKENS = [None, *(bytes([byte]) for byte in range(256)), *(piece.encode() for piece in PIECES), None]
GUIDED = StructureCompiler(lambda: TOKENS, len(TOKENS), GUIDANCE)


def guided(**asked):
    return GUIDED.compile(StructuredOutputsParams(**asked), (EOS,))


def walk_both(seed, most=40, **asked):
    """By its masks; whatever it allows, ours allows, too. Returns the text, and whether it is over."""
    theirs, ours, data = begin(guided(**asked)), Progress(structure(compiler(), **asked)), b""
    assert isinstance(theirs, GuidedProgress)
    rng = random.Random(seed)
    for _ in range(most):
        tokens, known = allowed(theirs), set(allowed(ours))
        assert tokens and set(tokens) <= known and theirs.may_end == ours.may_end, data
        token = EOS if EOS in tokens and rng.random() < 0.4 else rng.choice(tokens)
        branch = theirs.after(token)
        theirs.append(token)
        assert branch.is_over == theirs.is_over and (theirs.is_over or allowed(branch) == allowed(theirs))
        if token == EOS:
            assert theirs.is_over
            return data, True
        ours.append(token)
        data += TOKENS[token]
        assert not theirs.problem and theirs.is_over == ours.is_over
        if theirs.is_over:
            return data, True
    return data, False


@given(patterns, st.integers(0, 100))
@settings(deadline=None)
def test_patterns(pattern, seed):
    try:
        structure(compiler(), regex=pattern)
    except StructureError:
        return
    data, is_over = walk_both(seed, regex=pattern)
    assert not is_over or re.fullmatch(pattern, data.decode(errors="replace"), re.ASCII) or b"\xff" in data


@given(schemas, st.integers(0, 100))
@settings(deadline=None)
def test_schemas(schema, seed):
    data, is_over = walk_both(seed, json=schema)
    if is_over:
        json.loads(data)


@pytest.mark.parametrize(
    "asked",
    [
        *({"grammar": grammar} for grammar in GRAMMARS),
        {"choice": ["yes", "no", 'a "word"', "né"]},
        {"regex": r"\d{2}-\w"},
    ],
    ids=str,
)
@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=10)
def test_grammars_choices_and_classes_of_characters(asked, seed):
    walk_both(seed, **asked)


def test_any_object_can_be_asked_for():
    progress, data = begin(guided(json_object=True)), b""
    for token in b'{"a": [1, {"b": null}]}':
        assert token + 1 in allowed(progress) or data, "a byte by itself"
        progress.append(token + 1)
        data += bytes([token])
    assert progress.is_over and progress.may_end and not progress.problem


def test_what_is_not_allowed_ends_an_output_and_rewinding_begins_again():
    progress = begin(guided(regex="ab?"), is_told=True)
    first = allowed(progress)
    progress.append(1 + ord("x"))
    assert progress.is_over and not allowed(progress) and not progress.problem
    progress.append(1 + ord("a"))
    assert progress.is_over
    progress.rewind()
    assert not progress.is_over and allowed(progress) == first and progress.is_told
    progress.append(len(TOKENS) - 1)
    assert progress.is_over, "a token without bytes is an ending"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"structural_tag": {"format": {"type": "any_text"}}}, "followed by the backend 'minivllm' alone"),
        ({"regex": "("}, "structured_outputs (regex)"),
        ({"grammar": "root ::= nowhere"}, "structured_outputs (grammar)"),
        ({"json": {"type": "nothing"}}, "structured_outputs (json)"),
    ],
)
def test_what_it_cannot_follow_is_refused_by_name(asked, words):
    with pytest.raises(StructureError, match=re.escape(words)):
        guided(**asked)


def test_an_engine_takes_it_for_all_requests_with_samples_and_beams(tmp_path):
    llm = LLM(
        MODEL_PATH, attention_backend="torch", structured_outputs_config={"backend": "llguidance"},
        num_gpu_blocks_override=24, block_size=8, max_model_len=96, trace=tmp_path / "t.jsonl",
    )  # fmt: skip
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 6}, "old": {"type": "boolean"}},
        "required": ["name", "old"],
    }
    pattern = "[a-z]{3} [0-9]{2}"
    params = [
        SamplingParams(max_tokens=60, n=2, seed=1, structured_outputs=StructuredOutputsParams(json=schema)),
        SamplingParams(
            max_tokens=20,
            n=2,
            use_beam_search=True,
            structured_outputs=StructuredOutputsParams(regex=pattern),
        ),
    ]
    first, second = llm.generate(["A cat", "A dog"], params, use_tqdm=False)
    for output in first.outputs:
        if output.finish_reason == "stop":
            assert json.loads(output.text).keys() == {"name", "old"}
    assert any(output.finish_reason == "stop" for output in first.outputs)
    assert all(re.fullmatch(pattern, output.text) for output in second.outputs)
    from minivllm.trace.reader import read_trace

    assert read_trace(tmp_path / "t.jsonl").header.config["structured_outputs_backend"] == GUIDANCE
