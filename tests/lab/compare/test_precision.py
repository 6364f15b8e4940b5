"""The comparison of precisions: its numbers are what they are called, its verdicts follow from them."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.lab.compare import precision_claims, precision_report
from minivllm.lab.compare.precision import (
    PrecisionComparison,
    PrecisionRow,
    PrecisionSettings,
    compare_precision,
)
from minivllm.lab.compare.precision_clipping import ROUNDING, SPOILED, WAYS, compare_clipping
from minivllm.lab.compare.precision_picture import save_picture
from minivllm.lab.compare.precision_quality import Quality, Scores, compare, most_texts, score
from minivllm.lab.compare.precision_speed import Speed, matrix_bytes
from minivllm.lab.compare.precision_trace import record
from minivllm.lab.compare.precision_variants import VARIANTS, choose_variants
from minivllm.model.quantization.texts import HELD_OUT, read_samples
from minivllm.model.tiny import MODEL_PATH
from minivllm.model.tokenizer import Tokenizer
from minivllm.trace.precision_events import read_precision

LITTLE = dict(speed_model="none", backend="torch", num_texts=4, num_samples=4, threads=1, with_clipping=False)


def scores(seed, num_tokens, vocab_size=7):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_tokens, vocab_size, generator=random) * 3
    following = torch.randint(0, vocab_size, (num_tokens,), generator=random)
    following[-1] = -1
    return Scores(torch.log_softmax(logits, -1), following, torch.arange(num_tokens) < num_tokens // 2)


@given(st.integers(0, 999), st.integers(0, 999), st.integers(2, 30))
def test_kl_is_nothing_between_equals_and_positive_otherwise_and_shares_are_shares(one, other, num_tokens):
    p, q = scores(one, num_tokens), scores(other, num_tokens)
    same = compare(p, p)
    assert same.kl == same.kl_prompts == same.kl_decoding == 0 and same.kept == 1
    found = compare(q, p)
    assert found.kl >= -1e-6 and 0 <= found.kept <= 1
    first = num_tokens // 2
    whole = (found.kl_prompts * first + found.kl_decoding * (num_tokens - first)) / num_tokens
    assert found.kl == pytest.approx(whole, rel=1e-4, abs=1e-6)
    chosen = [float(q.log_probs[i, q.following[i]]) for i in range(num_tokens - 1)]
    assert found.perplexity == pytest.approx(math.exp(-sum(chosen) / len(chosen)), rel=1e-4)


def test_texts_are_read_as_prompts_and_then_as_what_was_generated():
    """Whatever the phases, the model's own weights give what one pass over a whole text gives."""
    encode = Tokenizer.from_folder(MODEL_PATH).encode
    texts = most_texts(read_samples(HELD_OUT, encode, num_samples=3, seq_len=99), 4096)
    executor = TorchExecutor.from_folder(MODEL_PATH, dtype="float32", num_blocks=200, backend=TorchAttention)
    found = score(executor, texts)
    assert len(found.log_probs) == sum(map(len, texts))
    assert found.following.tolist() == [token for text in texts for token in (*text[1:], -1)]
    alone = torch.cat([score(executor, [text]).log_probs for text in texts])
    assert torch.allclose(found.log_probs, alone, atol=1e-4)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    settings = PrecisionSettings(MODEL_PATH, variants="bfloat16,INT8,INT4 RTN,INT8 decode", **LITTLE)
    return settings, compare_precision(settings)


def test_what_is_measured_follows_from_the_formats(compared):
    _, result = compared
    row = {row.variant.name: row for row in result.rows}
    assert list(row) == ["float32", "bfloat16", "INT8", "INT4 RTN", "INT8 decode"]
    assert row["float32"].quality.kl == 0 and row["float32"].quality.kept == 1
    assert row["bfloat16"].weight_bytes * 2 == row["float32"].weight_bytes
    assert row["INT4 RTN"].matrix_bytes < row["INT8"].matrix_bytes < row["bfloat16"].matrix_bytes
    assert row["INT8"].quality.kl < row["INT4 RTN"].quality.kl
    phased = row["INT8 decode"]
    assert phased.quality.kl_prompts == 0 < phased.quality.kl_decoding, "prompts are exact"
    assert phased.matrix_bytes == row["float32"].matrix_bytes + row["INT8"].matrix_bytes, "both copies"


def test_bytes_are_what_the_matrices_report():
    for more in ({}, {"quantization": "int8"}, {"decode_weight_dtype": "int4"}):
        decoder = TorchExecutor.from_folder(MODEL_PATH, num_blocks=1, backend=TorchAttention, **more).decoder
        rest = decoder.num_bytes - matrix_bytes(decoder)
        vectors = decoder.embedding.numel() + decoder.norm.weight.numel()
        norms = sum(2 * layer.input_norm.weight.numel() for layer in decoder.layers)
        assert rest == (vectors + norms) * decoder.dtype.itemsize


def test_it_is_printed_written_drawn_and_recorded(compared, tmp_path):
    settings, result = compared
    console = Console(width=100, record=True)
    precision_report.print_comparison(result, console)
    said = console.export_text()
    assert "INT4 RTN" in said and "75 % less memory" in said and "not measured" in said
    data = json.loads(json.dumps(precision_report.as_data(result)))
    assert [row["name"] for row in data["rows"]] == [row.variant.name for row in result.rows]
    save_picture(result, tmp_path / "p.png")
    save_picture(with_speed(result), tmp_path / "q.svg")
    assert (tmp_path / "p.png").stat().st_size > 10_000
    record(tmp_path / "p.jsonl", result, settings)
    trace = read_precision(tmp_path / "p.jsonl")
    assert [row.name for row in trace.variants] == [row.variant.name for row in result.rows]
    assert [len(found.grids) for found in trace.matrices] == [16, 12], "bits × the groups that divide"


