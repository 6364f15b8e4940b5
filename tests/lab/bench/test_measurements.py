"""Each measurement, on a small setting: its numbers are consistent. Nothing is said about time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minivllm.lab.bench import MEASUREMENTS, Settings, run
from minivllm.lab.bench.beams import measure as measure_beams
from minivllm.lab.bench.control_plane import measure, measure_pool, measure_queue
from minivllm.lab.bench.field.measures import padding_factor
from minivllm.lab.bench.invariance import Kind
from minivllm.lab.bench.invariance import measure as measure_invariance
from minivllm.lab.bench.report import as_json, print_result, write_json
from minivllm.lab.bench.structured_share import measure_structures, structures_section
from minivllm.lab.bench.trace_overhead import typical_seconds
from minivllm.lab.subjects.subject import find_model, open_subject
from minivllm.lab.subjects.workload import BenchRequest, Played, make_workload, play, play_side_by_side
from minivllm.sampling_params import SamplingParams

SEED = 7189  # three short requests: prompts of 67, 40 and 82 tokens, outputs of 37, 28 and 33
SMALL = Settings("nano", threads=1, repeat=2, requests=3, seed=SEED)

pytestmark = pytest.mark.usefixtures("one_try")


@pytest.fixture(autouse=True)
def threads_are_given_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


def wanted_tokens(settings: Settings) -> tuple[int, int]:
    workload = make_workload(2048, num_requests=settings.requests, seed=settings.seed)
    prompts = sum(len(request.prompt_token_ids) for request in workload)
    return prompts, sum(request.num_output_tokens for request in workload)


def test_throughput_counts_every_token_and_its_shares_add_up(tmp_path: Path) -> None:
    result: Any = run("throughput", SMALL)
    assert (result.num_prompt_tokens, result.num_output_tokens) == wanted_tokens(SMALL)
    assert result.output_tokens_per_second == pytest.approx(result.num_output_tokens / result.seconds)
    assert sum(result.step_shares.values()) == pytest.approx(1)
    assert list(result.step_shares)[:3] == ["schedule", "model without attention", "attention"]
    assert all(share >= 0 for share in result.step_shares.values())
    assert 0 < result.trace_share < 1
    assert 0 < result.waste < 1
    assert 1 <= result.mean_batch <= 3
    # Each token is computed once, except the last of each request, which is not needed.
    computed = result.num_prompt_tokens + result.num_output_tokens - SMALL.requests
    assert result.mean_step_tokens * result.num_steps == pytest.approx(computed)
    assert result.num_preemptions == 0
    assert len(result.all_seconds) == SMALL.repeat
    for spread in vars(result.latencies).values():
        assert 0 < spread.p50 <= spread.p90 <= spread.p99
    assert result.header.machine.threads == 1

    write_json(result, tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(as_json(result)))
    print_result(result)


def test_peak_blocks_stay_within_a_pool_that_is_too_small_for_all() -> None:
    blocks = -(-(82 + 33) // 16)  # just enough for the longest
    result: Any = run("throughput", replace(SMALL, repeat=1, num_blocks=blocks))
    assert result.peak_blocks <= blocks
    assert result.num_output_tokens == wanted_tokens(SMALL)[1]


def test_the_trace_measurement_describes_the_file_it_wrote() -> None:
    result: Any = run("trace", SMALL)
    assert result.num_output_tokens == wanted_tokens(SMALL)[1]
    assert 0 < result.recorder_share < 1
    assert len(result.all_overheads) == SMALL.repeat
    assert result.num_events > 4 * result.num_steps, "a step starts, is planned, samples and finishes"
    assert result.file_bytes > 40 * result.num_events
    print_result(result)


def test_small_weights_are_read_in_fewer_bytes_and_compared_with_the_plain_ones() -> None:
    result: Any = run("quantized", replace(SMALL, repeat=1, dtype="float32"))
    plain, int8, int4 = result.sides
    assert (plain.name, int8.name, int4.name) == ("float32", "int8", "int4")
    assert plain.read_bytes > 3.5 * int8.read_bytes > 1.2 * 3.5 * int4.read_bytes
    assert plain.stream_ratio == plain.batch_ratio == 1
    assert int8.stream_ratio == pytest.approx(plain.stream_seconds / int8.stream_seconds)
    assert int8.floor_seconds / plain.floor_seconds == pytest.approx(int8.read_bytes / plain.read_bytes)
    print_result(result)


def test_batch_invariance_has_a_price_and_buys_equal_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in (("PROMPT_TOKENS", 40), ("STREAM_TOKENS", 4), ("BATCH_TOKENS", 6)):
        monkeypatch.setattr(f"minivllm.lab.bench.invariance.{name}", count)
    kinds = [Kind("numba-cpu", "float32"), Kind("torch", "float32")]
    result = measure_invariance(replace(SMALL, repeat=1, requests=6, model=None), kinds)
    ours, plain = result.prices
    assert ours.other_bits == (0, 0) and plain.other_bits[1] == 0 < plain.other_bits[0] <= plain.num_compared
    assert all(
        cost.seconds > 0 < cost.ratio
        for price in result.prices
        for cost in (price.stream, price.batch, price.prompt)
    )
    assert json.loads(json.dumps(as_json(result)))["prices"][1]["kind"][0] == "torch"
    print_result(result)


def test_drafts_are_compared_with_plain_decoding_of_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minivllm.lab.bench.speculation.OUTPUT_TOKENS", 12)
    result: Any = run("speculation", Settings(threads=1, repeat=1, requests=2))
    assert {(row.method, row.texts, row.streams) for row in result.rows} == {
        (method, texts, streams)
        for method in ("draft_model", "ngram")
        for texts in ("own kind", "repeating")
        for streams in (1, 2)
    }
    assert all(row.same_tokens for row in result.rows)
    assert all(row.step_ratio > 0.9 and row.speedup > 0 for row in result.rows)
    print_result(result)
    with pytest.raises(ValueError, match="model must be one of 'shipped'"):
        run("speculation", Settings(model="nano"))


def test_a_disturbed_step_does_not_count() -> None:
    runs = [(1.0, 2.0, 3.0), (1.0, 2.0, 30.0), (9.0, 2.0, 3.0)]
    assert typical_seconds([Played(sum(steps), steps, ()) for steps in runs]) == 6.0


def test_engines_side_by_side_give_what_each_gives_alone() -> None:
    with open_subject(SMALL) as subject:
        workload = subject.workload(SMALL)
        alone = play(subject.engine(), workload)
        together = play_side_by_side([subject.engine(), subject.twin().engine()], workload)
    for played in together:
        assert played.num_steps == alone.num_steps
        assert [o.outputs[0].token_ids for o in played.outputs] == [
            o.outputs[0].token_ids for o in alone.outputs
        ]


def test_without_transformers_the_peer_is_skipped_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minivllm.lab.bench.field.roster.find_spec", lambda name: None)
    result: Any = run("field", replace(SMALL, repeat=1))
    assert all([side.ratio for side in measure.sides] == [None] for measure in result.measures)
    (peer,) = [peer for peer in result.peers if peer.name == "transformers"]
    assert "not installed" in peer.skipped
    assert peer.install == "pip install 'transformers>=5,<6' torch"
    (row,) = [row for row in result.sections()[-1].rows if row[0] == "transformers"]
    assert "skipped" in row[1]


def test_padding_counts_what_static_batches_compute_in_vain() -> None:
    workload = [BenchRequest("a", (5,) * 10, 2), BenchRequest("b", (5,) * 4, 8), BenchRequest("c", (5,), 1)]
    assert padding_factor(workload, 2) == pytest.approx((2 * (10 + 8) + 2) / 26)
    assert padding_factor(workload, 1) == 1


def test_the_control_plane_is_measured_at_every_size() -> None:
    with open_subject(SMALL) as subject:
        result = measure(
            subject, SMALL, pool_sizes=(1_000, 2_000), queue_sizes=(20, 200), num_running=4, rounds=3
        )
    assert [series.operation for series in result.pool] == ["allocate", "append", "free", "only look up"]
    assert [series.operation for series in result.queue] == ["schedule", "abort"]
    for series in (*result.pool, *result.queue):
        assert len(series.seconds) == len(series.sizes) == 2
        assert all(seconds > 0 for seconds in series.seconds)
        assert series.flatness == max(series.seconds) / min(series.seconds)
    assert result.step.num_sequences == 3
    assert 0 < result.step.schedule_share < result.step.control_plane_share < 1
    print_result(result)


def test_structures_are_made_once_and_every_output_is_a_whole_object() -> None:
    """A run raises, if one is not."""
    with open_subject(replace(SMALL, model=None)) as subject:
        first, new, later, together = measure_structures(subject, 1, num_properties=2, at_once=2)
    assert all(one.share > 0 and one.step_seconds > 0 and one.num_tokens > 20 for one in (first, new, later))
    assert later.num_tokens == new.num_tokens
    section = structures_section((first, new, later, together))
    assert [row[0] for row in section.rows][-1] == "2 at once, first of a schema"
    with open_subject(SMALL) as subject:
        assert not measure_structures(subject, 1), "nano has no tokenizer"


def test_the_rigs_keep_the_books_of_a_real_control_plane() -> None:
    from minivllm.lab.bench.churn import PoolRig, QueueRig

    pool = PoolRig(1_000, seed=1)
    for _ in range(20):
        pool.round()
        pool.cache.check_invariants()
    queue = QueueRig(num_running=5, num_waiting=30, seed=1)
    for _ in range(20):
        queue.schedule_round()
        queue.abort_round()
        queue.core.check_invariants()
        assert (len(queue.core.state.running), len(queue.core.state.waiting)) == (5, 30)
    assert measure_pool((1_000,), 2, 0)[0].flatness == 1
    assert measure_queue((3,), 2, 2, 0)[0].flatness == 1


def test_a_run_with_a_wrong_number_of_tokens_is_not_reported() -> None:
    with open_subject(SMALL) as subject:
        engine = subject.engine()
        add = engine.add_request

        def add_a_shorter_one(request_id: str, prompt: tuple[int, ...], params: SamplingParams) -> None:
            add(request_id, prompt, replace(params, max_tokens=1))

        engine.add_request = add_a_shorter_one  # type: ignore[method-assign, assignment]
        with pytest.raises(RuntimeError, match=r"has 1 tokens, .* were asked for"):
            play(engine, subject.workload(SMALL))


def test_without_a_shipped_model_nano_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minivllm.lab.subjects.subject.shipped_model", lambda: None)
    assert find_model(None, tmp_path) == ("nano", tmp_path / "nano")


def test_what_cannot_work_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind must be one of 'throughput', 'field'"):
        run("speed")
    with pytest.raises(ValueError, match="model must be nano, small, medium, or a folder"):
        run("throughput", Settings(model=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="threads must be an integer of at least 1 and at most 1024, got 0"):
        Settings(threads=0)
    with pytest.raises(ValueError, match="dtype must be one of auto, float32"):
        Settings(dtype="int8")
    assert {"throughput", "field", "trace", "control-plane", "beams"} <= set(MEASUREMENTS)


def test_beams_find_the_same_with_shared_blocks_and_with_copies() -> None:
    with open_subject(replace(SMALL, num_blocks=64)) as subject:
        pools = {"room for all": 64, "tight": 16}
        result = measure_beams(subject, SMALL, pools, prompt_tokens=40, output_tokens=12)
    assert [pool.num_blocks for pool in result.pools] == [64, 16]
    for pool in result.pools:
        assert pool.same_sequences and pool.ratio > 0
        assert pool.shared_copies < pool.copied_copies
    assert result.pools[1].shared_steps <= result.pools[1].copied_steps
    assert len(result.sections()[0].rows) == 2


def test_more_threads_than_cores_is_a_warning() -> None:
    (warning,) = Settings(threads=1_000).warnings()
    assert warning.startswith("threads is 1000, but this process may use")
    assert Settings(threads=1).warnings() == []
