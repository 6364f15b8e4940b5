"""Whatever replicas do, every request ends, and nobody is told the same twice. Theirs are threads here."""

import asyncio
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.engine.engine_args import EngineArgs
from minivllm.model.tiny import MODEL_PATH
from minivllm.outputs import CompletionOutput, RequestOutput
from minivllm.sampling_params import RequestOutputKind, SamplingParams
from minivllm.scheduling.router import ROUTERS
from minivllm.server import replicas as replicas_module
from minivllm.server.engine_report import EngineReport
from minivllm.server.engine_thread import EngineDeadError
from minivllm.server.replica_client import ReplicaClient
from minivllm.server.replica_messages import (
    Add,
    Answer,
    Ask,
    Beat,
    Leave,
    Outputs,
    Ready,
    Start,
    decode_to_replica,
    frame,
    receive,
)
from minivllm.server.replicas import Replicas
from tests import event_loops, patience


class ThreadProgram:
    """A replica in a thread: `play(program)` is its life."""

    def __init__(self, index, play):
        self.connection, self.socket = socket.socketpair()
        self.index = index
        self.thread = threading.Thread(target=self._run, args=(play,), daemon=True)
        self.thread.start()

    def _run(self, play):
        with self.socket:
            if isinstance(self.hear(), Start):  # and not stopped before that
                self.say(Ready(64))
                play(self)

    def hear(self):
        body = receive(self.socket)
        return None if body is None else decode_to_replica(body)

    def say(self, message):
        try:
            self.socket.sendall(frame(message))
        except OSError:  # the server has left
            return

    def ending(self, seconds):
        self.thread.join(seconds)
        return None if self.thread.is_alive() else "as it was planned"

    def kill(self):
        self.socket.shutdown(socket.SHUT_RDWR)
        patience.join(self.thread)
        return "it was ended"


class ThreadHome:
    def __init__(self, play):
        self.play, self.lives = play, []

    def start(self, index, is_wanted):
        self.lives.append(index)
        return ThreadProgram(index, self.play)

    def close(self):
        pass


class World:
    """Replicas that answer with numbers; the first of them dies once, after so many messages."""

    def __init__(self, size, router, num_messages=0, play=None):
        self.num_left, self.sent = num_messages, []
        self.home = ThreadHome(play or self.play)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(replicas_module, "home_of", lambda backend, size: self.home)
            args = EngineArgs(MODEL_PATH, data_parallel_size=size, skip_tokenizer_init=True)
            self.replicas = Replicas(args, router)

    def play(self, program):
        is_mortal = program.index == 0 and self.home.lives.count(0) == 1
        while message := program.hear():
            if isinstance(message, Ask):
                report = EngineReport({"index": program.index}, {}, {}, {}, {}, False)
                program.say(Answer(message.number, True, report))
            if not isinstance(message, Add):
                continue
            self.sent.append(message.request_id)
            count = message.params["max_tokens"]
            for token in range(count):
                if is_mortal and not self.num_left:
                    return
                self.num_left -= is_mortal
                output = CompletionOutput(0, "", [token])
                piece = RequestOutput(message.request_id, None, (), None, [output], token == count - 1)
                program.say(Outputs([(message.number, piece)], int(token < count - 1)))

    async def ask(self, name, count):
        """The tokens that came, and the error that ended them."""
        params = SamplingParams(max_tokens=count, output_kind=RequestOutputKind.DELTA)
        tokens = []
        try:
            async for output in self.replicas.generate({"prompt_token_ids": [5, 6]}, params, name):
                tokens += output.outputs[0].token_ids
        except EngineDeadError as error:
            return tokens, str(error)
        return tokens, None


