"""The measurement of prefix caches: its rig keeps what it says, and its numbers have their places."""

from __future__ import annotations

import pytest

from minivllm.lab.bench.prefix_lookup import BLOCKS_PER_PREFIX, FORMS, CacheRig, measure
from minivllm.lab.subjects.settings import Settings


@pytest.mark.parametrize("form", FORMS)
def test_a_rig_always_knows_as_many_prefixes_as_it_should(form: str) -> None:
    rig = CacheRig(form, num_prefixes=50, seed=1)
    for _ in range(5):
        assert set(rig.round()) == {"look up", "hold", "replace"}
        assert len(rig.cache) == rig.cache.num_evictable_blocks == 50 * BLOCKS_PER_PREFIX


def test_every_form_and_operation_has_a_row() -> None:
    result = measure(Settings(), (40, 80), 2)
    assert len(result.costs) == 2 * 3
    assert all(len(cost.seconds) == 2 and cost.flatness > 0 for cost in result.costs)
    (section,) = result.sections()
    assert len(section.rows) == 6 and all(len(row) == len(section.columns) for row in section.rows)
