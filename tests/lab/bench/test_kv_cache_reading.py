"""The measurement of caches in 8 bits: every kind has a row, and bytes are those of the kind."""

from __future__ import annotations

from minivllm.lab.bench.kv_cache_reading import KINDS, Shape, measure
from minivllm.lab.subjects.settings import Settings


def test_every_kind_of_cache_has_a_row_and_its_bytes() -> None:
    result = measure(Settings(), [Shape(2, 1, 16, 2, 32)], 1)
    assert [(reading.dtype, reading.kv_cache_dtype) for reading in result.readings] == list(KINDS)
    tokens = 2 * 32 * 2  # keys and values
    per_head = [64, 32, 20, 20, 16]
    assert [reading.num_bytes for reading in result.readings] == [tokens * size for size in per_head]
    assert result.readings[0].times_faster == 1 and all(r.seconds > 0 for r in result.readings)
    (section,) = result.sections()
    assert all(len(row) == len(section.columns) for row in section.rows)
