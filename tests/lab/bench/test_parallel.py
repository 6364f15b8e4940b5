"""The simulator's parallel terms beside ranks at work: numbers are consistent. Nothing is said about time."""

import json
from dataclasses import replace

import numpy as np
import pytest

from minivllm.executor.distributed import create
from minivllm.lab.bench import Settings, parallel, run
from minivllm.lab.bench.report import as_json, print_result
from minivllm.lab.simulation.cards import hardware_card, model_card
from minivllm.lab.simulation.cost_model import CostModel
from minivllm.lab.simulation.fit import Sample
from minivllm.trace.work import batch_shape
from tests.executor.distributed.thread_ranks import start_threads


def test_the_link_of_a_card_is_found_again_in_the_exchanges_that_it_makes():
    model = model_card("tiny")
    card = replace(hardware_card("a100-40gb"), link_latency_seconds=3e-4, link_bandwidth=2e8)
    cost, random = CostModel(card, model, tensor_parallel_size=2), np.random.default_rng(0)
    steps = []
    for _ in range(60):
        shape = batch_shape([(int(random.integers(0, 50)), int(random.integers(1, 200)))], 1, 0)
        exchange = cost.step_time(shape).exchange * float(random.uniform(0.98, 1.02))
        steps.append(parallel.Timed(Sample(shape, 1.0), exchange, 0.0))
    steps[7] = steps[7]._replace(exchange=50 * steps[7].exchange)  # the machine was busy
    found = parallel.with_link(hardware_card("a100-40gb"), model, steps)
    assert found.link_latency_seconds == pytest.approx(3e-4, rel=0.05)
    assert found.link_bandwidth == pytest.approx(2e8, rel=0.05)
    assert parallel.with_link(card, model, []) == card


def test_ranks_are_measured_and_predicted(monkeypatch):
    monkeypatch.setattr(create, "start_processes", start_threads)
    monkeypatch.setattr(parallel, "FITTED", (("uniform:8-60,9-12", 3),))
    monkeypatch.setattr(parallel, "JUDGED", (("uniform:8-40,3-5", 3),))
    result = run("parallel", Settings("nano", threads=1, repeat=1, requests=4, seed=7))
    layouts = [row.layout for row in result.rows]
    for layout in (parallel.ONE, parallel.TENSOR, parallel.PIPELINE):
        assert layout.name in layouts
    assert [row.layout for row in result.rows if row.what == parallel.EXCHANGES] == [parallel.TENSOR.name]
    assert all(row.predicted > 0 and row.measured > 0 and row.ratio > 0 for row in result.rows)
    assert len(result.idle) == 2 and all(0 < idle < 1 for idle in result.idle)
    assert result.expected_idle == pytest.approx(1 / 3) and 0 <= result.waited < 1
    assert len(result.two_ranks) == len(result.one_with_all_threads) == 1 and 0 < result.exchanged < 1
    assert result.card.link_latency_seconds >= 0 and result.card.link_bandwidth > 0
    assert json.loads(json.dumps(as_json(result)))["header"]["kind"] == "parallel"
    print_result(result)
