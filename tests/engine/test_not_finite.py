"""Logits that are no numbers end their own request, with a sentence, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm import LLM
from minivllm.console.commands import mistake
from minivllm.decoding.sampler import Sampler
from minivllm.model.tiny import MODEL_PATH
from minivllm.outputs import FailedRequestsError
from minivllm.sampling_params import SamplingParams
from minivllm.trace.events import SequenceFinished
from minivllm.trace.reader import read_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.summary import summarize
from minivllm.trace.timeline import make_timeline
from tests.engine.fakes import VOCAB_SIZE, FakeExecutor, make_engine
from tests.engine.test_interrupts import Interrupt
from tests.engine.test_sharing import EOS, follow, limits, play, searches
from viz.figures.beam_tree import beam_tree
from viz.figures.captions import captions
from viz.figures.overview import overview

POISON = 90
"""Prompts that begin with this token or a larger one are those whose logits go wrong."""

WORDS = {
    "nan": "the model's logits hold 1 NaN among 97 values",
    "infinity": "the model's logits hold 1 infinity among 97 values",
    "nothing": "the model's logits are all minus infinity: no token is possible",
}


class PoisonedExecutor(FakeExecutor):
    """From `after[first token]` output tokens on, the rows of a poisoned prompt hold `kind`."""

    def __init__(self, engine, after, kind):
        config = engine.config
        super().__init__(config.num_blocks, config.block_size, config.num_host_blocks)
        self.after, self.kind = after, kind

    def execute(self, plan):
        rows, place = super().execute(plan), 0
        for item in plan.scheduled:
            first = self.cells[item.block_table[0], 0]
            for end in range(item.end - item.num_logits + 1, item.end + 1):
                if end >= self.after.get(first, 10**6):
                    self.spoil(rows[place])
                place += 1
        return torch.from_numpy(rows)

    def spoil(self, row):
        if self.kind == "nothing":
            row[:] = -np.inf
        else:
            row[5] = {"nan": np.nan, "infinity": np.inf}.get(self.kind, -np.inf)


def make_poisoned(after, kind="nan", **limits):
    engine = make_engine(eos_token_ids=EOS, **limits)
    engine.executor = PoisonedExecutor(engine, after, kind)
    engine.sampler = Sampler(VOCAB_SIZE)
    return engine


def alone(prompt, params):
    """What a request says when nothing goes wrong."""
    return play(make_poisoned({}, num_blocks=200), [(prompt, params)])["0"]


samplings = st.builds(
    lambda seed, count, **more: SamplingParams(seed=seed, max_tokens=count, **more),
    st.integers(0, 99),
    st.integers(1, 12),
    n=st.integers(1, 3),
    temperature=st.sampled_from([0, 1]),
    logprobs=st.sampled_from([None, 2]),
    prompt_logprobs=st.sampled_from([None, None, 1]),
    min_tokens=st.sampled_from([0, 0, 1]),
    presence_penalty=st.sampled_from([0, 0, 1.0]),
)
tails = st.lists(st.integers(0, 3), min_size=1, max_size=9)
work = st.lists(st.tuples(tails, samplings | searches, st.none() | st.integers(0, 5)), min_size=1, max_size=4)


@settings(max_examples=max(15, settings().max_examples // 2))
@given(data=st.data(), work=work, kind=st.sampled_from(list(WORDS)))
def test_a_request_whose_logits_are_no_numbers_ends_alone(data, work, kind):
    """`work`: end of the prompt, parameters, and after how many tokens the logits go wrong (None: never)."""
    asked, after = [], {}
    for number, (tail, params, moment) in enumerate(work):
        asked.append(([number if moment is None else POISON + number, *tail], params))
        if moment is not None:
            after[POISON + number] = len(tail) + 1 + moment
    recorder = Recorder()
    engine = make_poisoned(after, kind, recorder=recorder, **data.draw(limits(asked)))
    compare, outputs = follow(recorder, engine), {}
    for number, (prompt, params) in enumerate(asked):
        engine.add_request(str(number), prompt, params)
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in engine.step() if output.finished}
        engine.check_invariants()
        compare()
    for number, (prompt, params) in enumerate(asked):
        tokens = [list(item.token_ids) for item in outputs[str(number)].outputs]
        errors = [item for item in outputs[str(number)].outputs if item.finish_reason == "error"]
        expected, moment = alone(prompt, params), work[number][2]
        if moment is None:
            assert tokens == expected and not errors
        elif not params.use_beam_search:
            assert bool(errors) == any(len(whole) > moment for whole in expected)
            assert all(len(item.token_ids) <= moment for item in errors)
            assert all(part == whole[: len(part)] for part, whole in zip(tokens, expected, strict=True))
        for error in errors:
            assert error.stop_reason.startswith(f"request '{number}' failed in step ")
            assert error.stop_reason.endswith(WORDS[kind])
    assert engine.cache.num_free_blocks == engine.config.num_blocks, "every block comes back"
    told = {event.seq for event in recorder.events if getattr(event, "reason", "") == "error"}
    assert bool(told) == any(
        item.finish_reason == "error" for output in outputs.values() for item in output.outputs
    )


def test_the_step_and_the_words_are_told_to_the_caller_and_to_the_trace():
    recorder = Recorder()
    engine = make_poisoned({POISON: 5}, recorder=recorder)
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    engine.add_request("well", [1, 2, 3], params)
    engine.add_request("ill", [POISON, 2, 3], params)
    told = [output for _ in range(3) for output in engine.step() if output.request_id == "ill"]
    assert [output.outputs[0].finish_reason for output in told] == [None, None, "error"]
    words = f"request 'ill' failed in step 2: {WORDS['nan']}"
    assert told[-1].outputs[0].stop_reason == words and len(told[-1].outputs[0].token_ids) == 2
    (event,) = (event for event in recorder.events if isinstance(event, SequenceFinished))
    assert (event.reason, event.stop) == ("error", words)
    assert list(engine.requests) == ["well"], "the engine goes on with the others"


def test_a_request_whose_own_parameters_leave_no_token_is_told_so_and_fails_alone():
    engine = make_poisoned({POISON: 2}, "token 5 is impossible")
    greedy = dict(temperature=0, max_tokens=3, ignore_eos=True)
    engine.add_request("well", [POISON, 3], SamplingParams(**greedy))
    engine.add_request("ill", [POISON, 2], SamplingParams(**greedy, allowed_token_ids=[5]))
    done = {}
    while engine.has_unfinished_requests():
        done |= {output.request_id: output.outputs[0] for output in engine.step()}
    assert (done["well"].finish_reason, len(done["well"].token_ids)) == ("length", 3)
    assert done["ill"].finish_reason == "error"
    assert done["ill"].stop_reason.endswith(
        "its logits, after its own allowed_token_ids, logit_bias and penalties, are all minus infinity: "
        "no token is possible"
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_several_is_not_known_if_one_of_them_has_failed(seed):
    engine = make_poisoned({POISON: 4})
    stops = list(range(0, VOCAB_SIZE, 3))
    params = SamplingParams(n=1, best_of=4, seed=seed, max_tokens=8, stop_token_ids=stops)
    engine.add_request("it", [POISON, 2], params)
    samples = engine.requests["it"].sampling.outputs
    while engine.has_unfinished_requests():
        (*_, output) = engine.step()
    assert {sample.finish.reason for sample in samples} == {"stop", "error"}
    assert [item.finish_reason for item in output.outputs] == ["error"]


def test_summary_and_dashboard_say_that_samples_and_searches_have_failed(tmp_path):
    path = tmp_path / "run.jsonl"
    with Recorder(path) as recorder:
        engine = make_poisoned({POISON: 4, POISON + 1: 4}, recorder=recorder)
        for number, beams in enumerate((False, True)):
            params = SamplingParams(n=2, max_tokens=5, use_beam_search=beams, temperature=0)
            engine.add_request("ab"[number], [POISON + number, 2], params)
        while engine.has_unfinished_requests():
            engine.step()
    trace = read_trace(path)
    timeline = make_timeline(trace)
    assert summarize(trace).lines()[0].split(maxsplit=1)[1] == "2 (0 finished, 2 failed)"
    assert "a finishes after 2 tokens: failed, because no token could be chosen." in captions(timeline)[-1]
    assert "b's search fails, because no token could be chosen, and is over." in captions(timeline)[-1]
    assert beam_tree(timeline, "b") and overview(timeline), "and they can be drawn"


def test_a_command_line_says_it_in_a_sentence():
    assert mistake(FailedRequestsError("prompts[0]: NaN", []), []) == "prompts[0]: NaN"


@pytest.mark.parametrize("beams", [False, True])
def test_a_failure_whose_step_is_interrupted_near_its_end_is_told_once(beams):
    params = SamplingParams(n=2, max_tokens=4, use_beam_search=beams, temperature=0)

    def run(line):
        engine = make_poisoned({POISON: 4})
        engine.add_request("ill", [POISON, 2], params)
        engine.add_request("well", [1, 2], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
        told = []
        engine.step(), engine.step()
        with Interrupt(line) as counter:
            told += engine.step()
        while engine.has_unfinished_requests():
            told += engine.step()
        ends = {output.request_id: output.outputs[0] for output in told if output.finished}
        assert len(ends) == sum(output.finished for output in told) == 2, f"interrupted at line {line}"
        assert (ends["ill"].finish_reason, ends["well"].finish_reason) == ("error", "length")
        return list(ends["well"].token_ids), counter.num_lines

    whole, num_lines = run(0)
    assert num_lines > 100
    for line in range(num_lines, num_lines - 90, -3):  # the end of a step: what went before must be told
        assert run(line)[0] == whole


def test_one_llm_call_names_the_prompt_that_failed_and_loses_no_other_output(monkeypatch):
    llm = LLM(MODEL_PATH, max_model_len=64, num_gpu_blocks_override=32, attention_backend="torch")
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    right = llm.generate([[5, 6], [7, 8], [9]], params, use_tqdm=False)
    execute = llm.engine.executor.execute

    def spoiled(plan):
        logits = execute(plan).clone()
        logits[[item.seq_id % 3 == 1 for item in plan.scheduled]] = np.nan
        return logits

    monkeypatch.setattr(llm.engine.executor, "execute", spoiled)
    words = (
        r"^prompts\[1\]: request '4' failed in step 3: the model's logits hold (\d+) NaN among \1 values \("
    )
    with pytest.raises(FloatingPointError, match=words) as caught:
        llm.generate([[5, 6], [7, 8], [9]], params, use_tqdm=False)
    outputs = [output.outputs[0] for output in caught.value.outputs]
    assert [output.finish_reason for output in outputs] == ["length", "error", "length"]
    assert [outputs[i].token_ids for i in (0, 2)] == [right[i].outputs[0].token_ids for i in (0, 2)]
    monkeypatch.undo()
    assert (
        llm.generate([7, 8], params, use_tqdm=False)[0].outputs[0].token_ids == right[1].outputs[0].token_ids
    )
    assert llm.engine.cache.num_free_blocks == 32