@given(
    size=st.integers(2, 3),
    router=st.sampled_from(sorted(ROUTERS)),
    num_messages=st.integers(0, 12),
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=8),
)
def test_a_death_costs_only_what_was_told_and_nothing_is_told_twice(size, router, num_messages, counts):
    world = World(size, router, num_messages)

    async def ask_all():
        return await asyncio.gather(*(world.ask(str(n), count) for n, count in enumerate(counts)))

    try:
        found = event_loops.run(ask_all())
        for number, (count, (tokens, error)) in enumerate(zip(counts, found, strict=True)):
            assert tokens == list(range(len(tokens)))
            if error is None:
                assert len(tokens) == count
            else:
                assert tokens and error == "engine 0 has ended (as it was planned)"
            assert 1 <= world.sent.count(str(number)) <= 2
        assert [replica.load for replica in world.replicas.replicas] == [0] * size
        assert [replica.num_running for replica in world.replicas.replicas] == [0] * size
        assert world.replicas.num_unfinished_requests == 0 and not world.replicas._by_number
        patience.until(lambda: all(replica.is_ready for replica in world.replicas.replicas))
        reports = {}
        patience.until(lambda: reports.update(world.replicas.reports()) or len(reports) == size)
        assert {index: report.counters["index"] for index, report in reports.items()} == {
            index: index for index in range(size)
        }
    finally:
        world.replicas.shutdown()


def test_a_request_that_two_replicas_die_of_is_not_tried_on_a_third():
    sent = []

    def die(program):
        if message := program.hear():
            sent.append(message.request_id)

    world = World(3, "round-robin", play=die)
    try:
        tokens, error = event_loops.run(world.ask("it", 2))
        assert tokens == [] and "has ended" in error and sent == ["it", "it"]
    finally:
        world.replicas.shutdown()


def test_who_leaves_frees_the_replica_and_a_late_death_costs_no_later_life():
    heard = []

    def play(program):
        while message := program.hear():
            heard.append(type(message))
            if isinstance(message, Add):
                output = CompletionOutput(0, "", [1])
                piece = RequestOutput(message.request_id, None, (), None, [output], False)
                program.say(Outputs([(message.number, piece)], 1))

    world = World(2, "least-loaded", play=play)

    async def leave():
        params = SamplingParams(output_kind=RequestOutputKind.DELTA)
        outputs = world.replicas.generate({"prompt_token_ids": [5]}, params, "it")
        await anext(outputs)
        (pending,) = world.replicas._pending.values()
        world.replicas._bury(0, pending.life - 1, EngineDeadError("before this life"))
        assert not pending.stream.is_finished and pending.replica.load
        await outputs.aclose()

    try:
        event_loops.run(leave())
        patience.until(lambda: heard == [Add, Leave])
        assert not any(replica.load for replica in world.replicas.replicas)
    finally:
        world.replicas.shutdown()


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self):
        self.ends = []

    def on_outputs(self, outputs):
        pass

    def on_failure(self, failed):
        pass

    def on_death(self, index, life, error):
        self.ends.append(str(error))


LONG = 99
"""Seconds that are counted in beats, and nobody waits for: on a busy machine a replica may be silent."""


def stays(program):
    while program.hear():
        pass


def at_one_step(program):
    for _ in range(LONG + 2):
        program.say(Beat(3, is_busy=True))
    stays(program)


def at_many(program):
    for step in range(LONG + 2):
        program.say(Beat(step, is_busy=True))
    for _ in range(LONG + 2):
        program.say(Beat(9))
    program.socket.shutdown(socket.SHUT_RDWR)


def test_a_question_to_a_replica_that_dies_is_answered():
    home = ThreadHome(ThreadProgram.hear)
    client = ReplicaClient(0, lambda life: Start({}), home, Heard(), 60)
    client.ready.result(patience.SECONDS)
    with pytest.raises(EngineDeadError, match="has ended"):
        client.ask("report").result(patience.SECONDS)
    end(client)


def end(client):
    client.begin_to_stop()
    (ending := threading.Thread(target=client.join, daemon=True)).start()
    patience.join(ending)


@pytest.mark.parametrize(
    ("play", "seconds", "words"),
    [
        (stays, 0.2, "engine 0 has given no sign of life for 0.2 seconds"),
        (at_one_step, LONG, f"engine 0 is at step 4 for {LONG} seconds"),
        (at_many, LONG, "engine 0 has ended (as it was planned)"),
    ],
)
def test_a_replica_that_hangs_is_ended_and_another_one_started(play, seconds, words):
    listener = Heard()
    home = ThreadHome(lambda program: (play if len(home.lives) == 1 else stays)(program))
    client = ReplicaClient(0, lambda life: Start({}), home, listener, seconds)
    patience.until(lambda: listener.ends)
    assert listener.ends[0] == words
    patience.until(lambda: len(home.lives) > 1)
    end(client)
