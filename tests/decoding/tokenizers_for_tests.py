"""Two tiny tokenizers, trained in a moment: byte-level BPE (as GPT-2, Qwen) and byte fallback (as Llama)."""

from functools import cache

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "Once upon a time there was a cache.",
    "the quick brown fox",
    "键值缓存把键和值保存下来。",
    "a b  c\n\n\td",
] * 4


@cache
def byte_level() -> tokenizers.Tokenizer:
    """Every text is a sequence of bytes, and tokens are runs of bytes: a token may end inside a character."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<eos>"],
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


@cache
def byte_fallback() -> tokenizers.Tokenizer:
    """A space is part of the word after it, as ▁; what the vocabulary lacks is spelled in bytes."""
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<s>", "</s>"],
        show_progress=False,
        limit_alphabet=40,
    )
    backend.train_from_iterator(TEXTS, trainer)
    # The trainer knows no bytes, so they join the vocabulary afterwards.
    trained = backend.get_vocab()
    merges = _merges(backend)
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *spelled])}
    for token in sorted(trained, key=trained.get):
        vocabulary.setdefault(token, len(vocabulary))
    backend.model = models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def _merges(backend: tokenizers.Tokenizer) -> list[tuple[str, str]]:
    import json

    return [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
