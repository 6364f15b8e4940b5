"""Prints how large the corpus is and a few documents of each kind: the quickest way to judge a change."""

import sys
from collections import Counter

from minivllm.lab.tiny_model.corpus import build_corpus


def main() -> None:
    corpus = build_corpus(seed=int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    print(f"{len(corpus.train)} documents to train on, {len(corpus.held_out)} held out\n")
    shown: Counter[tuple[str, str]] = Counter()
    for document in corpus.train:
        shown[document.language, document.kind] += 1
        if shown[document.language, document.kind] <= 3:
            print(f"--- {document.language} {document.kind}\n{document.text}\n")


if __name__ == "__main__":
    main()
