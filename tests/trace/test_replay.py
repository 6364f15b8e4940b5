"""The trace is the truth: events alone give back the engine's own state, after every step."""

import random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.model.tiny import MODEL_PATH
from minivllm.model.tokenizer import Tokenizer
from minivllm.trace import contradictions
from minivllm.trace.events import (
    VERSION,
    AnyEvent,
    RequestQueued,
    StateRebuilt,
    StepFinished,
    TraceEnded,
)
from minivllm.trace.reader import TraceError, make_trace, read_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.replay import Replay, ReplayState
from tests.engine.fakes import VOCAB_SIZE, make_engine
from tests.engine.test_engine import greedy, limits, requests
from tests.trace.every_event import HEADER


def follow(recorder, state, position):
    """Let `state` catch up with the recorder; the header is the first event."""
    for event in recorder.events[position:]:
        state.apply(event)
    return len(recorder.events)


@given(work=requests, data=st.data())
def test_replaying_the_events_gives_the_engines_state_after_every_step(work, data):
    recorder = Recorder()
    engine = make_engine(recorder=recorder, **data.draw(limits(work)))
    state = ReplayState(recorder.events[0])
    position, added = 1, 0
    while added < len(work) or engine.has_unfinished_requests():
        action = data.draw(st.sampled_from(["add", "step", "step", "step", "abort", "refuse"]))
        if action == "add" and added < len(work):
            prompt, count = work[added]
            engine.add_request(str(added), prompt, greedy(count))
            added += 1
        elif action == "abort":
            engine.abort(str(data.draw(st.integers(0, len(work)))))
        elif action == "refuse":
            with pytest.raises(ValueError):
                engine.add_request("never", [VOCAB_SIZE], greedy(1))
        else:
            engine.step()
        position = follow(recorder, state, position)
        assert state.snapshot() == engine.snapshot()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A trace file of a busy run, and the engine's snapshot after each of its steps."""
    path = tmp_path_factory.mktemp("trace") / "run.jsonl"
    random.seed(3)
    snapshots = []
    with Recorder(path) as recorder:
        engine = make_engine(num_blocks=20, max_num_batched_tokens=24, max_num_seqs=5, recorder=recorder)
        for number in range(60):
            prompt = [random.randrange(VOCAB_SIZE) for _ in range(random.randint(1, 30))]
            engine.add_request(str(number), prompt, greedy(random.randint(1, 20)))
            for _ in range(random.randint(1, 4)):
                if engine.has_unfinished_requests():
                    engine.step()
                    snapshots.append(engine.snapshot())
        while engine.has_unfinished_requests():
            engine.step()
            snapshots.append(engine.snapshot())
    return path, snapshots


def test_any_step_of_a_file_can_be_sought(recorded):
    path, snapshots = recorded
    replay = Replay(read_trace(path))
    assert len(snapshots) > 2 * Replay.KEYFRAME
    final = snapshots[-1]
    assert replay.state_at(replay.trace.num_steps - 1).snapshot() == final
    for step in random.sample(range(len(snapshots)), 40):
        state = replay.state_at(step)
        snapshot = state.snapshot()
        # The file's step also holds the requests that arrived before it, never those after it.
        assert snapshot.tables == snapshots[step].tables
        assert snapshot.free_list == snapshots[step].free_list
        assert snapshot.num_computed_tokens == snapshots[step].num_computed_tokens
        assert snapshot.num_steps == step + 1


def test_seeking_gives_what_walking_gives_and_the_result_may_be_kept(recorded):
    replay = Replay(read_trace(recorded[0]))
    kept = {step: replay.state_at(step) for step in (0, 63, 64, 65, 130)}
    for step, state in replay.walk():
        if step in kept:
            assert kept[step] == state


def test_of_a_large_pool_fewer_states_are_kept_and_any_step_can_be_sought(recorded, monkeypatch):
    monkeypatch.setattr(Replay, "MOST_COPIED", 20)
    replay = Replay(read_trace(recorded[0]))
    assert len(replay._keyframes) <= 2
    for step, state in Replay(replay.trace).walk():
        if step % 50 == 0:
            assert replay.state_at(step) == state


def test_a_pool_is_not_rebuilt_without_end(monkeypatch):
    monkeypatch.setattr(contradictions, "MOST_REBUILT_BLOCKS", 2 * HEADER.num_blocks)
    state = ReplayState(HEADER)
    for _ in range(3):
        state.apply(StateRebuilt(0.0, 0, ()))
    with pytest.raises(TraceError, match="rebuilt again"):
        state.apply(StateRebuilt(0.0, 0, ()))


