"""What holds under every policy, ours or a learner's, however bad; and what each of ours is for."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.scheduling.choose_policy import POLICIES, make_policy
from minivllm.scheduling.policy import Pause, PolicyError, SchedulingPolicy
from minivllm.scheduling.request import Request, Sequence
from tests.scheduling.toy import Run, runs

ROOMY = SchedulerConfig(num_blocks=300, block_size=4, max_num_seqs=4, max_num_batched_tokens=256)


class Erratic(SchedulingPolicy):
    """Everything that a policy may do wrong without raising: it forgets, repeats, invents, pauses."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.pads = self.random.random() < 0.3
        self.releases_together = self.random.random() < 0.3

    def rank(self, request):
        return self.random.choice([0, 1, -3, self.random.random(), float("inf")])

    def schedule_order(self, view):
        requests = [*view.running, *view.waiting]
        self.random.shuffle(requests)
        if self.random.random() < 0.2:
            yield Pause(view.time + self.random.choice([-1, 2, 5, float("inf"), float("nan")]))
        for request in requests:
            yield from [request] * self.random.choice([0, 1, 1, 2])
            if self.random.random() < 0.1:
                yield Pause(view.time + 1)
            if self.random.random() < 0.1:
                yield Request("stranger", [Sequence(10**6, [1])], 1, 0.0)


class Stubborn(SchedulingPolicy):
    """Would name the same request for ever, and never another."""

    def schedule_order(self, view):
        while view.running or len(view.waiting):
            yield view.running[0] if view.running else next(iter(view.waiting))


class Idle(SchedulingPolicy):
    """Names no request."""

    def schedule_order(self, view):
        return ()


def check_limits(run):
    for plan in run.plans:
        assert plan.total_num_scheduled_tokens <= run.config.max_num_batched_tokens
        assert len(plan.scheduled) <= run.config.max_num_seqs
        computed = plan.total_num_scheduled_tokens + plan.num_padding_tokens
        assert computed <= run.config.max_num_batched_tokens
        owned = [block for item in plan.scheduled for block in item.block_table]
        assert len(set(owned)) == len(owned), "two sequences were given the same block"


def play(run, policy):
    """A fresh run of the same requests under another policy, to its end, with its limits checked."""
    fresh = Run(run.config, run.arrivals, policy, may_idle=True)
    fresh.to_the_end(max_steps=50_000)
    assert sorted(fresh.finished) == list(range(len(run.arrivals)))
    assert fresh.core.cache.num_free_blocks == run.config.num_blocks
    check_limits(fresh)
    return fresh


@given(run=runs(), seed=st.integers(0, 10**9))
def test_a_wrong_policy_is_slow_and_never_unsafe(run, seed):
    play(run, Erratic(seed))


@given(run=runs(), policy=st.sampled_from([Stubborn, Idle]))
def test_a_request_that_is_never_named_is_served_all_the_same(run, policy):
    play(run, policy())


@pytest.mark.parametrize("name", POLICIES)
@given(run=runs())
def test_every_request_finishes_within_the_limits_under_each_policy(name, run):
    play(run, make_policy(name))


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "static"])
@given(run=runs())
def test_no_step_is_empty_while_there_is_work(name, run):
    Run(run.config, run.arrivals, make_policy(name)).to_the_end()


class Faulty(SchedulingPolicy):
    """Fails the n-th time that it is asked for anything."""

    def __init__(self, countdown, seed):
        self.countdown = countdown
        self.random = random.Random(seed)

    def _count(self):
        self.countdown -= 1
        if self.countdown == 0:
            raise self.random.choice([KeyError("who?"), ZeroDivisionError("by zero"), ValueError("no")])

    def rank(self, request):
        self._count()
        return self.random.random()

    def schedule_order(self, view):
        for request in [*view.running, *view.waiting]:
            self._count()
            yield request


@given(num_blocks=st.integers(4, 30), countdown=st.integers(1, 60), seed=st.integers(0, 10**6))
def test_a_policy_that_raises_is_named_and_nothing_is_lost(num_blocks, countdown, seed):
    run = Run(replace(ROOMY, num_blocks=num_blocks), [], Faulty(countdown, seed), may_idle=True)
    failures = 0
    for number in range(6):
        try:
            run.arrive(number, prompt=5 + number, output=4)
        except PolicyError:
            failures += 1
            assert f"r{number}" not in run.core.requests
            run.arrive(number, prompt=5 + number, output=4)
    for step in range(400):
        try:
            run.step(step)
        except PolicyError as error:
            failures += 1
            assert "the scheduling policy Faulty failed in `" in str(error)
            run.core.check_invariants()
        if len(run.finished) == 6:
            break
    assert sorted(run.finished) == list(range(6)) and failures <= 1
    assert run.core.cache.num_free_blocks == num_blocks


