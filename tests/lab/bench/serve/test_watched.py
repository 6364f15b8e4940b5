"""`minivllm bench serve --watchers`: the same requests, and each watcher has read every step."""

import os

import pytest

from minivllm.lab.bench.serve.own_server import OwnServer
from minivllm.lab.bench.serve.watched import Watched, WatchedSettings, compare_one
from minivllm.lab.bench.serve.watchers import watchers
from minivllm.lab.subjects.workload import BenchRequest
from minivllm.server.live import LiveEvents
from tests import event_loops, patience
from tests.server.conftest import RunningServer


@pytest.fixture(scope="module")
def server():
    running = RunningServer(live=LiveEvents())
    running.model.names.append("measured")
    yield running
    if running.model.live.num_watchers:
        running.server_loop_call(running.model.live.end)
    running.stop()


def test_all_sides_send_the_same_and_those_who_watch_read_every_step(server):
    own = OwnServer(server.url, os.getpid())
    work = [BenchRequest(f"it-{index}", (5, 6, 7 + index), 12) for index in range(2)]
    settings = WatchedSettings(repeat=1, watchers=(0, 3))
    rows, _ = event_loops.call(compare_one, own, own, work, settings)
    assert [(row.streams, row.watchers) for row in rows] == [(2, None), (2, 0), (2, 3)]
    assert rows[0].ratio == 1 and rows[0].engine_added == 0
    assert rows[0].messages == rows[1].messages == 0
    assert rows[2].messages >= 1 + 12, "the beginning, and at least as many steps as an answer has tokens"
    for row in rows:
        assert row.served_cpu_us == pytest.approx(row.engine_cpu_us + row.loop_cpu_us)
    (section,) = Watched(None, tuple(rows)).sections()
    assert [row[:2] for row in section.rows] == [("2", "not live"), ("2", "0"), ("2", "3")]
    patience.until(lambda: not server.model.live.num_watchers)  # they have left


def test_a_server_that_cannot_be_watched_is_named(server):
    with (
        pytest.raises(ValueError, match=r"/nowhere/engine/events: HTTP/1\.1 404"),
        watchers(server.url + "/nowhere", 1),
    ):
        pass
