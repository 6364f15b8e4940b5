"""Thread blocks and their keys: what the picture says is what the microscope saw."""

import pytest

from minivllm.lab.microscope.record import kernel_trace
from minivllm.lab.microscope.subjects import make_subject
from tests.viz.kernel_factory import traces
from viz.figures.kernel_splits import kernel_splits, keys_by_block, moved_by_block


def decoding(context, splits):
    """One head of one sequence, in blocks of 4."""
    shape = {"sequences": 1, "context": context, "heads": 1, "kv_heads": 1, "head_dim": 32, "splits": splits}
    launches = make_subject("paged-attention", shape, seed=3).launches
    return [kernel_trace(launch.observe(), "", number) for number, launch in enumerate(launches)]


@pytest.mark.parametrize(("context", "splits"), [(27, 1), (27, 3), (5, 2)])
def test_splits_share_the_keys_out_and_each_has_its_own(context, splits):
    found = keys_by_block(decoding(context, splits)[0])
    keys = [key for own in found.values() for key in own]
    assert len(keys) == len(set(keys)) == context
    assert len(found) == splits


def test_every_thread_block_has_a_step_and_the_merge_the_last():
    found = decoding(27, 3)
    (scene,) = kernel_splits(found)
    assert scene.num_steps == 4
    assert "combine_splits makes one result" in scene.captions[-1]
    assert "Thread block 0 reads 12 keys" in scene.captions[0]


@pytest.mark.parametrize(
    "name", ["flash-attention-1", "flash-attention-2", "paged-attention", "naive-attention"]
)
def test_bytes_of_thread_blocks_are_those_of_the_kernel(name):
    for trace in traces(name):
        assert sum(moved_by_block(trace).values()) == sum(trace.events[-1].moved_bytes.values())


def test_a_kernel_without_keys_is_not_drawn():
    assert kernel_splits(traces("copy-blocks")) == []
