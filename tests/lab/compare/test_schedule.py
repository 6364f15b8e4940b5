"""The comparison of policies: the same requests, measured from traces, in tables and a picture."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from minivllm.lab.compare import schedule_report
from minivllm.lab.compare.schedule import (
    Prioritised,
    SimulatedWorld,
    check_policies,
    compare_policies,
    measure,
    sustainable_rate,
)
from minivllm.lab.compare.schedule_command import ScheduleSettings, run
from minivllm.lab.compare.schedule_picture import save_picture
from minivllm.lab.simulation.metrics import Metrics
from minivllm.lab.simulation.setting import Setting
from minivllm.lab.workloads import parse_workload
from minivllm.scheduling.choose_policy import POLICIES
from minivllm.trace.recorder import Recorder


def make_world(**changes):
    setting = Setting(**{"hardware": "h100", "model": "llama-3-8b", "max_num_seqs": 6} | changes)
    cost = setting.cost_model()
    return SimulatedWorld(
        "a world", setting.scheduler_config(), cost, cost.model.shape(), cost.hardware.shape()
    )


def make_workload(num_requests=20, rate=40.0, seed=0):
    return Prioritised(
        parse_workload(
            "uniform:8-60,4-40",
            vocab_size=500,
            num_requests=num_requests,
            rate=rate,
            seed=seed,
            max_model_len=500,
        )
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traces")
    return compare_policies(make_world(), tuple(POLICIES), make_workload(), folder)


def test_every_policy_serves_the_same_requests(runs):
    assert [run.policy for run in runs] == list(POLICIES)
    assert {run.num_requests for run in runs} == {20}
    assert {run.ttft.count for run in runs} == {20}
    assert len({run.inter_token.count for run in runs}) == 1
    assert len({run.trace for run in runs}) == len(runs)


def test_only_static_batching_pads_and_holds_those_who_are_done(runs):
    by_name = {run.policy: run for run in runs}
    static = by_name.pop("static")
    assert static.padding_share > 0.1 and all(run.padding_share == 0 for run in by_name.values())
    assert static.mean_batch > 1.2 * static.mean_computed, "the finished are held"
    assert static.output_tokens_per_second < by_name["fcfs"].output_tokens_per_second


def test_tables_fit_into_eighty_columns_and_name_everybody(runs, capsys):
    console = Console(width=80)
    schedule_report.print_runs(runs, console)
    for sentence in schedule_report.differences(runs):
        console.print(sentence)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert all(one.policy[:14] in text for one in runs)
    assert "Continuous (fcfs) against static batching" in text and "…" not in text


def test_the_data_can_be_written_and_a_picture_be_drawn(runs, tmp_path):
    assert len(json.loads(json.dumps(schedule_report.as_data(runs)))) == len(runs)
    save_picture(runs, "a title", tmp_path / "it.svg")
    assert "shortest-remaining-oracle" in (tmp_path / "it.svg").read_text()


@settings(max_examples=settings.default.max_examples // 4)
@given(seed=st.integers(0, 99), policy=st.sampled_from([n for n in POLICIES if n != "static"]))
def test_what_is_read_from_the_trace_is_what_the_simulator_has_counted(seed, policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    world = make_world(scheduling_policy=policy)
    metrics = {}
    from minivllm.lab.simulation import replica

    made = replica.Replica.__init__

    def watched(self, *args, **more):
        made(self, *args, **more)
        metrics["it"] = self.metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replica.Replica, "__init__", watched)
        with Recorder(folder / "run.jsonl") as recorder:
            world.run(world.config, make_workload(12, seed=seed), recorder)
    counted: Metrics = metrics["it"]
    read = measure(policy, folder / "run.jsonl")
    assert read.num_requests == counted.num_finished
    assert read.num_preemptions == counted.num_preemptions
    assert 0.98 * counted.ttft.percentile(0.4) <= read.ttft.p50 <= 1.02 * counted.ttft.percentile(0.6)
    assert read.end_to_end.p99 == pytest.approx(counted.end_to_end.largest, rel=0.05)
    assert read.mean_computed == pytest.approx(counted.mean_scheduled, rel=1e-3)
    assert read.output_tokens_per_second == pytest.approx(counted.output_tokens_per_second, rel=1e-3)


def test_the_sustainable_rate_is_one_at_which_a_queue_neither_grows_nor_empties():
    world = make_world()
    rate = sustainable_rate(world, make_workload(120, rate=None))
    waits = {}
    for factor in (0.5, 2.0):
        recorder = Recorder()
        world.run(world.config, make_workload(120, rate=factor * rate), recorder)
        from minivllm.trace.reader import make_trace
        from minivllm.trace.timeline import make_timeline

        records = make_timeline(make_trace(recorder.events[0], recorder.events[1:])).records
        waits[factor] = max(record.num_waiting for record in records)
    assert waits[0.5] <= 6 < 30 < waits[2.0]


def test_the_real_engine_says_the_same_under_every_policy(tmp_path):
    title, runs = run(
        ScheduleSettings(requests=6, threads=1), ["fcfs", "static", "priority"], tmp_path, lambda _: None
    )
    assert "this machine" in title and [r.same_tokens for r in runs] == [6, 6, 6]


def test_a_list_of_policies_may_contain_settings_with_commas():
    assert check_policies("fcfs, static(batch_size=4, timeout_seconds=1),tail") == [
        "fcfs",
        "static(batch_size=4, timeout_seconds=1)",
        "tail",
    ]


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ("", "policies must name at least one policy"),
        (" , ", "policies must name at least one policy"),
        ("fcfs,lifo", "scheduling_policy must be one of"),
        ("fcfs,fcfs", "policies must name each policy once, got 'fcfs' twice"),
    ],
)
def test_a_list_of_policies_that_cannot_be_is_refused(policies, message):
    with pytest.raises(ValueError, match=message):
        check_policies(policies)


def test_a_workload_that_can_never_fit_is_refused_with_the_numbers(tmp_path):
    settings = ScheduleSettings(hardware="h100", model="llama-3-8b", num_blocks=2, requests=3)
    with pytest.raises(ValueError, match="the request can never fit"):
        run(settings, ["fcfs"], tmp_path, lambda _: None)


@given(name=st.sampled_from(tuple(POLICIES)), num_requests=st.integers(1, 15), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_whoever_computes_is_in_the_batch(name, num_requests, seed):
    with TemporaryDirectory() as folder:
        runs = compare_policies(make_world(), [name], make_workload(num_requests, seed=seed), Path(folder))
    assert runs[0].mean_batch >= runs[0].mean_computed - 1e-9
    assert runs[0].mean_batch <= 6 + 1e-9, "max_num_seqs"
