"""Who owns what: everything is owned once, or by all who need it."""

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minivllm.model.config import ModelConfig
from minivllm.model.parallel.layout import (
    AXES,
    PARTITION,
    Grid,
    can_split,
    choose_parts,
    layers_of_stages,
    share_of,
    split_evenly,
    split_layers,
    split_model,
    wanted_partition,
)

sizes = st.integers(1, 4)
grids = st.builds(Grid, sizes, sizes, sizes)


def config_of(heads=6, kv_heads=2, layers=5, vocabulary=4099, intermediate=80, windows=False):
    family = "MistralForCausalLM" if windows else "LlamaForCausalLM"
    return ModelConfig.from_dict(
        {"architectures": [family], "vocab_size": vocabulary, "hidden_size": 8 * heads,
         "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
         "num_key_value_heads": kv_heads, "head_dim": 8, "max_position_embeddings": 64}
    )  # fmt: skip


@st.composite
def splits(draw):
    """A model, a grid and a number of parts that go together."""
    group, kv_heads = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    config = config_of(
        group * kv_heads,
        kv_heads,
        layers=draw(st.integers(1, 9)),
        vocabulary=draw(st.integers(1, 5000)),
        intermediate=draw(st.integers(24, 200)),
        windows=draw(st.booleans()),
    )
    parts = draw(st.sampled_from([count for count in range(1, 25) if can_split(config, count)]))
    ranks = [ranks for ranks in range(1, parts + 1) if parts % ranks == 0 and can_split(config, ranks)]
    tensor = draw(st.sampled_from(ranks))
    return config, Grid(1, draw(st.integers(1, min(4, config.num_layers))), tensor), parts


@given(grid=grids, data=st.data())
def test_a_rank_is_at_one_place_and_in_one_group_of_each_axis(grid, data):
    assert len({grid.place(rank) for rank in range(grid.size)}) == grid.size
    for number, axis in enumerate(AXES):
        groups = grid.groups(axis)
        assert Counter(rank for group in groups for rank in group) == Counter(range(grid.size))
        rank = data.draw(st.integers(0, grid.size - 1))
        group = grid.group_of(rank, axis)
        assert rank in group and len(group) == getattr(grid, axis)
        places = [grid.place(member) for member in group]
        assert [place[number] for place in places] == list(range(len(group)))
        assert all(len({place[other] for place in places}) == 1 for other in range(3) if other != number)


