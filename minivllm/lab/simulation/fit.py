"""From measured steps to a card: which few numbers would explain them?

The cost of a step is a sum of a few terms, each an amount of work times an unknown price:

    seconds ≈ step + sequences · s + max( linear FLOPs / F, weights / B )
                                   + max( attention FLOPs / F, keys and values / A )

Five prices. (A price of tokens would be a sixth, but no fit can tell it from that of their FLOPs.) Start with
a guess, make each a little larger or smaller, and keep what makes the error less; first in large strides,
then in smaller ones. What is made small is the *relative* error, so that a decode of 2 ms matters as much as
a prefill of 200 ms; and the tenth of the steps that fits worst is left out, because on a busy machine any
step may be interrupted.

What fits is the whole, and not each price: one can be too high and another too low on all measured steps.

Source: the exploratory moves of Hooke and Jeeves, "Direct Search" (1961), in logarithms, because prices
differ by powers of ten.
Read next: `minivllm/lab/bench/calibrate.py`, which measures; `cost_model.py`, which uses the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minivllm.lab.simulation.cards import HardwareCard, ModelCard
from minivllm.lab.simulation.cost_model import CostModel
from minivllm.trace.timeline import Timeline
from minivllm.trace.work import BatchShape, shape_of_items, work_of

Floats = NDArray[np.float64]

KEPT = 0.9
"""Share of the steps that a fit must explain."""
NUM_PRICES = 5
FIRST_GUESSES = (
    (1e-3, 1e-4, 1e-11, 2e-11, 5e-10),
    (5e-3, 1e-5, 1e-14, 1e-12, 1e-12),
    (1e-4, 1e-5, 1e-12, 1e-10, 1e-11),
)
"""A small CPU, a large GPU, and something between: seconds for a step, a sequence, a FLOP, a byte of weights,
and a byte of the cache."""
STRIDES = (1.6, 0.7, 0.3, 0.1, 0.03, 0.01)
"""In logarithms: from a factor of five down to one percent."""
SEQUENCES, LINEAR, WEIGHTS, PAIRS, KV = range(5)
"""Columns of the work in steps."""


class Sample(NamedTuple):
    """One measured step."""

    shape: BatchShape
    seconds: float


def samples_of(timeline: Timeline) -> list[Sample]:
    """The steps of a recorded run, each with all that its time depends on."""
    samples = []
    for record in timeline.records:
        seconds = sum(value for part, value in record.seconds.items() if part != "attention")
        if record.is_ahead:  # some of the parts lie within other steps
            seconds = record.end - record.start
        if not record.batch or seconds <= 0 or record.copied or record.swapped_in or record.swapped_out:
            continue
        shape = shape_of_items(record.batch, len(record.sampled), record.num_padding_tokens)
        samples.append(Sample(shape, seconds))
    return samples


def fit_card(samples: Sequence[Sample], model: ModelCard, *, title: str, memory_bytes: float) -> HardwareCard:
    """A card of the machine on which these steps of this model were measured.

    Raises:
        ValueError: there are too few different steps to tell its numbers apart.
    """
    if len({sample.shape for sample in samples}) < 2 * NUM_PRICES:
        raise ValueError(
            f"samples must be at least {2 * NUM_PRICES} steps of different shapes, "
            f"got {len({sample.shape for sample in samples})}"
        )
    work = _work(samples, model)
    seconds = np.array([sample.seconds for sample in samples])
    found = [_search(work, seconds, np.log(np.array(guess))) for guess in FIRST_GUESSES]
    return _card(np.exp(min(found, key=lambda prices: _error(work, seconds, prices))), title, memory_bytes)


def relative_errors(card: HardwareCard, model: ModelCard, samples: Sequence[Sample]) -> list[float]:
    """`simulated / real - 1` of each step."""
    cost = CostModel(card, model)
    return [cost.step_seconds(sample.shape) / sample.seconds - 1 for sample in samples]


def _work(samples: Sequence[Sample], model: ModelCard) -> Floats:
    """Amounts of work [steps, 5], both sides of each max."""
    shape = model.shape()
    rows = []
    for sample in samples:
        batch = sample.shape
        work = work_of(shape, batch._replace(num_logit_rows=max(batch.num_logit_rows, 1)))
        tokens = batch.num_tokens + batch.num_padding_tokens
        kv = model.kv_bytes_per_token * (batch.num_context_tokens + tokens)
        linear = work_of(shape, batch).linear_flops
        rows.append((batch.num_sequences, linear, work.weight_bytes, work.attention_flops, kv))
    return np.array(rows, dtype=np.float64)


def _search(work: Floats, seconds: Floats, prices: Floats) -> Floats:
    """The logarithms of the prices at which the error is least, as far as small strides can tell."""
    best = _error(work, seconds, prices)
    for stride in STRIDES:
        improved = True
        while improved:
            improved = False
            for index in range(len(prices)):
                for change in (stride, -stride):
                    other = prices.copy()
                    other[index] += change
                    error = _error(work, seconds, other)
                    if error < best - 1e-9:
                        prices, best, improved = other, error, True
    return prices


def _error(work: Floats, seconds: Floats, prices: Floats) -> float:
    """Mean of |log(simulated / real)| over the steps that fit best."""
    step, sequence, flop, weight_byte, kv_byte = np.exp(prices)
    simulated = (
        step
        + sequence * work[:, SEQUENCES]
        + np.maximum(flop * work[:, LINEAR], weight_byte * work[:, WEIGHTS])
        + np.maximum(flop * work[:, PAIRS], kv_byte * work[:, KV])
    )
    errors = np.sort(np.abs(np.log(simulated / seconds)))
    return float(errors[: max(1, int(KEPT * len(errors)))].mean())


def _card(prices: Floats, title: str, memory_bytes: float) -> HardwareCard:
    """Prices are seconds for one unit of work; a card says units a second, and shares of the best."""
    step, sequence, flop, weight_byte, kv_byte = (float(price) for price in prices)
    fastest = max(1 / weight_byte, 1 / kv_byte)
    return HardwareCard(
        title=title,
        peak_flops=1 / flop,
        memory_bandwidth=fastest,
        memory_bytes=memory_bytes,
        link_bandwidth=fastest,
        link_latency_seconds=0.0,
        host_bandwidth=fastest,
        compute_efficiency=1.0,
        bandwidth_efficiency=min(1.0, 1 / weight_byte / fastest),
        attention_efficiency=min(1.0, 1 / kv_byte / fastest),
        step_overhead_seconds=step,
        sequence_overhead_seconds=sequence,
        token_overhead_seconds=0.0,
        transfer_overhead_seconds=0.0,
        source="minivllm calibrate",
    )
