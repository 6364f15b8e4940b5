"""Settings of a run: in the link, for the engine, as a program, and what the engine refuses about them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.console.run_requests import RunJob, run_job
from minivllm.scheduling.choose_policy import POLICIES
from minivllm.trace.reader import read_trace
from viz import run_settings
from viz.run_settings import CHOICES, EXAMPLES, RunSettings, as_python, as_text, field_of, from_link, to_link

SMALL = RunSettings(("Once upon a time,", "从前，"), max_tokens=6, num_gpu_blocks_override=30)


def test_the_page_offers_the_engine_s_own_policies():
    assert tuple(POLICIES) == run_settings.POLICIES


@given(
    prompts=st.lists(st.text("ab问\n ", max_size=12).filter(str.strip), max_size=4),
    number=st.integers(-5, 500),
    share=st.floats(0, 2),
    flag=st.booleans(),
    options=st.tuples(*(st.sampled_from(options) for options in CHOICES.values())),
)
def test_a_link_leads_back_to_the_settings(prompts, number, share, flag, options):
    """And the prompts' own text does: what the field shows is what is run."""
    texts = run_settings.from_text(as_text(tuple(prompts)))
    chosen = dict(zip(CHOICES, options, strict=True))
    settings = RunSettings(
        texts, temperature=share, seed=number, block_size=number, use_beam_search=flag, **chosen
    )
    assert from_link(to_link(settings)) == settings
    assert run_settings.from_text(as_text(settings.prompts)) == settings.prompts
    assert to_link(RunSettings()) == ""


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s), max_leaves=4)
)
def test_a_strange_link_is_none(value):
    names = [*RunSettings.__dataclass_fields__, "model", "trace"]
    for link in (json.dumps(value), json.dumps(dict.fromkeys(names, value)), "[" * 10_000, "{"):
        settings = from_link(link)
        assert all(getattr(settings, name) in options for name, options in CHOICES.items())
        json.dumps(settings.job("x"))
    settings = from_link('{"prompts":["a\\ud800"],"temperature":1,"swap_mib":2}')
    assert settings.prompts == ("a?",) and type(settings.temperature) is type(settings.swap_mib) is float


def test_prompts_that_are_too_many_are_counted():
    most = run_settings.MOST_PROMPTS
    text = as_text(("a",) * (most + 3))
    assert len(run_settings.from_text(text)) == most and run_settings.num_left_out(text) == 3
    assert not run_settings.num_left_out(as_text(("a",) * most)) and not run_settings.num_left_out("")


def test_prompts_that_are_too_long_for_a_link_stay_behind():
    link = to_link(RunSettings(("word " * 1000,), block_size=8))
    assert json.loads(link) == {"block_size": 8}


REFUSED = {
    "block_size": {"block_size": 0},
    "num_gpu_blocks_override": {"num_gpu_blocks_override": 1, "max_tokens": 60},
    "preemption_mode": {"preemption_mode": "swap", "swap_mib": 0.0},
    "swap_mib": {"preemption_mode": "swap", "swap_mib": -1.0},
    "max_num_seqs": {"max_num_seqs": 0},
    "max_num_batched_tokens": {"max_num_batched_tokens": 0},
    "n": {"n": 20},
    "temperature": {"use_beam_search": True, "temperature": 0.5},
    "use_beam_search": {"use_beam_search": True, "n": 2, "speculation": "ngram"},
    "num_speculative_tokens": {"speculation": "draft_model", "num_speculative_tokens": 0},
    "max_tokens": {"max_tokens": 0},
    "seed": {"seed": -1},
    "arrive_every": {"arrive_every": -1},
    "prompts": {"prompts": ()},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_told_beside_the_field_that_it_names(name, tmp_path):
    settings = RunSettings(**{"prompts": SMALL.prompts} | REFUSED[name])
    with pytest.raises(ValueError) as refused:
        run_job(RunJob(**settings.job(str(tmp_path / "run.jsonl"))))
    assert field_of(str(refused.value)) == name, str(refused.value)


def tokens_of(path):
    trace = read_trace(path)
    return [(type(event).__name__, *_without_times(event)) for event in trace.events]


def _without_times(event):
    times = ("time", "seconds", "arrival_time")
    return [(name, getattr(event, name)) for name in event.__struct_fields__ if name not in times]


@pytest.mark.parametrize(
    "settings",
    [
        RunSettings(SMALL.prompts, n=2, temperature=0.9, seed=3, max_tokens=6, arrive_every=2),
        RunSettings(SMALL.prompts, speculation="draft_model", max_tokens=9, arrive_every=0),
    ],
    ids=["one after another", "all at once"],
)
def test_the_program_does_the_same_step_by_step(settings, tmp_path, monkeypatch):
    run_job(RunJob(**settings.job(str(tmp_path / "job.jsonl"))))
    monkeypatch.chdir(tmp_path)
    exec(as_python(settings), {})
    assert tokens_of(tmp_path / "run.jsonl") == tokens_of(tmp_path / "job.jsonl")


def test_every_example_can_be_run(tmp_path):
    for example in EXAMPLES.values():
        settings = example.settings
        assert from_link(to_link(settings)) == settings
        path = tmp_path / "run.jsonl"
        run_job(RunJob(**settings.job(str(path))), iter([False] * 6 + [True]).__next__)
        trace = read_trace(path)
        assert trace.num_steps and not trace.warnings, "what is stopped ends as a whole trace"
