"""A softmax over many keys, part by part: the one order that prompts and decoding have in common.

The result of attention must not depend on what else is in the step, on chunks, on threads or on blocks. So
keys are cut at fixed positions, whatever the reason to cut them:

    positions   0 … 255        256 … 511        512 … now          parts of PART_KEYS
    each        maximum, sum of weights, weighed values: all relative to its own maximum
    folded      ((part 0 + part 1) + part 2), always from the left

Parts of a long sequence may be computed on several threads; they are folded in order all the same. A part
in which a query sees nothing changes nothing when it is folded, bit for bit.

Source: Dao et al., "Flash-Decoding" (2023); He et al., "Defeating Nondeterminism in LLM Inference" (2025): a
fixed size of splits, not a fixed number. Read next: `paged_decode.py`, `paged_prefill.py`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kernels_numba.cpu.arithmetic import exp_fast, multiply_add

PART_KEYS = 256
"""Positions of a part."""
UNSEEN = np.float32(-1e30)
"""The score of a key that a query may not see."""
LOWEST = np.float32(-5e29)
"""Where a maximum begins: so far above `UNSEEN` that what is not seen weighs nothing, even alone."""


@njit(nogil=True, cache=True, error_model="numpy")
def fold(maximum, weight_sum, total, part_maximum, part_sum, part_total, scale):  # type: ignore[no-untyped-def]
    """A further part is folded into those before it. Returns the new maximum and sum; `total` is written."""
    largest = max(maximum, part_maximum)
    before, own = exp_fast((maximum - largest) * scale), exp_fast((part_maximum - largest) * scale)
    for c in range(len(total)):
        total[c] = multiply_add(part_total[c], own, total[c] * before)
    return largest, multiply_add(part_sum, own, weight_sum * before)
