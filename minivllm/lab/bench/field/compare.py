"""Rounds and ratios: ours and every peer in turns, each in its own process, on the same requests.

    batch     round 0   ours  vllm  openvino        round 1   openvino  vllm  ours      …
    decode    round 0   ours  vllm  openvino        …

A process that waits uses no core: libraries let their threads spin for a few milliseconds after the work is
done, some for 0.2 seconds, and the pause between two turns is longer. A peer that fails is skipped from
there on; measures that were complete before keep its figures.

Both sides deliver exactly as many tokens from the same weights, in the same type, on the same number of
threads; where weights are rounded to 8 or 4 bits, each side rounds the same ones in its own format. The
ratio counts, not the seconds: it is taken within each round, and the median of the rounds is the result.

Read next: `participants.py`, which starts and ends the peers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep

from minivllm.lab.bench.field.measures import Measure, make_measures, padding_factor
from minivllm.lab.bench.field.participants import Participants, start_peers
from minivllm.lab.bench.field.result import FieldResult, MeasureResult, Side, make_side
from minivllm.lab.bench.field.roster import PEERS, Peer, find_pythons
from minivllm.lab.bench.field.settings import FieldSettings
from minivllm.lab.bench.report import make_header
from minivllm.lab.bench.timing import timed
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import Subject, open_subject
from minivllm.lab.subjects.workload import play, warm_up

PAUSE_SECONDS = 0.4
OURS = "minivllm"


@dataclass
class Rounds:
    """What one side did in one measure."""

    all_seconds: list[float] = field(default_factory=list)
    other_cores: list[float] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    """Of the first round."""

    def add(self, seconds: float, other_cores: float, token_ids: list[list[int]]) -> None:
        self.all_seconds.append(seconds)
        self.other_cores.append(other_cores)
        self.token_ids = self.token_ids or token_ids


def run(settings: Settings, roster: Mapping[str, Peer] = PEERS) -> FieldResult:
    """Load the model, start the peers, and measure all of them in turns.

    Raises:
        ValueError: an unknown peer, a Python that is not there, or a model that cannot be loaded.
    """
    if not isinstance(settings, FieldSettings):
        settings = FieldSettings(**vars(settings), peers=tuple(roster))
    pythons = find_pythons(settings.pythons, settings.peers, roster)
    with open_subject(settings, quantization=settings.weights) as subject:
        return compare(subject, settings, pythons, roster)


def compare(
    subject: Subject,
    settings: FieldSettings,
    pythons: Mapping[str, Path | None],
    roster: Mapping[str, Peer] = PEERS,
    pause_seconds: float = PAUSE_SECONDS,
) -> FieldResult:
    """All measures, with the peers that can be started."""
    measures = make_measures(
        settings.measures,
        subject.workload(settings),
        subject.executor.config.vocab_size,
        settings.seed,
        subject.limits.max_model_len,
    )
    with start_peers(subject, settings, pythons, roster, measures) as participants:
        results = [
            measure_all(subject, settings.repeat, each, participants, pause_seconds) for each in measures
        ]
        peers = tuple(participants.peers.values())
    others = [side.other_cores for result in results for side in result.sides]
    facts = subject.facts() | ({"dtype": f"{settings.weights} weights"} if settings.weights else {})
    header = make_header("field", settings, facts, others)
    return FieldResult(header, tuple(results), peers)


def measure_all(
    subject: Subject, repeat: int, measure: Measure, participants: Participants, pause_seconds: float
) -> MeasureResult:
    """`repeat` rounds of one measure, in which all sides compute in turns; a peer that fails is skipped."""
    play(subject.engine(), warm_up(measure.requests))
    for name in participants.running:
        with participants.skip_if_it_fails(name):
            participants.children[name].warm_up(measure.name)
    rounds = {name: Rounds() for name in (OURS, *participants.running)}
    for round_number in range(repeat):
        for name in list(rounds)[:: 1 if round_number % 2 == 0 else -1]:
            sleep(pause_seconds)
            if name == OURS:
                _time_ours(subject, measure, rounds[OURS])
            elif name in participants.running:
                with participants.skip_if_it_fails(name):
                    _time_peer(participants, name, measure, rounds[name])
    ours = rounds[OURS]
    mine = make_side(OURS, measure.num_tokens, ours.all_seconds, ours.other_cores)
    sides = [_side(participants, name, measure, rounds[name], ours) for name in participants.running]
    sides.sort(key=lambda side: -side.tokens_per_second)
    return MeasureResult(
        measure.name, measure.title, len(measure.requests), measure.num_tokens, (mine, *sides)
    )


def _time_ours(subject: Subject, measure: Measure, rounds: Rounds) -> None:
    sample = timed(lambda: play(subject.engine(), measure.requests))
    tokens = [list(output.outputs[0].token_ids) for output in sample.result.outputs]
    rounds.add(sample.result.seconds, sample.other_cores, tokens)


def _time_peer(participants: Participants, name: str, measure: Measure, rounds: Rounds) -> None:
    lengths = [request.num_output_tokens for request in measure.requests]
    sample = timed(lambda: participants.children[name].go(measure.name, lengths))
    answer = sample.result
    # `timed` knows this process alone, and counts the peer's among the other programs.
    own_cores = answer.cpu_seconds / max(sample.seconds, 1e-9)
    rounds.add(answer.seconds, max(0.0, sample.other_cores - own_cores), answer.token_ids)


def _side(participants: Participants, name: str, measure: Measure, theirs: Rounds, ours: Rounds) -> Side:
    same = sum(a == b for a, b in zip(theirs.token_ids, ours.token_ids, strict=True))
    size = participants.peers[name].padded_batch_size
    padding = None if size is None else padding_factor(measure.requests, size)
    return make_side(
        name,
        measure.num_tokens,
        theirs.all_seconds,
        theirs.other_cores,
        ours.all_seconds,
        same,
        padding,
    )
