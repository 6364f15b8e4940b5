"""A slow, obviously right sampler of one row, in plain Python: the oracle of the vectorised one."""

import math

from minivllm.decoding.sampling_state import SamplingState
from minivllm.scheduling.request import Sequence


def make_sequence(prompt=(1,), output=()):
    """A sequence with these tokens."""
    sequence = Sequence(0, prompt)
    for token in output:
        sequence.append_token(token)
    return sequence


def make_state(params, prompt=(1,), output=(), **more):
    """What is remembered of a sequence with these tokens."""
    return SamplingState(params, make_sequence(prompt, output), **more)


def process(logits, params, prompt, output, banned=()):
    """The logits of one row after everything that steers them, as a list of floats."""
    row = list(logits)
    if params.allowed_token_ids:
        row = [value if token in params.allowed_token_ids else -math.inf for token, value in enumerate(row)]
    for token in banned:
        row[token] = -math.inf
    for token, bias in (params.logit_bias or {}).items():
        row[token] += bias
    for token in set(prompt) | set(output):
        scale = params.repetition_penalty
        row[token] = row[token] / scale if row[token] > 0 else row[token] * scale
    for token in set(output):
        row[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    return row


def softmax(row):
    largest = max(row)
    weights = [math.exp(value - largest) for value in row]
    return [weight / math.fsum(weights) for weight in weights]


def distribution(row, params):
    """The probabilities from which a token is drawn, after temperature, min-p, top-k and top-p."""
    row = [value / params.temperature for value in row]
    probabilities = softmax(row)
    row = [
        v if p >= params.min_p * max(probabilities) else -math.inf
        for v, p in zip(row, probabilities, strict=True)
    ]
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    kept = order[: params.top_k] if params.top_k > 0 else order
    row = [value if token in kept else -math.inf for token, value in enumerate(row)]
    probabilities = softmax(row)
    reached = 0.0
    for place, token in enumerate(order):
        if place and reached >= params.top_p and params.top_p < 1:
            row[token] = -math.inf
        reached += probabilities[token]
    return softmax(row)
