"""Trains the tokenizer of the shipped model: byte pair encoding with byte fallback.

Byte pair encoding (Sennrich et al., 2016) starts from characters and joins the most frequent neighbours
into longer tokens. A character it never met is written as its UTF-8 bytes, `<0x00>` to `<0xFF>`, as in
SentencePiece and Llama-2. Nothing is normalised and a space is a character like any other, so
`decode(encode(text)) == text` for every text that does not spell out a special token.

    "a KV cache 🦙"  ->  <s> a | KV| cache| |<0xF0>|<0x9F>|<0xA6>|<0x99>

(Llama-2 writes `▁` for a space and puts one in front of the text; a text that contains `▁`, or a piece
decoded by itself, then does not come back as it was. We keep its byte fallback and leave that out.)

Token ids: 0-2 `<unk> <s> </s>`, 3-5 the three roles, 6-261 the bytes, then characters and merges.

Read next: `corpus/words_zh.py`, why Chinese merges stay inside words.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from minivllm.lab.tiny_model.corpus.words_zh import WORDS

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
SPECIAL = [UNK, BOS, EOS, "<|user|>", "<|assistant|>", "<|system|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
VOCAB_SIZE = 4096
CONTEXT_TOKENS = 2048

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Learn merges from `texts` and wrap them with the special tokens and the bytes."""
    vocab, merges = learn_merges(texts, vocab_size - len(SPECIAL) - len(BYTES))
    pieces = [*SPECIAL, *BYTES, *sorted(vocab, key=vocab.__getitem__)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=merges,
            unk_token=UNK,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B:1",
        special_tokens=[(BOS, pieces.index(BOS))],
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def learn_merges(texts: Iterable[str], vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Characters and merges. Learning sees the text cut into words, so that no token spans two."""
    longest_first = sorted(WORDS.split(), key=len, reverse=True)
    chinese = "|".join(longest_first)
    word = Regex(rf"{chinese}| ?[A-Za-z]+|[0-9]|[^A-Za-z0-9]")
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Split(word, behavior="isolated")
    printable = [chr(code) for code in range(32, 127)]
    learner.train_from_iterator(
        map(keep_common, texts),
        trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=printable, show_progress=False),
    )
    learned = json.loads(learner.to_str())["model"]
    return learned["vocab"], [tuple(pair) for pair in learned["merges"]]


def keep_common(text: str) -> str:
    """Drop what must not enter the alphabet: the special tokens, and emoji, which are left to the bytes."""
    for token in SPECIAL:
        text = text.replace(token, "\n")
    return "".join(char for char in text if ord(char) <= 0xFFFF)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the three files that Hugging Face readers expect."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT_TOKENS,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK})


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
