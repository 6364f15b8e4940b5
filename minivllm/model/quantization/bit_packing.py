"""Small codes in 32-bit words, without a gap: code i lies in bits i·b … i·b + b − 1 of a row's bit stream.

    4 bits    word 0: c7 c6 c5 c4 c3 c2 c1 c0                  8 codes a word, the first in the lowest bits
    3 bits    word 0: …c10 c9 … c1 c0    word 1: … c12 c11 c10…    32 codes in 3 words; some lie across two

All formats of integer weights use this stream, along inputs or along outputs; so does our own memory
(`integer_matrix.py`). For 2, 4 and 8 bits no code lies across two words.

Read next: `gptq.py`, `awq.py`, `pack_quantized.py`, which say what is in the streams of a file.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor


def num_words(count: int, bits: int) -> int:
    """Words that `count` codes of so many bits take."""
    return -(-count * bits // 32)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """`codes` [..., n], integers of `bits` (1 to 8) bits, as words int32 [..., ⌈n · bits / 32⌉].

    Unused bits at the end of a row are 0. What a code has above its bits is dropped.
    """
    count = codes.shape[-1]
    per_period, words_per_period = _period(bits)
    periods = -(-count // per_period)
    padded = torch.zeros(*codes.shape[:-1], periods * per_period, dtype=torch.int32, device=codes.device)
    padded[..., :count] = codes.to(torch.int32) & ((1 << bits) - 1)
    padded = padded.reshape(*codes.shape[:-1], periods, per_period)
    words = padded.new_zeros(*codes.shape[:-1], periods, words_per_period)
    for number in range(per_period):
        word, shift = divmod(number * bits, 32)
        words[..., word] |= padded[..., number] << shift
        if shift + bits > 32:
            words[..., word + 1] |= padded[..., number] >> (32 - shift)
    return words.flatten(-2)[..., : num_words(count, bits)].contiguous()


def unpack_bits(words: Tensor, bits: int, count: int) -> Tensor:
    """The inverse: the first `count` codes of each row of `words` int32 [..., w], as uint8 [..., count]."""
    if 8 % bits == 0:  # no code lies across two bytes, and a word's bytes begin with the lowest
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=words.device)
        halves = words.contiguous().view(torch.uint8)[..., None] >> shifts
        return (halves & ((1 << bits) - 1)).flatten(-2)[..., :count]
    per_period, words_per_period = _period(bits)
    periods = -(-count // per_period)
    if lack := periods * words_per_period - words.shape[-1]:
        words = torch.nn.functional.pad(words, (0, lack))  # cuts, if there are more than are asked for
    words = words.reshape(*words.shape[:-1], periods, words_per_period)
    codes = torch.empty(*words.shape[:-1], per_period, dtype=torch.uint8, device=words.device)
    mask = (1 << bits) - 1
    for number in range(per_period):
        word, shift = divmod(number * bits, 32)
        code = words[..., word] >> shift  # the sign comes in from above, and is masked away
        if (low := 32 - shift) < bits:
            code = (code & ((1 << low) - 1)) | (words[..., word + 1] << low)
        codes[..., number] = code & mask
    return codes.flatten(-2)[..., :count]


def _period(bits: int) -> tuple[int, int]:
    """After how many codes, and words, the stream begins a word anew."""
    common = gcd(32, bits)
    return 32 // common, bits // common
