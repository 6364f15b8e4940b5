"""Who is named before whom: each policy's sentence, held against a plain twin of it on random batches."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.scheduling.choose_policy import POLICIES, make_policy
from minivllm.scheduling.policy import Pause, SchedulingPolicy, num_tokens_left
from minivllm.scheduling.queue import WaitingQueue
from minivllm.scheduling.ranking import MAX_PREEMPTIONS
from minivllm.scheduling.request import Request, Sequence
from minivllm.trace.events import RequestPreempted
from tests.scheduling.toy import Run, runs

ROOMY = SchedulerConfig(num_blocks=300, block_size=4, max_num_seqs=8, max_num_batched_tokens=256)


@dataclass
class Seen:
    """What a policy sees, without a scheduler behind it."""

    running: tuple
    waiting: list
    num_admitted: int = 0
    num_scheduled: int = 0
    time: float = 0.0
    max_num_seqs: int = 8


def make_request(name, prompt=4, said=0, behind=1, limit=9, priority=0, arrival=0.0):
    """One that has said `said` tokens, and has yet to compute `behind` of all that it has."""
    sequence = Sequence(0, range(prompt))
    for _ in range(said):
        sequence.append_token(0)
    sequence.num_computed_tokens = max(0, sequence.num_tokens - behind)
    return Request(name, [sequence], limit, arrival, priority)


def decodes(request):
    (sequence,) = request.sequences
    return sequence.num_output_tokens > 0 and sequence.num_uncomputed_tokens == 1


def names(turns):
    return [request.request_id for request in turns]


def requests(letter, **fixed):
    """Up to five requests in any state: prompts begun, answers begun, prompts but for their last token."""
    drawn = st.tuples(
        st.integers(1, 9), st.integers(0, 4), st.integers(1, 3), st.integers(5, 9), st.integers(-2, 2)
    )
    return st.lists(drawn, max_size=5).map(
        lambda rows: [
            make_request(f"{letter}{number}", prompt, said, behind, limit, priority, float(number % 3))
            for number, (prompt, said, behind, limit, priority) in enumerate(rows)
        ]
    )


@given(running=requests("r"), waiting=requests("w"))
def test_chunked_names_all_answers_then_prompts_then_newcomers_each_in_order(running, waiting):
    turns = make_policy("chunked").schedule_order(Seen(tuple(running), waiting))
    answers = [request for request in running if decodes(request)]
    prompts = [request for request in running if not decodes(request)]
    assert names(turns) == names([*answers, *prompts, *waiting])


@given(running=requests("r"), waiting=requests("w"), num_scheduled=st.integers(0, 2))
def test_prefill_first_names_begun_prompts_then_newcomers_and_answers_only_instead(
    running, waiting, num_scheduled
):
    turns = make_policy("prefill-first").schedule_order(
        Seen(tuple(running), waiting, num_scheduled=num_scheduled)
    )
    prompts = [request for request in running if not decodes(request)]
    assert names(turns) == names([*prompts, *waiting, *([] if num_scheduled else running)])


@given(running=requests("r"), waiting=requests("w"))
def test_decode_first_names_newcomers_only_while_no_answer_is_under_way(running, waiting):
    turns = make_policy("decode-first").schedule_order(Seen(tuple(running), waiting))
    assert names(turns) == names([*running, *([] if any(map(decodes, running)) else waiting)])


@given(
    running=requests("r"),
    waiting=requests("w"),
    ageing=st.sampled_from([0, 0.5, 1, 2, 4]),
    now=st.integers(3, 50),
)
def test_priority_is_the_order_of_priorities_less_what_the_wait_is_worth_at_any_time(
    running, waiting, ageing, now
):
    def importance(request):
        waited = now - request.arrival_time
        return request.priority - (waited / ageing if ageing else 0)  # exact, with powers of two

    waiting.sort(key=importance)
    turns = make_policy(f"priority(ageing_seconds={ageing})").schedule_order(Seen(tuple(running), waiting))
    assert names(turns) == names(sorted([*running, *waiting], key=importance))


@pytest.mark.parametrize("name", ["shortest-remaining", "shortest-remaining-oracle"])
@given(running=requests("r"), waiting=requests("w"))
def test_the_shortest_are_named_by_what_is_left_of_them_whether_they_run_or_wait(name, running, waiting):
    policy = make_policy(name)
    waiting.sort(key=policy.rank)
    turns = policy.schedule_order(Seen(tuple(running), waiting))
    assert names(turns) == names(sorted([*running, *waiting], key=policy.rank))


@given(
    prompt=st.integers(1, 200), said=st.integers(0, 30), limit=st.integers(31, 90), mean=st.integers(2, 60)
)
def test_a_token_said_is_a_token_less_to_say_until_the_guess_is_outlived(prompt, said, limit, mean):
    before = make_request("before", prompt, said, limit=limit)
    after = make_request("after", prompt, said + 1, limit=limit)
    oracle = make_policy("shortest-remaining-oracle")
    assert oracle.rank(before) - oracle.rank(after) == pytest.approx(1)
    guess = make_policy(f"shortest-remaining(mean_output_tokens={mean})")
    step = 1 if min(mean, limit) - said > 1 else 0
    assert guess.rank(before) - guess.rank(after) == pytest.approx(step)


@given(prompt=st.integers(1, 200), said=st.integers(0, 30), left=st.integers(1, 60), mean=st.integers(1, 60))
def test_fifty_tokens_of_a_prompt_are_as_much_work_as_one_of_an_answer(prompt, said, left, mean):
    request = make_request("it", prompt, said, limit=said + left)
    assert make_policy("shortest-remaining-oracle").rank(request) == pytest.approx(prompt / 50 + left)
    guessed = min(max(1, mean - said), left)
    policy = make_policy(f"shortest-remaining(mean_output_tokens={mean})")
    assert policy.rank(request) == pytest.approx(prompt / 50 + guessed)


@given(
    running=requests("r"),
    waiting=requests("w"),
    num_admitted=st.integers(0, 2),
    num_scheduled=st.integers(0, 2),
    tokens_left=st.integers(1, 9),
)
def test_tail_lets_requests_with_few_tokens_left_sit_out_if_another_is_admitted(
    running, waiting, num_admitted, num_scheduled, tokens_left
):
    policy = make_policy(f"tail(tokens_left={tokens_left})")
    turns = policy.schedule_order(Seen(tuple(running), waiting, num_admitted, num_scheduled))
    tails = [r for r in running if r.max_tokens - r.sequences[0].num_output_tokens < tokens_left]
    others = [request for request in running if request not in tails]
    assert names(turns) == names([*others, *waiting, *([] if num_admitted else tails)])


@given(
    running=requests("r"),
    waiting=requests("w"),
    num_scheduled=st.integers(0, 1),
    ratio=st.sampled_from([0.25, 0.5, 1, 1.2, 2, 3]),
)
def test_enough_who_wait_hold_the_answers_and_fewer_are_not_named(running, waiting, num_scheduled, ratio):
    policy = make_policy(f"waiting-served-ratio(ratio={ratio})")
    turns = policy.schedule_order(Seen(tuple(running), waiting, num_scheduled=num_scheduled))
    prompts = [request for request in running if not decodes(request)]
    if prompts or len(waiting) >= ratio * len(running):
        assert names(turns) == names([*prompts, *waiting, *([] if num_scheduled else running)])
    else:
        assert names(turns) == names(running)


@given(most=st.integers(1, 6), steps=st.integers(1, 20))
def test_those_who_are_too_few_join_together_once_in_so_many_steps(most, steps):
    policy = make_policy(f"waiting-served-ratio(ratio=99, max_waiting_steps={most})")
    run = Run(replace(ROOMY, max_num_seqs=64), [], policy)
    for step in range(steps):
        run.arrive(step, 3, 99, step=step)
        scheduled = {item.seq_id for item in run.step(step).scheduled if item.start == 0}
        joined = set(range(max(0, step - most + 1), step + 1)) if step % most == 0 else set()
        assert scheduled == joined


def test_what_is_left_of_a_request_is_what_is_left_of_its_shortest_sequence():
    request = make_request("it", said=5, limit=9)
    request.sequences.append(make_request("another", said=2).sequences[0])
    assert num_tokens_left(request) == 7


# ── what a turn is worth ──────────────────────────────────────────────────────────────────────────────────


def play(run, name, **limits):
    """A fresh run of the same requests under another policy and other limits, with its events."""
    events = []
    config = replace(run.config, **limits)
    fresh = Run(config, run.arrivals, make_policy(name), may_idle=True, emit=events.append)
    fresh.events, fresh.batch = events, set()
    return fresh


@given(run=runs(), threshold=st.integers(1, 9), budget=st.integers(1, 20))
def test_no_chunk_is_longer_than_the_threshold_and_none_shorter_without_a_reason(run, threshold, budget):
    limits = dict(enable_chunked_prefill=True, long_prefill_token_threshold=threshold)
    fresh = play(run, "fcfs", max_num_batched_tokens=budget, **limits)
    fresh.to_the_end()
    for plan in fresh.plans:
        spent = plan.total_num_scheduled_tokens == fresh.config.max_num_batched_tokens
        for item in plan.scheduled:
            assert item.num_tokens <= threshold
            assert item.num_tokens == threshold or item.num_logits or (spent and item is plan.scheduled[-1])


def test_prompts_that_must_be_computed_whole_share_a_step_to_its_last_token():
    whole = dict(enable_chunked_prefill=False, long_prefill_token_threshold=5)
    config = replace(ROOMY, max_num_batched_tokens=128, max_model_len=128, **whole)
    for second, together in ((28, [0, 1]), (29, [0])):
        run = Run(config, [(0, 100, 3), (0, second, 3)], make_policy("fcfs"))
        plan = run.step(0)
        assert [item.seq_id for item in plan.scheduled] == together and plan.scheduled[0].num_tokens == 100
        assert len(run.running) == len(together)


def test_admission_leaves_running_requests_the_blocks_of_the_watermark():
    config = replace(ROOMY, num_blocks=10, watermark=0.3)
    for prompt, joins in ((12, True), (13, False)):
        run = Run(config, [(0, 13, 3), (1, prompt, 3)], make_policy("fcfs"))
        run.step(0)
        assert (1 in {item.seq_id for item in run.step(1).scheduled}) == joins


def keys_at_preemption(run):
    """The keys of the preempting and of the preempted request, at that moment, by their numbers."""
    keys, preemption = {}, run.scheduler.preemption
    preempt, key = preemption.preempt, preemption.ranking.key

    def noting(request, preempting, shortage):
        pair = int(preempting.request_id[1:]), int(request.request_id[1:])
        keys[pair] = key(preempting), key(request)
        preempt(request, preempting, shortage)

    preemption.preempt = noting
    return keys


@given(run=runs(), name=st.sampled_from(["priority", "shortest-remaining", "priority(ageing_seconds=2)"]))
def test_a_preempted_request_ranks_behind_and_the_other_is_then_admitted(run, name):
    fresh = play(run, name, watermark=0.0)
    keys = keys_at_preemption(fresh)
    for step in range(200):
        running = set(fresh.core.state.running)
        fresh.events.clear()
        plan = fresh.step(step)
        events = [event for event in fresh.events if isinstance(event, RequestPreempted)]
        scheduled = {item.seq_id for item in plan.scheduled}
        for event in events:
            gone, favoured = int(event.request[1:]), int(event.preempted_for[1:])
            assert event.request in running
            if event.preempted_for not in running:
                assert favoured in scheduled, "a request was preempted for one that was not admitted"
            assert keys[favoured, gone][0] < keys[favoured, gone][1]


def test_for_a_slot_and_for_blocks_the_least_important_is_preempted_and_says_for_what():
    cases = ((dict(max_num_seqs=3), "batch_slots"), (dict(num_blocks=7, watermark=0.0), "blocks"))
    for limits, shortage in cases:
        run = play(Run(replace(ROOMY, **limits), []), "priority")
        for number, priority in enumerate((2, 3, 1)):
            run.arrive(number, 5, 3, priority=priority)
        run.step(0)
        run.arrive(3, 8, 2, step=1, priority=0)
        run.step(1)
        (event,) = (event for event in run.events if isinstance(event, RequestPreempted))
        assert (event.request, event.preempted_for, event.shortage) == ("r1", "r3", shortage)


def test_one_of_several_sequences_makes_as_many_places_as_it_may_come_to_fill():
    run = Run(replace(ROOMY, max_num_seqs=4), [], make_policy("priority"))
    for number, priority in enumerate((1, 0)):
        run.arrive(number, 5, 3, priority=priority)
        run.requests[number].max_num_sequences = 3
        run.step(number)
        assert list(run.core.state.running) == [f"r{number}"]


@given(ranks=st.lists(st.floats(allow_nan=False), min_size=2, max_size=8), data=st.data())
def test_a_request_preempted_too_often_goes_before_all_and_the_oldest_of_them_first(ranks, data):
    preemptions = st.sampled_from([0, MAX_PREEMPTIONS - 1, MAX_PREEMPTIONS, MAX_PREEMPTIONS + 9])
    run = Run(ROOMY, [])
    run.core.policy.rank = lambda request: ranks[int(request.request_id[1:])]
    for number in range(len(ranks)):
        run.arrive(number, 3, 3)
        run.requests[number].num_preemptions = data.draw(preemptions)
    protected = [n for n in range(len(ranks)) if run.requests[n].num_preemptions >= MAX_PREEMPTIONS]
    others = [n for n in range(len(ranks)) if n not in protected]
    in_order = sorted(run.requests, key=lambda number: run.scheduler.ranking.key(run.requests[number]))
    assert in_order == protected + sorted(others, key=ranks.__getitem__)


times = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 1)), min_size=2, max_size=8)


@pytest.mark.parametrize("name", POLICIES)
@given(times=times)
def test_of_equals_the_first_to_arrive_goes_first_in_whatever_order_they_are_added(name, times):
    run = Run(replace(ROOMY, max_num_seqs=1), [], make_policy(name), may_idle=True)
    for number, (arrival, priority) in enumerate(times):
        run.arrive(number, 3, 2, step=arrival, priority=priority if name == "priority" else 0)
    for step in range(5, 5 + 40 * len(times)):
        run.step(step)
    by_priority = [(priority if name == "priority" else 0, arrival) for arrival, priority in times]
    assert run.finished == sorted(range(len(times)), key=by_priority.__getitem__)


@pytest.mark.parametrize("name", POLICIES)
@given(run=runs(), num_steps=st.integers(1, 20))
def test_to_ask_for_keys_and_candidates_changes_nothing(name, run, num_steps):
    fresh = play(run, name)
    fresh.may_idle = True
    for step in range(num_steps):
        fresh.step(step)
    before = repr(fresh.requests)
    for request in fresh.requests.values():
        assert fresh.scheduler.ranking.key(request) == fresh.scheduler.ranking.key(request)
        fresh.scheduler.preemption.candidates(request, ())
    assert repr(fresh.requests) == before


# ── static batches ────────────────────────────────────────────────────────────────────────────────────────


@given(run=runs(short_pool=False), batch_size=st.integers(1, 6))
def test_every_row_of_a_static_batch_is_as_long_as_the_longest_until_the_last_is_done(run, batch_size):
    limits = dict(enable_chunked_prefill=True, max_num_batched_tokens=4096, long_prefill_token_threshold=0)
    fresh = play(run, f"static(batch_size={batch_size}, timeout_seconds=0)", **limits)
    for step in range(2000):
        plan = fresh.step(step)
        lengths = [item.num_tokens for item in plan.scheduled]
        rows = len(fresh.batch) if fresh.batch else len(lengths)
        assert plan.num_padding_tokens == (max(lengths) * rows - sum(lengths) if lengths else 0)
        batch = set(fresh.running)
        assert not batch or not fresh.batch or batch == fresh.batch, "no request comes or goes in between"
        fresh.batch = batch
        if step > 12 and len(fresh.finished) == len(fresh.arrivals):
            return


def test_a_static_batch_is_as_wide_as_its_padding_lets_it():
    for budget, together in ((20, [0, 1]), (19, [0])):
        config = replace(ROOMY, max_num_batched_tokens=budget)
        plan = Run(config, [(0, 6, 2), (0, 10, 2)], make_policy("static(batch_size=2)")).step(0)
        assert [item.seq_id for item in plan.scheduled] == together
        assert plan.num_padding_tokens == (4 if len(together) == 2 else 0)


def first_busy_step(arrivals, policy, **limits):
    run = Run(replace(ROOMY, **limits), arrivals, make_policy(policy), may_idle=True)
    run.to_the_end()
    return next((plan.step, len(plan.scheduled)) for plan in run.plans if plan.scheduled)


def test_a_static_batch_begins_when_it_is_full_or_when_the_oldest_has_waited_long_enough():
    arrivals = [(1, 4, 2), (3, 4, 2), (4, 4, 2)]
    assert first_busy_step(arrivals, "static(batch_size=3, timeout_seconds=10)") == (4, 3)
    assert first_busy_step(arrivals, "static(batch_size=2, timeout_seconds=10)") == (3, 2)
    assert first_busy_step(arrivals, "static(batch_size=9, timeout_seconds=10)", max_num_seqs=2) == (3, 2)
    assert first_busy_step(arrivals, "static(batch_size=4, timeout_seconds=10)") == (11, 3)
    assert first_busy_step(arrivals, "static(batch_size=4, timeout_seconds=2.5)") == (4, 3)
    assert first_busy_step(arrivals, "static(batch_size=4, timeout_seconds=0)") == (1, 1)


class Hesitant(SchedulingPolicy):
    """Would always rather wait for nine seconds more."""

    def schedule_order(self, view):
        yield Pause(view.time + 9)
        yield from super().schedule_order(view)


def test_a_pause_is_taken_once_before_a_step_and_never_from_those_who_run():
    run = Run(replace(ROOMY, max_num_seqs=1), [(0, 4, 5), (2, 4, 1)], Hesitant(), may_idle=True)
    run.to_the_end()
    assert [plan.step for plan in run.plans if plan.scheduled] == [9, 10, 11, 12, 13, 23]


def test_a_static_batch_counts_the_wait_of_those_who_came_while_the_last_was_computed():
    arrivals = [(0, 4, 6), (7, 4, 1), (10, 4, 1)]
    run = Run(ROOMY, arrivals, make_policy("static(timeout_seconds=5)"), may_idle=True)
    run.to_the_end()
    assert [plan.step for plan in run.plans if plan.scheduled] == [5, 6, 7, 8, 9, 10, 12]


class Forgetful(SchedulingPolicy):
    """Of those who run it names the first only."""

    def schedule_order(self, view):
        yield from view.running[:1]
        yield from view.waiting


def test_while_running_requests_lack_blocks_none_is_admitted():
    arrivals = [(0, 8, 8), (0, 16, 4), (1, 4, 1)]
    run = Run(replace(ROOMY, num_blocks=6, max_num_seqs=2), arrivals, Forgetful())
    assert [item.seq_id for item in run.step(0).scheduled] == [0, 1]
    assert [item.seq_id for item in run.step(1).scheduled] == [0], "the last comes after the preempted one"
    run.step(2)
    assert list(run.core.state.running) == ["r0"]


# ── the queue, when many have left ────────────────────────────────────────────────────────────────────────


@given(ranks=st.lists(st.integers(0, 99), min_size=200, max_size=300), seed=st.randoms(use_true_random=False))
def test_when_most_have_left_the_others_stand_in_order_and_the_places_are_swept(ranks, seed):
    queue = WaitingQueue()
    members = []
    for number, rank in enumerate(ranks):
        request = make_request(f"r{number}")
        members.append(((True, float(rank), number), request))
        queue.append(request, members[-1][0])
    queue.settle()
    seed.shuffle(members)
    for _, request in members[30:]:
        queue.remove(request)
    queue.settle()
    assert names(queue) == names(request for _, request in sorted(members[:30], key=lambda pair: pair[0]))
    assert len(queue._heap) <= 2 * len(queue) + 64, "a request that has left takes no memory"
