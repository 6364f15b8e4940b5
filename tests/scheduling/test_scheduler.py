"""What the scheduler promises, over random requests, limits and pools, without a model."""

import pytest
from hypothesis import given

from minivllm.config import SchedulerConfig
from minivllm.memory import blocks_needed
from tests.scheduling.toy import Run, runs


@given(run=runs())
def test_every_request_finishes_and_every_block_comes_back(run):
    run.to_the_end()
    assert sorted(run.finished) == list(range(len(run.arrivals)))
    assert run.core.cache.num_free_blocks == run.config.num_blocks


@given(run=runs())
def test_no_plan_exceeds_a_limit(run):
    run.to_the_end()
    for plan in run.plans:
        assert plan.total_num_scheduled_tokens <= run.config.max_num_batched_tokens
        assert len(plan.scheduled) <= run.config.max_num_seqs
        seq_ids = [item.seq_id for item in plan.scheduled]
        assert len(set(seq_ids)) == len(seq_ids), "a sequence is scheduled at most once in a step"


@given(run=runs())
def test_every_token_is_computed_once_in_order_unless_its_request_was_preempted(run):
    run.to_the_end()
    for number, (_, prompt, output) in enumerate(run.arrivals):
        items = [item for plan in run.plans for item in plan.scheduled if item.seq_id == number]
        position = 0
        restarts = 0
        for item in items:
            if item.start != position:
                assert item.start == 0, "a sequence goes on where it was, or starts again from zero"
                restarts += 1
            position = item.end
        assert position == prompt + output - 1, "the last token is returned and never computed"
        assert restarts == run.requests[number].num_preemptions


@given(run=runs())
def test_a_plans_block_tables_cover_its_tokens_and_overlap_no_others(run):
    run.to_the_end()
    for plan in run.plans:
        owned = [block for item in plan.scheduled for block in item.block_table]
        assert len(set(owned)) == len(owned), "two sequences were given the same block"
        for item in plan.scheduled:
            assert len(item.block_table) == blocks_needed(item.end, run.config.block_size)


@given(run=runs(short_pool=False))
def test_prompts_that_arrive_at_every_step_never_starve_a_decode(run):
    decoding = set()
    for step in range(3 * len(run.arrivals) + 40):
        plan = run.step(step)
        scheduled = {item.seq_id for item in plan.scheduled}
        assert decoding <= scheduled, "a sequence that decodes advances at every step while memory lasts"
        decoding = {n for n, s in run.sequences.items() if s.num_output_tokens and n not in run.finished}


@given(run=runs())
def test_requests_are_first_scheduled_in_order_of_arrival(run):
    run.to_the_end()
    first = {}
    for step, plan in enumerate(run.plans):
        for item in plan.scheduled:
            first.setdefault(item.seq_id, step)
    by_arrival = sorted(first, key=lambda number: (run.arrivals[number][0], number))
    starts = [first[number] for number in by_arrival]
    assert starts == sorted(starts), "requests do not overtake in the waiting queue"


@given(run=runs())
def test_an_older_request_is_never_preempted_for_a_younger_one(run):
    """So the oldest request in the engine advances at every step, and the engine always makes progress."""
    for step in range(60):
        running = run.running
        before = {request.request_id: request.num_preemptions for request in running}
        oldest = running[0].sequences[0].seq_id if running else None
        plan = run.step(step)
        lost = [r for r in running if r.num_preemptions > before[r.request_id]]
        assert lost == running[len(running) - len(lost) :], "the youngest are preempted, and only they"
        if running:
            assert oldest in {item.seq_id for item in plan.scheduled}


def test_a_scheduled_sequence_is_a_copy_that_later_steps_do_not_change():
    run = Run(SchedulerConfig(num_blocks=8, block_size=2), [(0, 3, 9)])
    plan = run.step(0)
    before = list(plan.scheduled[0].block_table), list(plan.scheduled[0].token_ids)
    for step in range(1, 6):
        run.step(step)
    assert (list(plan.scheduled[0].block_table), list(plan.scheduled[0].token_ids)) == before


def test_a_request_that_needs_the_whole_pool_is_served_whatever_the_watermark():
    run = Run(SchedulerConfig(num_blocks=5, block_size=4, watermark=1.0), [(0, 20, 1), (0, 20, 1)])
    run.to_the_end()


def test_a_plan_that_failed_is_made_again():
    run = Run(SchedulerConfig(num_blocks=8, block_size=4), [])
    run.arrive(0, prompt=6, output=3)
    first = run.core.plan_step()
    again = run.core.plan_step()
    assert first.scheduled == again.scheduled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_blocks": 0}, "num_blocks must be an integer of at least 1, got 0"),
        ({"block_size": 0}, "block_size must be an integer of at least 1, got 0"),
        ({"max_num_seqs": True}, "max_num_seqs must be an integer of at least 1, got True"),
        ({"max_num_batched_tokens": "9"}, "max_num_batched_tokens must be an integer of at least 1, got '9'"),
        ({"watermark": 1.5}, "watermark must be a finite number of at least 0 and at most 1, got 1.5"),
        ({"watermark": float("nan")}, "watermark must be a finite number"),
        ({"scheduling_policy": ""}, "scheduling_policy must be a name, got ''"),
        ({"allocator": None}, "allocator must be a name, got None"),
        ({"scheduling_policy": 3}, "scheduling_policy must be a name, got 3"),
        (
            {"long_prefill_token_threshold": -1},
            "long_prefill_token_threshold must be an integer of at least 0",
        ),
        (
            {"enable_chunked_prefill": False, "max_num_batched_tokens": 64},
            "max_num_batched_tokens must be at least max_model_len \\(2048\\)",
        ),
    ],
)
def test_a_limit_out_of_range_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        SchedulerConfig(**{"num_blocks": 8, **change})


def test_a_policy_that_there_is_not_is_refused_before_anything_is_scheduled():
    message = "scheduling_policy must be one of 'fcfs', 'priority', .* got 'lifo'"
    with pytest.raises(ValueError, match=message):
        Run(SchedulerConfig(num_blocks=8, scheduling_policy="lifo"), [])


def test_a_preempted_request_is_not_admitted_again_in_the_same_step():
    """The important one needs five blocks and takes three: the others are not there to be taken back."""
    config = SchedulerConfig(
        num_blocks=5, block_size=1, max_num_seqs=2, max_num_batched_tokens=4, watermark=0.0,
        long_prefill_token_threshold=3, scheduling_policy="priority",
    )  # fmt: skip
    run = Run(config, [])
    run.arrive(1, prompt=1, output=2, priority=1)
    run.step(0)
    run.arrive(0, prompt=5, output=1, priority=0)
    run.step(1)
    assert list(run.core.state.running) == ["r0"]
    run.step(2)
    assert run.requests[1].num_preemptions == 1


def test_no_request_is_preempted_in_vain_for_room_that_must_stay_free():
    """Ten blocks, three of them kept free: five for a newcomer are not to be had beside another's four."""
    config = SchedulerConfig(
        num_blocks=10, block_size=4, max_num_seqs=4, max_num_batched_tokens=64, watermark=0.3,
        scheduling_policy="priority",
    )  # fmt: skip
    run = Run(config, [], may_idle=True)
    run.arrive(0, prompt=13, output=8, priority=0)
    run.step(0)
    run.arrive(1, prompt=4, output=8, priority=2)
    run.step(1)
    run.arrive(2, prompt=20, output=8, priority=1)
    run.step(2)
    assert run.requests[1].num_preemptions == 0
