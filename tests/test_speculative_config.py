"""What `speculative_config` may be, and what is said of everything else."""

import json

import numpy as np
import pytest

from minivllm.engine.engine_args import EngineArgs
from minivllm.speculative_config import SpeculativeConfig

NGRAM = {"method": "ngram", "num_speculative_tokens": 3}


@pytest.mark.parametrize("form", [dict, json.dumps, lambda given: SpeculativeConfig(**given)])
def test_a_dictionary_its_json_and_a_config_are_the_same(form):
    args = EngineArgs("x", speculative_config=form(NGRAM | {"prompt_lookup_max": 4}))
    assert args.speculative_config == SpeculativeConfig(3, "ngram", None, 4, 4, None)
    assert EngineArgs("x").speculative_config is None


@pytest.mark.parametrize(
    ("given", "low", "high"),
    [({}, 5, 5), ({"prompt_lookup_min": 2}, 2, 2), ({"prompt_lookup_max": 4, "prompt_lookup_min": 1}, 1, 4)],
)
def test_a_size_of_n_grams_that_is_left_out_is_the_other_one(given, low, high):
    config = SpeculativeConfig.of(NGRAM | given)
    assert (config.prompt_lookup_min, config.prompt_lookup_max) == (low, high)


def test_numbers_of_numpy_become_those_of_python():
    names = ("num_speculative_tokens", "prompt_lookup_min", "prompt_lookup_max", "disable_by_batch_size")
    config = SpeculativeConfig.of({"method": "ngram"} | {name: np.int64(3) for name in names})
    assert all(type(getattr(config, name)) is int for name in names)


def test_a_model_means_the_method_draft_model():
    config = SpeculativeConfig.of({"model": "folder", "num_speculative_tokens": 2})
    assert config.method == "draft_model"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("{", "speculative_config must be a dictionary or its JSON, got '{'"),
        (3, "speculative_config must be"),
        ("[1]", "speculative_config must be a dictionary or its JSON"),
        ({"method": "ngram"}, r"\['num_speculative_tokens'\] must be given"),
        (NGRAM | {"tokens": 3}, "has no entry 'tokens'; it has num_speculative_tokens, method"),
        (NGRAM | {"method": "eagle"}, r"\['method'\] must be one of 'ngram', 'draft_model', got 'eagle'"),
        ({"num_speculative_tokens": 3}, r"\['method'\] must be"),
        (NGRAM | {"num_speculative_tokens": 0}, r"\['num_speculative_tokens'\] must be .*got 0"),
        (NGRAM | {"num_speculative_tokens": 65}, r"\['num_speculative_tokens'\] must be .*64.*got 65"),
        (NGRAM | {"num_speculative_tokens": True}, r"\['num_speculative_tokens'\] must be .*got True"),
        (NGRAM | {"prompt_lookup_min": 0}, r"\['prompt_lookup_min'\] must be .*got 0"),
        (NGRAM | {"prompt_lookup_min": 10**30}, r"must be an integer of at least 1 and at most 922"),
        (NGRAM | {"prompt_lookup_max": "4"}, r"\['prompt_lookup_max'\] must be .*got '4'"),
        (
            NGRAM | {"prompt_lookup_min": 4, "prompt_lookup_max": 3},
            r"must be at most prompt_lookup_max \(3\), got 4",
        ),
        (NGRAM | {"model": "x"}, r"\['model'\] is for the method 'draft_model', got 'x'"),
        (NGRAM | {"disable_by_batch_size": -1}, r"\['disable_by_batch_size'\] must be .*got -1"),
        ({"method": "draft_model", "num_speculative_tokens": 2}, r"\['model'\] must be a folder or a hub id"),
        (
            {"model": "x", "num_speculative_tokens": 2, "prompt_lookup_min": 3},
            r"\['prompt_lookup_min'\] is for the method 'ngram', got 3",
        ),
    ],
)
def test_what_cannot_work_is_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        EngineArgs("x", speculative_config=wrong)


def test_on_the_command_line_it_is_json_and_a_mistake_is_a_sentence(here):
    code, _, errors = here("generate", "hello", "--speculative-config", '{"method": "eagle"}')
    assert code == 2 or code == 1
    assert "speculative_config" in errors and "Traceback" not in errors
