"""Any value for any argument of a public entry: it works, or a sentence names it and nothing changes.

What is refused is a `ValueError` or a `TypeError`, before anything has changed; the engine serves afterwards.
"""

import enum
from dataclasses import fields
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivllm import BeamSearchParams, Engine, EngineArgs, SamplingParams
from minivllm.engine.settings import settings_of
from minivllm.model.hub import resolve_model, resolve_tokenizer
from minivllm.model.tokenizer import Tokenizer
from minivllm.model.tokenizer_files import TokenizerFiles
from minivllm.trace.recorder import Recorder
from tests.engine.fakes import VOCAB_SIZE, expected_output, make_engine, make_llm


class Hostile:
    """It has no hash, cannot be shown, and knows no truth."""

    __hash__ = None

    def __repr__(self):
        raise ZeroDivisionError

    __str__ = __bool__ = __eq__ = __len__ = __repr__


class Colour(enum.Enum):
    RED = 1


integers = st.integers(-3, 9) | st.sampled_from([2**31, 2**63 - 1, -(2**63), 2**63, 2**64, 10**400])
numbers = integers | st.floats() | st.sampled_from([0.5, 1.0, 1e300, -1e-300])
texts = st.text(max_size=6) | st.sampled_from(["", "x", "\ud800", "a\0b", "从前", "y" * 5000, "never", "16"])
of_numpy = st.sampled_from(
    [np.int64(3), np.float32(0.5), np.bool_(True), np.str_("x"), np.zeros(3), np.eye(2, dtype=int)]
)
of_torch = st.sampled_from(
    [torch.tensor(3), torch.tensor([1, 2]), torch.tensor(0.5), torch.eye(2), torch.float16]
)
others = st.sampled_from(
    [Hostile(), object(), Hostile, Colour.RED, Path("x"), len, ..., 2j, range(3), b"x", bytearray(b"x")]
)
simple = st.none() | st.booleans() | numbers | texts | of_numpy | of_torch | others
anything = st.one_of(
    simple,
    st.lists(simple, max_size=3),
    st.tuples(simple),
    st.dictionaries(texts | integers, simple, max_size=2),
    st.lists(st.lists(integers, max_size=3), max_size=3),
    st.sets(integers, max_size=3),
    st.builds(iter, st.lists(integers, max_size=2)),
    st.builds(SamplingParams) | st.lists(st.builds(SamplingParams), max_size=2),
)


def some_of(names):
    """Any values for one to three of these arguments."""
    chosen = st.lists(st.sampled_from(sorted(names)), min_size=1, max_size=3, unique=True)
    return chosen.flatmap(lambda few: st.fixed_dictionaries(dict.fromkeys(few, anything)))


def test_a_number_that_python_does_not_write_is_refused_in_words():
    with pytest.raises(ValueError, match=r"seed must be an integer .* got int of too many digits"):
        SamplingParams(seed=10**5000)


def attempt(given_values, function):
    """Call it. A refusal must name one of the arguments; then the result is None."""
    try:
        return function(**given_values)
    except (ValueError, TypeError) as error:
        names = (*given_values, "the prompt is empty")
        assert any(name in str(error) for name in names), f"it names no argument: {error!r}"
        assert len(str(error)) < 1500, "shortened"
        return None


def letters():
    """A tokenizer of a handful of letters, and a beginning."""
    names = ["[B]", "[U]", *"abcx 从前"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="[U]")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[B] $A", special_tokens=[("[B]", 0)]
    )
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}"
    return Tokenizer(TokenizerFiles(backend, chat_templates=template))


def serves(engine):
    """It says what it should, its books are right, and all of its trace can be written."""
    engine.add_request("after", [1, 2], SamplingParams(temperature=0, max_tokens=4))
    told = []
    for _ in range(300):
        told += [out for out in engine.step() if out.request_id == "after"]
        if not engine.has_unfinished_requests():
            break
    engine.check_invariants()
    assert list(told[-1].outputs[0].token_ids) == expected_output([1, 2], 4)
    msgspec.json.encode(engine.recorder.events)


def new_engine():
    engine = make_engine(num_blocks=16, max_model_len=24, recorder=Recorder())
    engine.tokenizer = letters()
    return engine


@given(values=some_of(field.name for field in fields(SamplingParams)))
def test_sampling_params(values):
    params = attempt(values, SamplingParams)
    if params is not None:
        engine = new_engine()
        attempt({**values, "prompt": None}, lambda **_: engine.add_request("it", [1, 2, 3], params))
        serves(engine)