@given(data=st.data())
def test_a_trace_cut_anywhere_after_its_header_opens_with_a_warning(recorded, tmp_path_factory, data):
    content = recorded[0].read_bytes()
    header_end = content.index(b"\n") + 1
    cut = data.draw(st.integers(header_end, len(content) - 2))
    path = tmp_path_factory.mktemp("cut") / "cut.jsonl"
    path.write_bytes(content[:cut])
    trace = read_trace(path)
    assert any("no end mark" in warning for warning in trace.warnings)
    complete = read_trace(recorded[0])
    assert complete.events[: len(trace.events)] == trace.events
    for _ in Replay(trace).walk():
        pass


def test_a_complete_trace_has_no_warning(recorded):
    trace = read_trace(recorded[0])
    assert trace.warnings == []
    assert isinstance(trace.events[-1], TraceEnded)
    assert trace.num_steps == sum(isinstance(event, StepFinished) for event in trace.events)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"hello\n", "is not a minivllm trace"),
        (b"\x80\x81\n", "is not a minivllm trace"),
        (b"[1, 2]\n", "is not a minivllm trace"),
        (b'{"event":"StepStarted","step":0,"time":0}\n', "is not a minivllm trace"),
        (b'{"event":"TraceHeader","version":%d}\n' % (VERSION + 1), f"version {VERSION + 1}"),
        (b'{"event":"TraceHeader","version":%d}\n' % VERSION, "damaged header"),
    ],
)
def test_what_is_not_a_trace_is_refused_in_one_sentence(tmp_path, content, message):
    path = tmp_path / "file.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TraceError, match=message) as caught:
        read_trace(path)
    assert "\n" not in str(caught.value)


def test_damage_in_the_middle_is_named_by_its_line(recorded, tmp_path):
    lines = recorded[0].read_bytes().split(b"\n")
    lines[41] = b'{"event":"NoSuchEvent"}'
    path = tmp_path / "damaged.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(TraceError, match="line 42"):
        read_trace(path)


def test_without_a_recorder_no_event_is_even_built(monkeypatch):
    def explode(*args, **kwargs):
        raise AssertionError("an event was built")

    from minivllm.engine import core, core_events, lifecycle, step_loop
    from minivllm.memory import kv_cache_manager
    from minivllm.scheduling import scheduler

    classes = {event.__name__ for event in get_args(AnyEvent)}
    patched = set()
    for module in (core, core_events, lifecycle, step_loop, kv_cache_manager, scheduler):
        for name in classes & vars(module).keys():
            monkeypatch.setattr(module, name, explode)
            patched.add(name)
    assert {"RequestQueued", "BlocksAllocated", "BlocksFreed", "BatchPlanned", "StepStarted"} <= patched
    engine = make_engine()
    engine.add_request("it", [1, 2, 3], greedy(5))
    while engine.has_unfinished_requests():
        engine.step()


def test_a_disk_that_fills_up_ends_the_recording_and_not_the_engine(tmp_path):
    recorder = Recorder(tmp_path / "run.jsonl")
    engine = make_engine(recorder=recorder)

    class FullDisk:
        def write(self, data):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    recorder._file.close()
    recorder._file = FullDisk()
    engine.add_request("it", [1, 2, 3], greedy(5))
    with pytest.warns(UserWarning, match="No space left on device"):
        while engine.has_unfinished_requests():
            last = engine.step()
    assert len(last[0].outputs[0].token_ids) == 5
    recorder.close()


def test_a_trace_that_cannot_be_created_is_refused(tmp_path):
    with pytest.raises(ValueError, match="trace: cannot write to"):
        Recorder(tmp_path)


def test_events_after_the_last_step_form_a_step_of_their_own():
    recorder = Recorder()
    engine = make_engine(recorder=recorder)
    engine.add_request("it", [1, 2, 3], greedy(5))
    engine.step()
    engine.abort("it")
    header, *events = recorder.events
    assert make_trace(header, events).num_steps == 2


def test_a_reader_sees_the_text_of_each_prompt_token():
    recorder = Recorder()
    tokenizer = Tokenizer.from_folder(MODEL_PATH)
    text = "Question: 什么是KV缓存？ 😀"
    engine = make_engine(recorder=recorder)
    engine.vocab_size, engine.tokenizer = len(tokenizer), tokenizer
    engine.add_request("it", tokenizer.encode(text), greedy(1), prompt=text)
    (queued,) = (event for event in recorder.events if isinstance(event, RequestQueued))
    assert len(queued.prompt_pieces) == len(queued.prompt_token_ids)
    assert "".join(queued.prompt_pieces).removeprefix("<s>").strip() == text