def with_speed(result, one_stream=1.0, int4=4.0):
    """The same with speeds: all alike, INT4's `int4` times as fast."""
    rows = []
    for row in result.rows:
        fast = int4 if row.variant.name == "INT4 RTN" else one_stream
        speed = Speed(100 * fast, 10 * fast, 50 * fast, row.weight_bytes, row.matrix_bytes, 64)
        rows.append(replace(row, speed=speed))
    return replace(result, rows=rows, speed_model="small", base_dtype="float32")


@pytest.mark.parametrize(("int4", "verdict"), [(4.0, "holds"), (1.2, "wrong")])
def test_verdicts_follow_from_the_numbers(compared, int4, verdict):
    claims = {
        claim.said: claim for claim in precision_claims.judge_claims(with_speed(compared[1], int4=int4))
    }
    assert claims["INT4 is 3 to 5 times as fast as 16 bits"].verdict == verdict
    saved = claims["INT4 takes 75 % less memory than 16 bits"]
    assert saved.verdict == "partly" and "in the layers' matrices" in saved.measured
    assert claims["INT8: perplexity +4.8 %"].verdict == "wrong"
    console = Console(width=100, record=True)
    precision_report.print_comparison(with_speed(compared[1], int4=int4), console)
    assert f"({int4:.1f}×)" in console.export_text()


def test_a_loss_as_claimed_would_be_believed(compared):
    rows = [
        replace(row, quality=replace(row.quality, perplexity=1.048 * compared[1].rows[0].quality.perplexity))
        if row.variant.name == "INT8"
        else row
        for row in compared[1].rows
    ]
    claims = precision_claims.judge_claims(replace(compared[1], rows=rows))
    assert next(claim for claim in claims if "+4.8" in claim.said).verdict == "holds"


def test_what_is_not_there_yet_is_left_out_by_name():
    variant = replace(VARIANTS[-1], settings={"no_such_setting": 1})
    assert variant.lacking == "no_such_setting"
    quality = Quality(1, 1.0, 0.0, 0.0, 0.0, 1.0)
    rows = [PrecisionRow(VARIANTS[0], 8, 4, 2, quality), PrecisionRow(variant, skipped="no such setting")]
    result = PrecisionComparison("m", "none", "t", 1, 1, 1, "float32", rows, [])
    console = Console(width=100, record=True)
    precision_report.print_comparison(result, console)
    assert f"{variant.name} is left out: no such setting" in console.export_text()
    assert result.row(variant.name) is None


def test_clipping_loses_to_nothing_and_the_planted_mistake_loses_to_rounding(monkeypatch):
    monkeypatch.setattr(
        "minivllm.lab.compare.precision_clipping.WAYS", [way for way in WAYS if way[0] in (ROUNDING, SPOILED)]
    )
    encode = Tokenizer.from_folder(MODEL_PATH).encode
    texts = most_texts(read_samples(HELD_OUT, encode, num_samples=4, seq_len=99), 4096)
    executor = TorchExecutor.from_folder(MODEL_PATH, dtype="float32", num_blocks=200, backend=TorchAttention)
    rounding, spoiled = compare_clipping(score(executor, texts), MODEL_PATH, texts, num_samples=4)
    assert spoiled.kl > 1.3 * rounding.kl > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precisions", "INT5"], "precisions must be some of float32, bfloat16"),
        (["--precisions", ",,"], "got ',,'"),
        (["--threads", "100000000"], "threads must be an integer of at least 1 and at most 1024"),
        (["--speed-model", "huge"], "speed_model must be"),
        (["--texts", "0"], "texts must be"),
        (["--texts", "129"], "texts must be at most the 128 that"),
        (["--samples", "1"], "samples must be"),
        (["--text", "nowhere.txt"], "nowhere.txt"),
        (["--plot", "p.doc"], "plot must be a file that ends in"),
        (["--model", "nowhere"], "nowhere"),
        (["--json", "one", "--trace", "./one"], "trace must be another file than json, got 'one' for both"),
        (["--json", "p.png", "--plot", "p.png"], "plot must be another file than json"),
    ],
)
def test_a_wrong_wish_is_told_in_a_sentence(here, arguments, message):
    code, _, errors = here("compare", "precision", *arguments)
    assert code and message in errors and "Traceback" not in errors


def test_a_text_that_cannot_be_read_is_called_as_the_user_called_it(here, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    text = ("--text", str(tmp_path / "empty.txt"))
    _, _, errors = here("compare", "precision", "--speed-model", "none", "--precisions", "float32", *text)
    assert errors.startswith("error: text: ") and "has no text of two tokens or more" in errors


def test_quality_is_not_judged_on_what_was_calibrated_with(tmp_path):
    from minivllm.model.quantization.texts import BUILTIN

    settings = PrecisionSettings(MODEL_PATH, text=BUILTIN, **LITTLE)
    with pytest.raises(ValueError, match="built-in calibration uses"):
        compare_precision(settings)


def test_the_reference_is_always_there():
    assert [variant.name for variant in choose_variants("int8")] == ["float32", "INT8"]
    assert choose_variants("") == list(VARIANTS)
