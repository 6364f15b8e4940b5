"""What follows structured outputs: its names, and what is refused by name."""

import re

import pytest

from minivllm.console.dotted_flags import join_dotted
from minivllm.engine.engine_args import EngineArgs
from minivllm.model.tiny import MODEL_PATH
from minivllm.structured_outputs_config import StructuredOutputsConfig


@pytest.mark.parametrize("value", [None, {}, {"backend": "auto"}, '{"backend": "minivllm"}'])
def test_our_own_is_the_usual_one(value):
    assert StructuredOutputsConfig.of(value).backend == "minivllm"
    assert EngineArgs(MODEL_PATH, structured_outputs_config=value).structured_outputs_config in (
        None,
        StructuredOutputsConfig(),
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            {"backend": "xgrammar"},
            "structured_outputs_config['backend'] must be one of 'auto', 'minivllm', 'gui",
        ),
        ({"backend": 3}, "structured_outputs_config['backend'] must be one of"),
        (
            {"engine": "x"},
            "structured_outputs_config has no entry 'engine'; it has backend, disable_fallback",
        ),
        ({"disable_fallback": "yes"}, "structured_outputs_config['disable_fallback'] must be"),
        ("[", "structured_outputs_config must be a dictionary or its JSON, got '['"),
        ("3", "structured_outputs_config must be a dictionary or its JSON"),
    ],
)
def test_what_cannot_be_is_refused_by_name(value, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        EngineArgs(MODEL_PATH, structured_outputs_config=value)


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("minivllm.structured_outputs_config.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs llguidance: pip install 'minivllm\[structured\]'"):
        StructuredOutputsConfig("guidance")


@pytest.mark.parametrize(
    ("typed", "joined"),
    [
        (
            "serve --structured-outputs-config.backend guidance m",
            'serve m --structured-outputs-config {"backend": "guidance"}',
        ),
        (
            "x --speculative-config.method=ngram --speculative-config.num_speculative_tokens 4",
            'x --speculative-config {"method": "ngram", "num_speculative_tokens": 4}',
        ),
        (
            'x --speculative-config {"method":"ngram"} --speculative-config.prompt-lookup-max 3',
            'x --speculative-config {"method": "ngram", "prompt_lookup_max": 3}',
        ),
        ("x --a.b c -- --speculative-config.method x", "x --a.b c -- --speculative-config.method x"),
        ("x --speculative-config {}", "x --speculative-config {}"),
    ],
)
def test_dotted_flags_become_one(typed, joined):
    words = typed.split(" ")
    assert " ".join(join_dotted(words)) == joined


def test_a_dotted_flag_needs_a_value_and_a_dictionary():
    with pytest.raises(ValueError, match=r"--speculative-config\.method needs a value"):
        join_dotted(["x", "--speculative-config.method"])
    with pytest.raises(ValueError, match="--speculative-config must be a dictionary as JSON, got '3'"):
        join_dotted(["x", "--speculative-config", "3", "--speculative-config.method", "ngram"])
