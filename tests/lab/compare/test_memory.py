"""The comparison of memories: the workload is what it says, counts are right, reasons are measured."""

import io
import json
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from minivllm.config import SchedulerConfig
from minivllm.lab import papers
from minivllm.lab.compare.beam_dice import BeamDice
from minivllm.lab.compare.commands import app
from minivllm.lab.compare.differences import differences
from minivllm.lab.compare.memory import (
    ALLOCATORS,
    COPIES_WIDTH,
    PLACED_OTHERWISE,
    SMALLER,
    WIDTHS,
    MemoryComparison,
    MemorySettings,
    Run,
    blocks_per_page,
    compare_memory,
    copy_bytes,
    make_memory,
    play,
    slots_beside,
    slots_of,
)
from minivllm.lab.compare.memory_picture import save_picture
from minivllm.lab.compare.memory_play import MemoryPlay, Played, _Beams
from minivllm.lab.compare.memory_report import as_data, print_comparison
from minivllm.lab.workloads.lengths import DATA_SETS, Lengths, draw_lengths, stretched
from minivllm.memory.waste import MemoryShares


def config_of(num_slots, block_size=4, max_model_len=64):
    return SchedulerConfig(num_slots // block_size, block_size, max_num_seqs=64, max_model_len=max_model_len)


# ── the workload ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_the_means_are_the_papers_and_the_seed_decides(data_set):
    shape = DATA_SETS[data_set]
    lengths = draw_lengths(data_set, 500, 3)
    assert sum(item.prompt for item in lengths) / 500 == pytest.approx(shape.mean_prompt, abs=0.01)
    assert sum(item.output for item in lengths) / 500 == pytest.approx(shape.mean_output, abs=0.01)
    assert lengths == draw_lengths(data_set, 500, 3) != draw_lengths(data_set, 500, 4)
    assert all(item.prompt + item.output <= papers.MAX_MODEL_LEN for item in lengths)


@given(values=st.lists(st.floats(0.1, 1000), min_size=1, max_size=20), mean=st.floats(3, 90))
def test_stretching_keeps_the_order_and_the_limits(values, mean):
    result = stretched(values, mean, 2, 100)
    assert all(2 <= value <= 100 for value in result)
    pairs = sorted(zip(values, result, strict=True))
    assert [value for _, value in pairs] == sorted(result)
    assert sum(result) / len(result) >= mean, "the smallest factor that reaches the mean"


# ── beams by dice ─────────────────────────────────────────────────────────────────────────────────────


@given(width=st.integers(1, 6), seed=st.integers(0, 99), steps=st.integers(1, 30))
def test_survivors_are_the_best_and_their_distance_is_that_of_their_texts(width, seed, steps):
    """The last common ancestor, found by comparing whole texts."""
    beams = _Beams(BeamDice(width, seed))
    texts, tokens = [()], count()
    for _ in range(steps):
        children = beams.dice.survivors(beams.scores)
        assert len(children) == width
        assert [score for _, score in children] == sorted((s for _, s in children), reverse=True)
        assert all(score <= beams.scores[parent] for parent, score in children)
        texts = [(*texts[parent], next(tokens)) for parent, _ in children]
        beams.scores = [score for _, score in children]
        beams.parents.append([parent for parent, _ in children])
        common = 0
        while common < len(texts[0]) and len({text[: common + 1] for text in texts}) == 1:
            common += 1
        assert beams.tokens_apart() == len(texts[0]) - common


def test_every_beam_may_have_children_and_the_best_has_most():
    dice, scores = BeamDice(4, 0), [0.0]
    parents = []
    for _ in range(200):
        children = dice.survivors(scores)
        scores = [score for _, score in children]
        parents += [parent for parent, _ in children]
    shares = [parents.count(beam) for beam in range(4)]
    assert shares == sorted(shares, reverse=True) and shares[3] > 0


# ── a play ────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=settings.default.max_examples // 2)
@given(
    allocator=st.sampled_from([*ALLOCATORS, *PLACED_OTHERWISE]),
    lengths=st.lists(
        st.builds(Lengths, prompt=st.integers(1, 20), output=st.integers(1, 30)), min_size=1, max_size=12
    ),
    width=st.integers(1, 3),
    beams=st.booleans(),
)
def test_every_memory_serves_every_request_to_its_last_token(allocator, lengths, width, beams):
    config = config_of(256, 1 if allocator == "token" else 4)
    memory = make_memory(allocator, config)
    game = MemoryPlay(memory, config, lengths, width=width, beams=beams, wait_for_full_memory=False)
    played = game.run()
    memory.check_invariants()
    assert memory.num_free_blocks == config.num_blocks and not memory.tables
    assert played.num_tokens == width * sum(output for _, output in lengths)
    assert sum(played.shares) == pytest.approx(1) and min(played.shares) >= 0
    assert 0 <= played.saved <= 1 - 1 / width
    if allocator not in ("paged", "token"):
        assert played.num_preemptions == 0 or allocator == "virtual_memory"
    if width == 1:
        assert played.num_copies == 0 and played.saved == 0


def test_whoever_reserves_the_longest_has_as_many_requests_as_strips():
    """Four strips of 64 tokens in 270: the rest is external, and that is how it should come out."""
    config = config_of(270 // 4 * 4)
    lengths = [Lengths(10, 23)] * 40
    played = MemoryPlay(make_memory("contiguous", config), config, lengths).run()
    assert played.requests_at_once == 4
    # Of each 64, 32 are used in the end. (The answer's last token is never computed.)
    effective, reserved, *others = played.shares
    assert effective + reserved == pytest.approx(4 * 32 / 268)
    assert others == pytest.approx([4 * 32 / 268, 12 / 268, 0])
    assert effective * 268 == pytest.approx(played.requests_at_once * played.tokens_per_request)
    # Prompt and first token come in one step, so each step from 10 to 32 tokens is seen once.
    assert played.tokens_per_request == pytest.approx(sum(range(10, 33)) / 23, abs=0.2)


def test_what_sharing_saves_is_what_it_says():
    """Prompts of 4 whole blocks, answers within 1: of 4 · 5 blocks, 4 + 4 are in use once all have forked."""
    config = config_of(16 * 64, 16, 1024)
    game = MemoryPlay(
        make_memory("paged", config), config, [Lengths(64, 16)], width=4, wait_for_full_memory=False
    )
    played = game.run()
    # Looked at in steps 0, 2, … 14 of 0 … 15; in the first there is one sequence with its 4 blocks.
    assert played.num_steps == 16 and played.num_looks == 8
    assert played.saved == pytest.approx(1 - (4 + 7 * 8) / (4 + 7 * 20))
    assert played.prompt_share == pytest.approx((4 + 7 * 16) / (4 + 7 * 20))
    assert played.num_copies == 0


def test_a_memory_that_is_never_full_has_nothing_to_compare():
    config = config_of(1024)
    with pytest.raises(ValueError, match="2 requests are too few: none ever had to wait for memory"):
        MemoryPlay(make_memory("paged", config), config, [Lengths(5, 5)] * 2).run()


def test_a_request_that_would_wait_for_ever_is_refused():
    config = config_of(128)
    with pytest.raises(ValueError, match=r"5 \+ 5 tokens and 3 sequences can never fit: it needs 48 of 32"):
        MemoryPlay(make_memory("contiguous", config), config, [Lengths(5, 5)], width=3)


def test_pages_of_64_kib_hold_two_blocks_of_the_papers_model():
    """A block of keys in one layer is 16 tokens · 5120 · 2 bytes = 160 KiB: two of them are five pages."""
    assert blocks_per_page(16) == 2
    assert blocks_per_page(32) == 1


# ── the whole ─────────────────────────────────────────────────────────────────────────────────────────

NOTHING = Played(9, 9, MemoryShares(0.5, 0.2, 0.2, 0.1, 0.0), 10.0, 500.0, 0.3, 0.4, 5, 1000, 0, 12.0)


def as_in_the_papers(run: Run) -> Played:
    """What is played when everything comes out as it should."""
    played = NOTHING
    if run.kind == "single":
        share = papers.EFFECTIVE.get(run.allocator, 0.5)
        played = replace(
            played,
            shares=MemoryShares(share, 0, papers.INTERNAL.get(run.allocator, 0), 0, 0),
            requests_at_once=papers.REQUESTS_AT_ONCE[run.data_set].get(run.allocator, 10.0),
        )
    elif run.allocator == "paged":
        played = replace(played, saved=papers.SAVED[run.data_set, run.kind].get(run.width, 0.5))
    return played


def comparison(playing=as_in_the_papers) -> MemoryComparison:
    """A comparison in which nothing was played."""

    def run(data_set, allocator, kind, width):
        blank = Run(data_set, allocator, kind, width, NOTHING)
        return replace(blank, played=playing(blank))

    return MemoryComparison(
        MemorySettings(200, 0, 16, papers.NUM_SLOTS),
        tuple(run(data, name, "single", 1) for data in DATA_SETS for name in ALLOCATORS),
        tuple(run(data, name, "single", 1) for data in DATA_SETS for name in PLACED_OTHERWISE),
        tuple(
            run("alpaca", name, kind, COPIES_WIDTH)
            for kind in ("parallel", "beam")
            for name in ALLOCATORS[:-1]
        ),
        tuple(
            run(data, "paged", kind, width)
            for data in DATA_SETS
            for kind in ("parallel", "beam")
            for width in WIDTHS
        ),
        (),
        smaller=tuple(
            replace(run(data, "paged", "single", 1), kv_cache_dtype=kind)
            for data in DATA_SETS
            for kind in SMALLER
        ),
    )


def test_where_all_is_as_in_the_papers_there_is_nothing_to_explain():
    assert differences(comparison()) == []


@pytest.mark.parametrize(
    ("where", "change", "words"),
    [
        (
            ("oracle", "single"),
            {"shares": MemoryShares(0.6, 0, 0, 0, 0)},
            "oracle: 60.0% effective, in the paper 38",
        ),
        (("buddy", "single"), {"shares": MemoryShares(0.1, 0, 0.13, 0, 0)}, "buddies cost"),
        (("buddy", "single"), {"shares": MemoryShares(0.27, 0, 0.4, 0, 0)}, "What the allocator rounds up"),
        (("contiguous", "single"), {"shares": MemoryShares(0.1, 0, 0, 0, 0)}, "holds 500 tokens here"),
        (("paged", "single"), {"requests_at_once": 200.0}, "200.0 requests at once, in the paper 30.4"),
        (("buddy", "single"), {"requests_at_once": 2.0}, "takes 3177 slots"),
        (("paged", "parallel"), {"saved": 0.2, "prompt_share": 0.37}, "whole blocks of prompts are 37%"),
        (("paged", "beam"), {"saved": 0.8}, "is only 12 tokens back; beams that part earlier share less"),
        (("paged", "beam"), {"saved": 0.1}, "12 tokens back; beams that part later share more"),
    ],
)
def test_a_difference_is_said_with_the_numbers_that_explain_it(where, change, words):
    def playing(run):
        played = as_in_the_papers(run)
        return replace(played, **change) if (run.allocator, run.kind) == where else played

    lines = differences(comparison(playing))
    assert lines and words in " ".join(lines)
    assert all(f"{where[0]}" in line or f"{where[1]}" in line for line in lines), "and nothing else is said"


def test_tables_json_and_picture_hold_every_run(tmp_path):
    result = comparison()
    console = Console(width=140, record=True, file=io.StringIO())
    print_comparison(result, console)
    text = console.export_text()
    for name in ALLOCATORS:
        assert name in text
    assert "20.4% · 7.0" in text and "44.3% · … · 66.3%" in text and "All within" in text
    data = json.loads(json.dumps(as_data(result)))
    assert "int8_per_token_head" in text and len(data["smaller"]) == 4
    assert "decode_weight_dtype" in text and "no room" in text and data["second_copy"] == []
    assert len(data["single"]) == 12 and data["single"][0]["played"]["shares"]["effective"] == 0.204
    save_picture(result, tmp_path / "memory.png")
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_a_real_play_of_the_papers_workload_comes_near_the_papers_figures():
    """Orca (Max): 7 requests at once and a fifth of the memory, with a tenth of the requests."""
    run = play(MemorySettings(30, 0, 16, papers.NUM_SLOTS), "single", "sharegpt", "contiguous", "single", 1)
    assert run.played.requests_at_once == pytest.approx(papers.REQUESTS_AT_ONCE["sharegpt"]["contiguous"])
    assert run.played.shares.effective == pytest.approx(papers.EFFECTIVE["contiguous"], abs=0.05)
    assert run.played.shares.external == pytest.approx(papers.EXTERNAL["contiguous"], abs=0.01)


def test_a_second_copy_of_the_weights_takes_its_room_or_has_none():
    """OPT-13B: half a byte for each of 12.6 billion weights in its layers is half of what the cache had."""
    settings = MemorySettings(100, 0, 16, papers.NUM_SLOTS)
    assert (
        copy_bytes("int8") == copy_bytes("fp8") == 2 * copy_bytes("int4") == pytest.approx(12.6e9, rel=0.01)
    )
    left = slots_beside(settings, "int4")
    assert left == papers.NUM_SLOTS - -(-copy_bytes("int4") // papers.KV_BYTES_PER_TOKEN)
    assert slots_beside(settings, "int8") < papers.MAX_MODEL_LEN, "no sequence fits beside it"
    plain, beside = (
        play(settings, "second_copy", "sharegpt", "paged", "single", 1, decode_weight_dtype=name)
        for name in (None, "int4")
    )
    assert beside.decode_weight_dtype == "int4"
    assert beside.played.requests_at_once == pytest.approx(
        plain.played.requests_at_once * left / papers.NUM_SLOTS, rel=0.15
    )


def test_twice_the_requests_fit_into_the_same_bytes_of_half_the_size():
    """d + 4 bytes and d bytes where 16 bits take 2d."""
    settings = MemorySettings(50, 0, 16, papers.NUM_SLOTS // 3)
    plain, small, least = (
        play(settings, "smaller", "sharegpt", "paged", "single", 1, kind).played.requests_at_once
        for kind in ("auto", *SMALLER)
    )
    assert [slots_of(settings, kind) for kind in SMALLER] == [
        settings.num_slots * 256 // 132,
        settings.num_slots * 2,
    ]
    assert small == pytest.approx(plain * 256 / 132, rel=0.1) and least == pytest.approx(2 * plain, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"requests": 3}, "requests must be an integer of at least 10"),
        ({"block_size": 0}, "block_size must be an integer of at least 1"),
        (
            {"num_slots": 4000},
            r"num_slots \(--slots\) must be at least 12,288: a memory that reserves .* got 4,000",
        ),
        ({"seed": "x"}, "seed must be an integer"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_played(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare_memory(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slots", "100"], "num_slots (--slots) must be at least 12,288"),
        (["--plot", "memory.txt"], "plot must be a file that ends in .png, .svg, .pdf, got 'memory.txt'"),
        (["--plot", "no/such/folder/memory.png"], "plot must be in a folder that exists"),
        (["--json", "no/such/folder/memory.json"], "json must be a file in a folder that exists"),
    ],
)
def test_the_command_says_what_is_wrong(options, message):
    result = CliRunner().invoke(app, ["memory", *options])
    assert isinstance(result.exception, ValueError) and message in str(result.exception)


def test_an_unknown_allocator_is_refused_by_name():
    with pytest.raises(ValueError, match=r"allocator must be one of 'contiguous', 'buddy', .*got 'slab'"):
        make_memory("slab", config_of(64))
