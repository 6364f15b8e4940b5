"""Random numbers without a generator: a function from a name to numbers.

An ordinary random generator has a state, so what it draws depends on what was drawn before. In a closed loop
that is the order in which requests finish, and two schedulers would be compared on different requests. Here
each request has a name, and its lengths and tokens are a hash of that name:

    "7:user-3-0:tokens"  ──SHAKE-128──►  as many bytes as are wanted  ──►  token ids

No draw disturbs another, any request can be made at any time, and the numbers are the same on every machine
and in every version of Python. A hash costs a microsecond; seeding a generator for each request costs four.

Source: the construction is that of counter-based generators, Salmon et al., "Parallel Random Numbers: As Easy
as 1, 2, 3" (SC 2011). Read next: `mix.py`, which makes requests of it.
"""

from __future__ import annotations

import math
from array import array
from hashlib import shake_128
from struct import unpack

import numpy as np

FIRST_ORDINARY_TOKEN = 3
"""Ids below are beginning, end and padding in the random models."""
LARGEST_VOCABULARY = 2**31 - 1
"""Token ids are kept in 32 bits."""


def uniforms(key: str, count: int) -> list[float]:
    """So many numbers strictly between 0 and 1."""
    words = unpack(f"<{count}Q", shake_128(key.encode()).digest(8 * count))
    # The half keeps 0 out; with more than 52 bits before it the largest would be rounded to 1.
    return [((word >> 12) + 0.5) * 2.0**-52 for word in words]


def exponential(key: str, mean: float) -> float:
    """A waiting time without memory."""
    return -mean * math.log(uniforms(key, 1)[0]) if mean else 0.0


def ordinary_tokens(key: str, count: int, vocab_size: int) -> array[int]:
    """So many token ids, `FIRST_ORDINARY_TOKEN … vocab_size - 1`, each as likely as the others.

    Nearly: the remainder of a 32-bit number favours small ids by vocab_size / 2³², a few millionths.
    """
    words = np.frombuffer(shake_128(key.encode()).digest(4 * count), "<u4")
    words = words % (vocab_size - FIRST_ORDINARY_TOKEN)
    words += FIRST_ORDINARY_TOKEN
    return array("i", words.tobytes())
