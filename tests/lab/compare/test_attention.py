"""Attention counted: what the kernels do follows the paper's formulas."""

import json

import pytest
from rich.console import Console

from kernels_numba.cuda.tiles import Tiles
from minivllm.lab.compare.attention import Case, Counted, cases, compare_attention, count, fit, naive_formula
from minivllm.lab.compare.attention_picture import as_data, print_counts, save_picture, sentences
from tests import profiles


@pytest.fixture(scope="module")
def results():
    """By day, heads of 64 columns are counted at half the length: their cases take as long as all others."""
    with pytest.MonkeyPatch.context() as patch:
        if profiles.is_day():
            shorter = [case._replace(tokens=32) if case.head_dim == 64 else case for case in cases(64)]
            patch.setattr("minivllm.lab.compare.attention.cases", lambda longest: shorter)
        return compare_attention(64)


def test_naive_attention_moves_every_array_once_for_each_kernel(results):
    for result in results:
        if result.case.kernel == "naive":
            n, d = result.case.tokens, result.case.head_dim
            assert result.least_bytes == naive_formula(n, d)
            # Queries and keys for each score, weights and values for each number of the output; and 6 more
            # for each score: written, read three times and written twice by the softmax.
            assert result.asked_bytes == pytest.approx(4 * (4 * n * n * d + n * n * 6 + n * d), rel=0.1)


def test_flash_attention_moves_what_the_paper_says(results):
    for kernel in ("flash-attention-1", "flash-attention-2"):
        found = fit(results, kernel)
        assert found.tokens == pytest.approx(2, abs=0.35)
        assert found.head_dim == pytest.approx(2, abs=0.35)
        assert found.tile_bytes == pytest.approx(-1, abs=0.35)


def test_all_compute_the_same(results):
    for result in results:
        area = result.case.tokens**2
        assert 4 <= result.flops / (area * result.case.head_dim) < 4.7
        assert area <= result.exponentials


def test_what_flash_attention_2_reads_is_keys_and_values_for_each_tile_of_queries():
    case = Case("flash-attention-2", 48, 32, Tiles(2, 2))
    tiles = -(-48 // 4)
    assert count(case).asked_bytes == 4 * (tiles * 2 * 48 * 32 + 2 * 48 * 32)


def test_a_fit_finds_the_exponents_of_a_power_law():
    made = [
        Counted(Case("x", n, d, None), n**2 * d**3 * 64 // m, 0, m, 0, 0)
        for n, d, m in ((8, 2, 4), (16, 2, 4), (16, 4, 4), (16, 4, 16), (32, 8, 8))
    ]
    assert fit(made, "x") == pytest.approx((2, 3, -1))


def test_tables_pictures_and_data_say_the_same(results, tmp_path):
    console = Console(record=True, width=160)
    print_counts(results, console)
    text = console.export_text()
    for sentence in sentences(results):
        assert sentence.split(":")[0] in text
    assert "exactly, at every size" in " ".join(text.split())
    data = json.loads(json.dumps(as_data(results)))
    assert len(data["cases"]) == len(results)
    save_picture(results, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5_000


@pytest.mark.parametrize("tokens", [0, 63, 100, 2048])
def test_lengths_that_cannot_be_are_refused(tokens):
    with pytest.raises(ValueError, match="tokens must be a multiple of 64"):
        compare_attention(tokens)