@pytest.mark.parametrize("turn", [None, 7, "r0"])
def test_a_turn_that_is_no_request_is_an_error_that_says_so(turn):
    class Wrong(SchedulingPolicy):
        def schedule_order(self, view):
            yield turn

    run = Run(ROOMY, [(0, 3, 3)], Wrong())
    with pytest.raises(
        PolicyError, match="failed in `schedule_order`: TypeError: schedule_order must give requests, got"
    ):
        run.step(0)


@pytest.mark.parametrize("rank", ["first", None, float("nan")])
def test_a_rank_that_is_no_number_is_an_error_that_says_so(rank):
    class Wrong(SchedulingPolicy):
        def rank(self, request):
            return rank

    with pytest.raises(PolicyError, match="failed in `rank`"):
        Run(ROOMY, [(0, 3, 3)], Wrong()).step(0)


# ── static batching ───────────────────────────────────────────────────────────────────────────────────────


@given(run=runs(short_pool=False), batch_size=st.integers(1, 6), timeout=st.integers(0, 5))
def test_a_static_batch_begins_and_ends_together(run, batch_size, timeout):
    policy = make_policy(f"static(batch_size={batch_size}, timeout_seconds={timeout})")
    played = play(run, policy)
    batches = [set()]
    held = {number: [] for number in range(len(run.arrivals))}
    for plan in played.plans:
        for item in plan.scheduled:
            held[item.seq_id].append(plan.step)
        newcomers = {i.seq_id for i in plan.scheduled if i.start == 0 and held[i.seq_id] == [plan.step]}
        if newcomers - batches[-1]:
            done = {n for n in batches[-1] if n in played.finished}
            assert not batches[-1] or done == batches[-1]
            batches.append(newcomers)
    for batch in batches[1:]:
        assert len(batch) <= min(batch_size, run.config.max_num_seqs)
    for before, after in pairwise(batches[1:]):
        last = max(step for number in before for step in held[number])
        first = min(step for number in after for step in held[number])
        assert last < first, "the next batch begins when the slowest of the last has ended"


@given(run=runs(short_pool=False))
def test_a_step_of_a_static_batch_is_a_rectangle(run):
    config = replace(run.config, enable_chunked_prefill=True, max_num_batched_tokens=4096)
    config = replace(config, long_prefill_token_threshold=0)
    played = play(Run(config, run.arrivals), make_policy("static"))
    for plan in played.plans:
        if plan.scheduled:
            longest = max(item.num_tokens for item in plan.scheduled)
            assert (plan.total_num_scheduled_tokens + plan.num_padding_tokens) % longest == 0


@given(run=runs(short_pool=False))
def test_continuous_batching_never_takes_more_steps_than_static(run):
    """At a fixed cost of a step, and with all requests there at the start."""
    config = replace(run.config, max_num_batched_tokens=4096, long_prefill_token_threshold=0)
    arrivals = [(0, prompt, output) for _, prompt, output in run.arrivals]
    static = play(Run(config, arrivals), make_policy("static"))
    continuous = play(Run(config, arrivals), make_policy("fcfs"))
    busy = [sum(bool(plan.scheduled) for plan in played.plans) for played in (continuous, static)]
    assert busy[0] <= busy[1]


def test_a_static_batch_waits_for_company_and_not_for_ever():
    run = Run(ROOMY, [(0, 4, 2), (3, 4, 2)], make_policy("static(timeout_seconds=10)"), may_idle=True)
    run.to_the_end()
    assert next(plan.step for plan in run.plans if plan.scheduled) == 10


# ── each of the others ────────────────────────────────────────────────────────────────────────────────────


def order_of_finishing(name, requests, **limits):
    run = Run(replace(ROOMY, **limits), [], make_policy(name), may_idle=True)
    for number, (prompt, output, priority) in enumerate(requests):
        run.arrive(number, prompt, output, step=number, priority=priority)
    step = 0
    while len(run.finished) < len(requests):
        run.step(step)
        step += 1
    return run.finished


def test_priority_goes_first_and_preempts_others():
    run = Run(replace(ROOMY, max_num_seqs=1), [], make_policy("priority"))
    run.arrive(0, 8, 20, priority=5)
    run.step(0)
    run.arrive(1, 8, 2, priority=1)
    run.step(1)
    assert list(run.core.state.running) == ["r1"]
    assert run.requests[0].num_preemptions == 1


def test_with_ageing_no_request_waits_for_ever():
    """Important requests arrive at every step; without ageing the humble one would wait for the last."""
    for name, limit in (("priority", 40), ("priority(ageing_seconds=1)", 15)):
        run = Run(replace(ROOMY, max_num_seqs=1), [], make_policy(name))
        run.arrive(0, 4, 3, priority=9)
        for step in range(1, 41):
            run.arrive(step, 4, 1, step=step, priority=0)
            run.step(step)
            if 0 in run.finished:
                break
        assert (0 in run.finished) == (name != "priority")
        assert step <= limit


