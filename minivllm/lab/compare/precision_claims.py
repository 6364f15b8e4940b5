"""What the articles on vLLM say of quantisation, and what was measured here.

A claim is taken as it stands there, and held against the rows of the comparison: what it says of other cards
and other models is not refuted by ours; whether it follows from how the formats work can be seen on any.

Read next: `precision_report.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from minivllm.lab.compare.precision import PrecisionComparison, PrecisionRow
from minivllm.lab.compare.precision_variants import REFERENCE, RTN, SIXTEEN_BITS

HOLDS, PARTLY, WRONG, UNKNOWN = "holds", "partly", "wrong", "not measured"
SAVED, INT8_BYTES, FASTER, PERPLEXITY, PHASES = 0.75, 4 / 16, (3.0, 5.0), 0.048, "INT8 decode"


@dataclass(frozen=True)
class Claim:
    """What is said, what was measured, and whether that bears it out, with the reason."""

    said: str
    measured: str
    verdict: str
    reason: str


def judge_claims(result: PrecisionComparison) -> list[Claim]:
    """The articles' claims, each with a verdict."""
    return [_saved(result), _int8_bytes(result), _faster(result), _perplexity(result), _phases(result)]


def _shares(result: PrecisionComparison, name: str) -> tuple[float, float] | None:
    """Of 16 bits: bytes of the layers' matrices, and of all weights; of the larger model if there is one.

    What is not rounded counts as 16 bits, whatever this machine computes in.
    """
    ours, whole = result.row(name), result.row(REFERENCE)
    if ours is None or whole is None:
        return None
    (m, rest, size), (m32, rest32, _) = (_bytes(row, result.base_dtype) for row in (ours, whole))
    return m / (m32 / 2), (m + rest * 2 / size) / ((m32 + rest32) / 2)


def _bytes(row: PrecisionRow, base: str) -> tuple[int, int, int]:
    """Of the layers' matrices, of all else, and of each number of the latter."""
    if row.speed is not None:
        size = 2 if base == SIXTEEN_BITS and row.variant.what else 4
        return row.speed.matrix_bytes, row.speed.weight_bytes - row.speed.matrix_bytes, size
    matrices = row.matrix_bytes or 0
    return matrices, (row.weight_bytes or 0) - matrices, 4


def _saved(result: PrecisionComparison) -> Claim:
    said = "INT4 takes 75 % less memory than 16 bits"
    shares = _shares(result, RTN)
    if shares is None:
        return _not_measured(said, REFERENCE, RTN)
    matrices, whole = (1 - share for share in shares)
    verdict = HOLDS if whole >= SAVED - 0.005 else PARTLY if matrices >= SAVED - 0.1 else WRONG
    reason = "scales and zeros come on top of 4 bits, and embedding and output matrix keep their type"
    return Claim(said, f"{matrices:.0%} less in the layers' matrices, {whole:.0%} in all", verdict, reason)


def _int8_bytes(result: PrecisionComparison) -> Claim:
    said = "INT8: 4 GB of 16 GB (a table; the list above it says 8)"
    shares = _shares(result, "INT8")
    if shares is None:
        return _not_measured(said, REFERENCE, "INT8")
    verdict = HOLDS if shares[1] <= INT8_BYTES + 0.02 else WRONG
    reason = "8 bits are half of 16: the table has the bytes of 4 bits"
    return Claim(said, f"{shares[0]:.0%} of the matrices' bytes, {shares[1]:.0%} of all", verdict, reason)


def _faster(result: PrecisionComparison) -> Claim:
    said = "INT4 is 3 to 5 times as fast as 16 bits"
    ours, base = result.row(RTN), result.row(result.base_dtype)
    if ours is None or base is None or ours.speed is None or base.speed is None:
        return _not_measured(said, result.base_dtype, RTN, "the speed")
    ratios = [
        mine / other
        for mine, other in (
            (ours.speed.prompt, base.speed.prompt),
            (ours.speed.one_stream, base.speed.one_stream),
            (ours.speed.batch, base.speed.batch),
        )
    ]
    prompt, one, batch = ratios
    low = FASTER[0]
    verdict = HOLDS if min(ratios) >= low else PARTLY if max(ratios) >= low else WRONG
    reason = "fewer bytes help where reading weights is what takes the time: one stream, not prompts"
    measured = f"to {result.base_dtype}: prompt {prompt:.1f}×, one stream {one:.1f}×, batch {batch:.1f}×"
    return Claim(said, measured, verdict, reason)


def _perplexity(result: PrecisionComparison) -> Claim:
    said = "INT8: perplexity +4.8 %"
    eight, four, base = (result.row(name) for name in ("INT8", RTN, REFERENCE))
    if eight is None or base is None or eight.quality is None or base.quality is None:
        return _not_measured(said, REFERENCE, "INT8")
    change = eight.quality.perplexity / base.quality.perplexity - 1
    measured = f"INT8 {change:+.2%}"
    if four is not None and four.quality is not None:
        measured += f", INT4 by rounding {four.quality.perplexity / base.quality.perplexity - 1:+.2%}"
    verdict = HOLDS if abs(change - PERPLEXITY) < PERPLEXITY / 4 else WRONG
    reason = "one scale for each row of 8 bits loses next to nothing; 4.8 % is what few bits lose"
    return Claim(said, measured, verdict, reason)


def _phases(result: PrecisionComparison) -> Claim:
    said = "vLLM reads prompts in FP16 and decodes in INT8"
    ours, base = result.row(PHASES), result.row(result.base_dtype)
    if ours is None or base is None or ours.speed is None or base.speed is None:
        return _not_measured(said, result.base_dtype, PHASES, "the speed")
    speed, other = ours.speed, base.speed
    measured = (
        f"here, to {result.base_dtype}: prompt {speed.prompt / other.prompt:.1f}×, one stream "
        f"{speed.one_stream / other.one_stream:.1f}×, weights {speed.weight_bytes / other.weight_bytes:.1f}×"
    )
    return Claim(said, measured, WRONG, "vLLM has no such setting; decode_weight_dtype is ours")


def _not_measured(said: str, *needed: str) -> Claim:
    return Claim(said, "–", UNKNOWN, f"it takes {', '.join(needed)}")
