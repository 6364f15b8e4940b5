"""When requests go out, with a client that answers only when it is told to."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.lab.bench.serve.load import mode_of, run_load
from minivllm.lab.bench.serve.requests import DataSet, Writer, make_process
from minivllm.lab.workloads import AllAtOnce
from tests import event_loops

WRITER = Writer("openai", "m")


class ScriptedClient:
    """Answers every request after so many turns of the event loop; never, if that is None."""

    def __init__(self, turns):
        self.turns = turns
        self.now = self.most = 0
        self.bodies = []
        self.all_out = asyncio.Event()

    async def ask(self, body, record, epoch):
        self.bodies.append(body)
        self.now += 1
        self.most = max(self.most, self.now)
        if self.turns is None:
            await self.all_out.wait()
        for _ in range(self.turns or 0):
            await asyncio.sleep(0)
        record.chunk_times.append(record.due)
        record.output_tokens = record.wanted_tokens
        record.token_ids = [5] * record.wanted_tokens
        self.now -= 1


def data(spec="fixed:3,2", count=10):
    return DataSet(spec, count, vocab_size=100, max_model_len=64)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 20), limit=st.integers(1, 8), turns=st.integers(0, 5))
def test_a_closed_loop_never_has_more_requests_out_than_users_and_sends_all(count, limit, turns):
    async def main():
        client = ScriptedClient(turns)
        run = await run_load(client, data(count=count).workload(), WRITER, limit=limit, has_times=False)
        return client, run

    client, run = event_loops.run(main())
    assert client.most <= limit and len(run.records) == len(set(client.bodies)) == count
    assert client.most == min(limit, count) or turns == 0


def test_an_open_loop_waits_for_no_answer():
    async def main():
        client = ScriptedClient(None)
        loading = asyncio.create_task(run_load(client, data().workload(make_process(1e6)), WRITER))
        while client.now < 10:
            await asyncio.sleep(0)
        client.all_out.set()
        return await loading

    assert len(event_loops.run(main()).records) == 10


def test_requests_go_out_in_order_of_time_and_never_early():
    run = event_loops.run(run_load(ScriptedClient(0), data().workload(make_process(500.0)), WRITER))
    due = [record.due for record in run.records]
    assert due == sorted(due) and len(due) == 10


def test_a_conversation_sends_its_next_turn_with_the_answer_in_it():
    async def main():
        client = ScriptedClient(1)
        workload = DataSet("chat", 5, vocab_size=100, max_model_len=400).workload(AllAtOnce())
        object.__setattr__(workload, "think_seconds", 0.0)
        return client, await run_load(client, workload, WRITER)

    client, run = event_loops.run(main())
    assert len(run.records) >= 2  # a conversation has at least two turns
    assert max(map(len, client.bodies)) > min(map(len, client.bodies))


def test_a_client_that_breaks_ends_nothing_but_its_own_request():
    class Breaking(ScriptedClient):
        async def ask(self, body, record, epoch):
            if len(self.bodies) == 3:
                record.error = "gone"
            await super().ask(body, record, epoch)

    run = event_loops.run(run_load(Breaking(1), data().workload(), WRITER, limit=2, has_times=False))
    assert len(run.completed) == 9 and len(run.failed) == 1


@pytest.mark.parametrize(
    ("has_rate", "limit", "mode"),
    [(True, None, "open"), (True, 4, "capped"), (False, 4, "closed"), (False, None, "burst")],
)
def test_a_loop_is_called_what_it_is(has_rate, limit, mode):
    assert mode_of(has_rate, limit) == mode