def test_the_shortest_goes_first():
    lengths = [(8, 30, 0), (8, 3, 0), (8, 12, 0)]
    assert order_of_finishing("shortest-remaining-oracle", lengths, max_num_seqs=1) == [1, 2, 0]
    assert order_of_finishing("fcfs", lengths, max_num_seqs=1) == [0, 1, 2]


@given(outputs=st.lists(st.integers(1, 30), min_size=2, max_size=8))
def test_the_shortest_first_has_the_best_mean_latency(outputs):
    def mean_finish(name):
        run = Run(replace(ROOMY, max_num_seqs=1), [(0, 4, output) for output in outputs], make_policy(name))
        run.to_the_end()
        ends = {}
        for plan in run.plans:
            for item in plan.scheduled:
                ends[item.seq_id] = plan.step
        return sum(ends.values())

    assert mean_finish("shortest-remaining-oracle") <= mean_finish("fcfs")


def plan_with_a_newcomer(name, decoding_for=3, **limits):
    """One request decodes, another has just come: the next plan, by request."""
    run = Run(replace(ROOMY, **limits), [], make_policy(name))
    run.arrive(0, 8, 12)
    for step in range(decoding_for):
        run.step(step)
    run.arrive(1, 8, 12, step=decoding_for)
    return {item.seq_id: item.num_tokens for item in run.step(decoding_for).scheduled}


def test_what_a_step_is_made_of():
    assert plan_with_a_newcomer("fcfs") == {0: 1, 1: 8}
    assert plan_with_a_newcomer("chunked", max_num_batched_tokens=5) == {0: 1, 1: 4}
    assert plan_with_a_newcomer("prefill-first") == {1: 8}, "answers stall"
    assert plan_with_a_newcomer("decode-first") == {0: 1}, "newcomers wait"
    assert plan_with_a_newcomer("waiting-served-ratio(ratio=1)") == {1: 8}
    assert plan_with_a_newcomer("waiting-served-ratio(ratio=2, max_waiting_steps=99)") == {0: 1}
    assert plan_with_a_newcomer("tail(tokens_left=5)") == {0: 1, 1: 8}
    assert plan_with_a_newcomer("tail(tokens_left=10)") == {1: 8}, "nearly done: it sits this one out"


def test_chunked_serves_answers_before_an_older_prompt():
    run = Run(replace(ROOMY, max_num_batched_tokens=6), [], make_policy("chunked"))
    run.arrive(0, 3, 9)
    run.step(0)
    run.arrive(1, 40, 4, step=1)
    assert [(item.seq_id, item.num_tokens) for item in run.step(1).scheduled] == [(0, 1), (1, 5)]


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lifo", "scheduling_policy must be one of 'fcfs', 'priority'.*got 'lifo'"),
        ("tail(5)", "must be a name, or a name with settings like 'tail\\(tokens_left=5\\)'"),
        ("tail(tokens_left=", "must be a name, or a name with settings"),
        ("tail(tokens=5)", "tail knows tokens_left"),
        ("tail(tokens_left=0)", "tokens_left must be an integer of at least 1, got 0"),
        ("fcfs(x=1)", "fcfs knows no settings"),
        ("nowhere:Policy", "there is no module 'nowhere'"),
        ("../../x:Policy", "'../../x' must be the name of a module, or a path that ends in .py"),
        ("nowhere.py:Policy", "there is no file 'nowhere.py'"),
        ("random:Random", "Random must be a subclass of SchedulingPolicy"),
        ("random:Nothing", "random has no class 'Nothing'"),
        (":", "must be one of"),
        (3, "must be a name, got 3"),
    ],
)
def test_a_policy_that_is_not_there_is_refused_in_words(spec, message):
    with pytest.raises(ValueError, match=message):
        make_policy(spec)


def test_a_learners_own_policy_is_found_by_file_and_by_module(tmp_path, monkeypatch):
    (tmp_path / "my_policies.py").write_text(
        "from minivllm.scheduling.policy import SchedulingPolicy\n"
        "class Backwards(SchedulingPolicy):\n"
        "    def __init__(self, factor=1):\n"
        "        self.factor = factor\n"
        "    def rank(self, request):\n"
        "        return -self.factor * request.arrival_time\n"
    )
    (tmp_path / "broken.py").write_text("1 / 0\n")
    assert make_policy(f"{tmp_path / 'my_policies.py'}:Backwards(factor=2)").factor == 2
    monkeypatch.chdir(tmp_path)
    assert make_policy("my_policies:Backwards").factor == 1
    with pytest.raises(ValueError, match="broken cannot be imported: ZeroDivisionError"):
        make_policy("broken:Policy")
    run = Run(replace(ROOMY, max_num_seqs=1), [], make_policy("my_policies:Backwards"))
    for number in range(3):
        run.arrive(number, 4, 2, step=number)
    assert [item.seq_id for item in run.step(5).scheduled] == [2]
