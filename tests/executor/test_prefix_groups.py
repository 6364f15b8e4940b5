"""What sequences share is read once, and no sequence sees what belongs to the others."""

from array import array

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivllm.executor.attention.metadata import build_metadata
from minivllm.executor.attention.prefix_groups import find_prefix_groups
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.kv_storage import KVStorage
from minivllm.scheduling.plan import ScheduledSequence, StepPlan
from tests.executor.test_attention import model


@st.composite
def groups(draw):
    """For each group of sequences: blocks that all share, and of each member its own blocks."""
    return draw(
        st.lists(
            st.tuples(st.integers(0, 6), st.lists(st.integers(1, 3), min_size=1, max_size=4)),
            min_size=1,
            max_size=4,
        )
    )


def tables_of(groups, shuffled):
    """Block tables over a shuffled pool; the members of a group begin with the same blocks."""
    pool = iter(shuffled)
    tables = []
    for shared, members in groups:
        common = [next(pool) for _ in range(shared)]
        tables += [[*common, *(next(pool) for _ in range(own))] for own in members]
    return tables


def total_blocks(groups):
    return sum(shared + sum(members) for shared, members in groups)


@given(groups=groups(), seed=st.integers(0, 99))
def test_a_prefix_group_has_every_block_of_its_members_once(groups, seed):
    tables = tables_of(groups, np.random.default_rng(seed).permutation(total_blocks(groups)).tolist())
    lengths = np.array([len(table) for table in tables])
    padded = np.zeros((len(tables), lengths.max()), np.int64)
    for row, table in zip(padded, tables, strict=True):
        row[: len(table)] = table
    found, alone = find_prefix_groups(padded, lengths, np.arange(len(tables)))
    members = sorted(int(member) for group in found for member in group.members)
    assert sorted([*members, *alone.tolist()]) == list(range(len(tables))), "every sequence is served once"
    for group in found:
        assert len(group.members) > 1
        assert len(set(group.blocks.tolist())) == len(group.blocks)
        for index, member in enumerate(group.members):
            mine = (group.owners == -1) | (group.owners == index)
            assert group.blocks[mine].tolist() == tables[member]
            assert group.logical[mine].tolist() == list(range(len(tables[member])))
        assert (group.owners >= 0).sum() <= (group.owners == -1).sum(), "it shares more than it does not"


@given(
    groups=groups(),
    heads=st.sampled_from([(2, 2), (4, 2), (6, 2)]),
    block_size=st.sampled_from([1, 4]),
    window=st.sampled_from([None, None, 5]),
    seed=st.integers(0, 999),
)
def test_sharing_blocks_gives_what_private_copies_give(groups, heads, block_size, window, seed):
    config = model(heads, 8, [window])
    rng = np.random.default_rng(seed)
    num_blocks = total_blocks(groups)
    shared = tables_of(groups, rng.permutation(num_blocks).tolist())
    num_private = sum(len(table) for table in shared)
    places = iter(rng.permutation(num_private).tolist())
    private = [[next(places) for _ in table] for table in shared]
    lengths = [int(rng.integers((len(t) - 1) * block_size, len(t) * block_size)) + 1 for t in shared]
    with_sharing = KVStorage(config, num_blocks, block_size, torch.float64, torch.device("cpu"))
    without = KVStorage(config, num_private, block_size, torch.float64, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    with_sharing.cells.normal_(generator=generator)
    without.cells.fill_(float("nan"))
    for ours, theirs in zip(shared, private, strict=True):
        without.cells[:, :, theirs] = with_sharing.cells[:, :, ours]
    query = torch.randn(len(shared), heads[0], 8, dtype=torch.float64, generator=generator)
    new = torch.randn(2, len(shared), heads[1], 8, dtype=torch.float64, generator=generator)
    outputs = []
    for storage, tables in ((with_sharing, shared), (without, private)):
        scheduled = tuple(
            ScheduledSequence(index, length - 1, array("i", [0]), array("i", table), 1)
            for index, (table, length) in enumerate(zip(tables, lengths, strict=True))
        )
        backend = TorchAttention(config, storage)
        backend.begin_step(build_metadata(StepPlan(0, scheduled), block_size))
        outputs.append(backend(0, query, new[0], new[1]))
    assert torch.allclose(outputs[0], outputs[1], rtol=0, atol=1e-12)
