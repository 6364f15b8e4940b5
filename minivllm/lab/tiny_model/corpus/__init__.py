"""The text that the shipped model learns from, all of it generated, none of it downloaded.

    notes.py         how facts are written down        en_*.py, zh_*.py   the facts
    phrasings.py     how questions are asked           stories_*.py       two story grammars
    answers.py       facts -> questions and answers    stories.py         grammar -> stories
    documents.py     everything -> documents, some of them held out

`python -m minivllm.lab.tiny_model.corpus` prints a few documents of each kind. Start with `documents.py`.
"""

from minivllm.lab.tiny_model.corpus.documents import Corpus, Document, build_corpus

__all__ = ["Corpus", "Document", "build_corpus"]