@given(values=some_of(field.name for field in fields(BeamSearchParams)))
def test_beam_search_params(values):
    params = attempt(values, lambda **some: BeamSearchParams(**{"beam_width": 2, "max_tokens": 3, **some}))
    if params is not None:
        engine = new_engine()
        attempt({**values, "prompt": None}, lambda **_: engine.add_request("it", [1, 2, 3], params))
        serves(engine)


REQUEST = ("request_id", "prompt_token_ids", "params", "prompt", "arrival_time", "priority", "cache_salt",
           "structure")  # fmt: skip


@given(values=some_of(REQUEST), policy=st.sampled_from(["fcfs", "priority", "shortest-remaining"]))
def test_a_request_of_the_engine(values, policy):
    engine = make_engine(num_blocks=16, max_model_len=24, scheduling_policy=policy, recorder=Recorder())
    engine.add_request("before", [7], SamplingParams(max_tokens=2, temperature=0))
    before = engine.snapshot()
    request = {"request_id": "it", "prompt_token_ids": [1, 2, 3], **values}
    state = attempt(request, engine.make_request)
    assert engine.snapshot() == before, "nothing has changed yet"
    if state is not None:
        engine.enqueue(state)
        assert state.prompt_token_ids == [int(token) for token in request["prompt_token_ids"]]
    assert attempt(values, lambda **_: engine.abort(values.get("request_id", "it"))) is None or state
    serves(engine)


@given(call=anything)
def test_a_step_for_a_caller(call):
    engine = new_engine()
    if attempt({"call": call}, engine.step) is None:
        assert call is not None
    serves(engine)


@given(values=some_of(("config", "vocab_size", "eos_token_ids", "seed")))
def test_an_engine(values):
    parts = vars(new_engine())
    known = {name: parts[name] for name in ("config", "executor", "sampler")}
    known |= {"vocab_size": VOCAB_SIZE, "recorder": Recorder()}
    made = attempt(values, lambda **some: Engine(**{**known, **some}))
    if made is not None and made.vocab_size >= VOCAB_SIZE:
        serves(made)


CALLS = {
    "generate": ("prompts", "sampling_params", "priority", "use_tqdm"),
    "beam_search": ("prompts", "params", "use_tqdm"),
    "chat": ("messages", "sampling_params"),
}
DEFAULTS = {
    "prompts": "abc",
    "messages": [{"role": "user", "content": "abc"}],
    "params": BeamSearchParams(2, max_tokens=2),
    "use_tqdm": False,
}


@given(data=st.data(), method=st.sampled_from(sorted(CALLS)))
def test_a_call_of_an_llm(data, method):
    llm = make_llm(num_blocks=16, max_model_len=24, recorder=Recorder())
    llm.engine.tokenizer = letters()
    values = data.draw(some_of(CALLS[method]))
    arguments = {name: DEFAULTS[name] for name in (*CALLS[method], "use_tqdm") if name in DEFAULTS} | values
    before = llm.engine.snapshot()
    if attempt(arguments, getattr(llm, method)) is None:
        assert llm.engine.snapshot() == before and not llm.engine.requests
    serves(llm.engine)


@given(values=some_of(settings_of(EngineArgs)))
def test_the_settings_of_an_engine(values):
    made = attempt(values, lambda **some: EngineArgs(**{"model": "x", **some}))
    if made is not None:
        numbers = {name: value for name, value in vars(made).items() if not isinstance(value, str | Path)}
        msgspec.json.encode(numbers)  # in Python's own types, whatever was given


@pytest.mark.parametrize("name", ["y" * 5000, "a\0b", "\ud800", "", "y" * 300, "~no-such-user/x", "x" * 200])
def test_a_name_that_no_file_can_have_is_refused_as_what_it_is(name):
    for argument, resolve in (("model", resolve_model), ("tokenizer", resolve_tokenizer)):
        with pytest.raises(ValueError, match=argument) as caught:
            resolve(getattr(EngineArgs(**{"model": "x", argument: name}), argument))
        assert len(str(caught.value)) < 1000, "shortened"


def test_a_request_has_its_own_copy_of_its_parameters():
    """What the caller changes in its own parameters later is checked later, and changes nothing now."""
    engine, params = new_engine(), SamplingParams(temperature=0, max_tokens=4)
    engine.add_request("it", [1, 2], params)
    params.max_tokens = "many"
    with pytest.raises(ValueError, match="max_tokens must be an integer of at least 1, got 'many'"):
        engine.add_request("next", [1, 2], params)
    params.temperature = float("nan")
    while engine.has_unfinished_requests():
        (output,) = engine.step()
    assert list(output.outputs[0].token_ids) == expected_output([1, 2], 4)
