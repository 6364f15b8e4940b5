"""How many drafts are worth their price: decisions, from times that are made up."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.decoding.speculation.draft_length import TRIAL, DraftLength
from minivllm.decoding.speculation.proposer import expected_speedup
from minivllm.sampling_params import SamplingParams
from tests.engine.fakes import expected_output, make_engine
from tests.engine.guesses import guessing

MOST = 6


class World:
    """A processor whose steps have a price, and guesses that are right with some probability."""

    def __init__(self, base, row, draft, acceptance, seed=0):
        self.base, self.row, self.draft, self.acceptance = base, row, draft, acceptance
        self.random = random.Random(seed)
        self.length = DraftLength()

    def step(self, num_sequences):
        count = self.length.choose(num_sequences, MOST)
        rows = num_sequences * (1 + count)
        self.length.note_step(rows, self.base + self.row * rows, self.draft if count else 0.0)
        for _ in range(num_sequences if count else 0):
            accepted = 0
            while accepted < count and self.random.random() < self.acceptance:
                accepted += 1
            self.length.note_drafts(count, accepted)
        return count

    def gain(self, num_sequences, count):
        """The true one."""
        plain = self.base + self.row * num_sequences
        return expected_speedup(self.acceptance, count, (self.row * num_sequences + self.draft) / plain)


prices = st.floats(1e-5, 1e-2)


@settings(max_examples=max(10, settings.default.max_examples // 4), deadline=None)
@given(
    st.builds(World, prices, prices, prices, st.floats(0, 0.95), st.integers(0, 9)),
    st.sampled_from([1, 8, 64]),
)
def test_it_never_loses_much_and_finds_what_is_to_be_won(world, num_sequences):
    for _ in range(12 * TRIAL):
        world.step(num_sequences)
    chosen = world.gain(num_sequences, world.length.best(num_sequences, MOST))
    best = max(world.gain(num_sequences, count) for count in range(MOST + 1))
    assert chosen >= 0.97
    assert chosen >= 0.85 * best, "the rate of acceptance is an estimate"


def test_without_measurements_there_are_as_many_as_may_be():
    assert DraftLength().best(1, MOST) == MOST


def test_a_large_batch_has_enough_to_do_and_a_small_one_has_not():
    world = World(base=1.0, row=0.05, draft=0.02, acceptance=0.7)
    for step in range(10 * TRIAL):
        world.step((1, 200)[step % 2])
    few, some, many = (world.length.best(count, MOST) for count in (1, 10, 200))
    assert few > some > many == 0


def test_a_trial_brings_back_what_was_useless_once():
    world = World(base=1.0, row=0.01, draft=0.2, acceptance=0.0)
    for _ in range(4 * TRIAL):
        world.step(4)
    assert world.length.best(4, MOST) == 0
    tries = [world.step(4) for _ in range(2 * TRIAL)]
    assert sorted(tries)[-3:] == [0, 1, 1]
    world.acceptance = 0.95
    for _ in range(60 * TRIAL):
        world.step(4)
    assert world.length.best(4, MOST) > 0


def test_a_step_that_met_a_compiler_is_not_believed():
    lengths = DraftLength(), DraftLength()
    for number, length in enumerate(lengths):
        for step in range(100):
            length.note_step(1 + step % 5, 1 + 0.1 * (step % 5) + (30.0 if number and step == 60 else 0))
    assert abs(lengths[0].cost(1) - lengths[1].cost(1)) < 0.1


def test_in_the_engine_drafts_come_and_go_with_the_load_and_no_token_changes():
    """On a processor for which a row costs as much as everything else together."""
    now = [0.0]
    engine = make_engine(
        num_blocks=900, max_num_seqs=32, speculation=guessing(accuracy=0.8, length=DraftLength())
    )
    engine._clock = lambda: now[0]
    execute, drafts = engine.executor.execute, {1: [], 24: []}

    def timed(plan):
        count = len(plan.scheduled)
        if count in drafts:
            drafts[count].append(plan.total_num_scheduled_tokens - count)
        now[0] += 1.0 + 0.3 * plan.total_num_scheduled_tokens
        return execute(plan)

    engine.executor.execute = timed
    params = SamplingParams(temperature=0, max_tokens=120)
    for count in (24, 1):
        for number in range(count):
            engine.add_request(str(number), [1, 2, number], params)
        done = {}
        while engine.has_unfinished_requests():
            done |= {output.request_id: output.outputs[0].token_ids for output in engine.step()}
        assert done == {str(n): expected_output([1, 2, n], 120) for n in range(count)}
    assert sum(drafts[24][-20:]) <= 24, "at most a trial"
    assert sum(map(bool, drafts[1])) > len(drafts[1]) / 3