@given(split=splits())
def test_every_row_head_and_layer_is_owned_once_and_kv_heads_by_all_who_look_at_them(split):
    config, grid, num_parts = split
    shares = [share_of(config, grid, rank, num_parts) for rank in range(grid.size)]
    for stage in range(grid.pipeline):
        row = [share for share in shares if share.place.pipeline == stage]
        parts = [part for share in row for part in share.parts]
        assert [part.number for part in parts] == list(range(num_parts)), "whole parts, in their order"
        for name, total in (
            ("heads", config.num_heads),
            ("intermediate", config.intermediate_size),
            ("vocabulary", config.vocab_size),
        ):
            owned = [index for part in parts for index in getattr(part, name)]
            assert owned == list(range(total)), name
        group = config.num_heads // config.num_kv_heads
        for part in parts:
            assert set(part.kv_heads) == {head // group for head in part.heads}
            assert len(part.heads) % len(part.kv_heads) == 0
            assert len(part.vocabulary) <= row[0].padded_vocabulary
    layers = [layer for share in shares if share.place.tensor == 0 for layer in share.layers]
    assert layers == list(range(config.num_layers))
    assert [share.is_first for share in shares] == [share.place.pipeline == 0 for share in shares]


@given(split=splits())
def test_a_rank_keeps_each_of_its_kv_heads_once_and_every_layer_with_its_window(split):
    config, grid, num_parts = split
    for rank in range(grid.size):
        share = share_of(config, grid, rank, num_parts)
        cache = share.cache_config
        homes = {}
        for part in share.parts:
            for layer in share.layers:
                home = share.cache_layer(part, layer)
                assert homes.setdefault(home, (part.kv_heads, layer)) == (part.kv_heads, layer)
                assert cache.layer_windows[home] == config.layer_windows[layer]
        assert sorted(homes) == list(range(cache.num_layers))
    total = sum(share_of(config, grid, rank, num_parts).cache_config.kv_elements_per_token
                for rank in range(grid.size))  # fmt: skip
    copies = max(1, grid.tensor // config.num_kv_heads)
    assert total == copies * config.kv_elements_per_token, "no more than what must be kept twice"


@given(total=st.integers(0, 50), count=st.integers(1, 9))
def test_an_even_split_is_whole_and_even(total, count):
    ranges = split_evenly(total, count)
    assert [index for part in ranges for index in part] == list(range(total))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@given(layers=st.integers(1, 50), stages=st.integers(1, 9))
def test_the_last_stage_has_no_more_layers_than_any_other(layers, stages):
    assume(layers >= stages)
    lengths = [len(stage) for stage in split_layers(layers, stages)]
    assert sum(lengths) == layers and max(lengths) - min(lengths) <= 1
    assert lengths[-1] == min(lengths)


def test_five_layers_on_two_stages():
    assert split_layers(5, 2) == [range(3), range(3, 5)]
    assert layers_of_stages(5, Grid(pipeline=2)) == [range(3), range(3, 5)]
    assert layers_of_stages(5, Grid(pipeline=2, layers=(4, 1))) == [range(4), range(4, 5)]


@pytest.mark.parametrize(
    ("said", "found"), [("", ()), (" ", ()), ("7,5", (7, 5)), (" 1 , 2,3", (1, 2, 3)), ("4", (4,))]
)
def test_vllms_variable_divides_the_layers(said, found):
    assert wanted_partition({PARTITION: said}) == found


@pytest.mark.parametrize("said", ["7;5", "7,", "0,12", "-1,13", "a,b", "1.5,2"])
def test_a_division_that_is_none_is_refused(said):
    with pytest.raises(ValueError, match="VLLM_PP_LAYER_PARTITION must be numbers of layers"):
        wanted_partition({PARTITION: said})


@pytest.mark.parametrize("layers", [(3,), (2, 2, 1), (3, 1), (5, 1)])
def test_a_division_of_other_layers_or_stages_is_refused(layers):
    config = config_of(heads=2, kv_heads=2, layers=5)
    with pytest.raises(ValueError, match=r"must name 2 numbers of layers.*add up to 5"):
        choose_parts(config, Grid(pipeline=2, layers=layers))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "ranks", "parts"),
    [
        (6, 2, 1, 2),
        (6, 2, 2, 2),
        (6, 2, 6, 6),
        (4, 1, 1, 4),
        (4, 1, 2, 4),
        (4, 1, 4, 4),
        (7, 7, 1, 1),
        (32, 4, 8, 8),
    ],
)
def test_parts_are_four_where_heads_and_ranks_allow_it(heads, kv_heads, ranks, parts):
    assert choose_parts(config_of(heads, kv_heads), Grid(tensor=ranks)) == parts


@pytest.mark.parametrize(
    ("grid", "wanted", "message"),
    [
        (Grid(tensor=4), None, "tensor_parallel_size must be one of 1, 2, 6 .* 6 heads and 2 KV .*got 4"),
        (Grid(pipeline=6), None, "pipeline_parallel_size must be at most 5.*got 6"),
        (Grid(tensor=2), 3, "reduction_parts must be one of 2, 6 .*tensor_parallel_size 2.*got 3"),
        (Grid(), 5, "reduction_parts must be one of 1, 2, 6"),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_refused_with_what_can(grid, wanted, message):
    with pytest.raises(ValueError, match=message):
        choose_parts(config_of(), grid, wanted)


def test_the_example_of_the_docstring():
    parts = list(split_model(config_of(4, 1, vocabulary=10), 4))
    assert [list(part.heads) for part in parts] == [[0], [1], [2], [3]]
    assert all(part.kv_heads == range(1) for part in parts)
    assert [len(part.vocabulary) for part in parts] == [3, 3, 3, 1]
