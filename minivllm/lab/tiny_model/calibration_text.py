"""Writes the texts that minivllm calibrates quantisation with, and those that it judges the result by.

    python -m minivllm.lab.tiny_model.calibration_text

Both come from the corpus of the shipped model: calibration from the documents that it was trained on, as a
large model is calibrated on text like what it has read; the judgement from those that were held out. They lie
in a folder of the model package, which knows no corpus.

Read next: `minivllm/model/quantization/texts.py`, which reads them.
"""

from __future__ import annotations

import json
import random

from minivllm.lab.tiny_model.corpus import Document, build_corpus
from minivllm.model.quantization.texts import BUILTIN, HELD_OUT

SEED = 0
NUM_CALIBRATION, NUM_HELD_OUT = 768, 128


def draw_texts() -> tuple[list[str], list[str]]:
    """Calibration and held-out texts, drawn evenly over languages and kinds of documents."""
    corpus, rng = build_corpus(SEED), random.Random(SEED)
    return _draw(corpus.train, NUM_CALIBRATION, rng), _draw(corpus.held_out, NUM_HELD_OUT, rng)


def as_lines(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


def _draw(documents: list[Document], count: int, rng: random.Random) -> list[str]:
    by_kind: dict[tuple[str, str], list[str]] = {}
    for document in documents:
        by_kind.setdefault((document.language, document.kind), []).append(document.text)
    each = count // len(by_kind)
    texts = [
        text for kind in sorted(by_kind) for text in rng.sample(by_kind[kind], min(each, len(by_kind[kind])))
    ]
    rng.shuffle(texts)
    return texts


def main() -> None:
    calibration, held_out = draw_texts()
    BUILTIN.parent.mkdir(exist_ok=True)
    BUILTIN.write_text(as_lines(calibration), encoding="utf-8")
    HELD_OUT.write_text(as_lines(held_out), encoding="utf-8")


if __name__ == "__main__":
    main()
