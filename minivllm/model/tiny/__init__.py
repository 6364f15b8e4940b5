"""The model that ships with minivllm: small enough for a repository, real enough to serve.

Fewer than three million parameters in the shape of Llama (grouped-query attention, rotary embedding, tied
embeddings), trained from nothing on generated text: questions and answers about LLM inference and short
stories, in English and in Chinese. Every lesson and every test that wants a real model, without a network,
loads this one:

    from minivllm.model.tiny import MODEL_PATH

Read next, in `minivllm/lab/tiny_model`: `corpus/` for what it reads, `tokenizer.py` for how text becomes
tokens, `train.py` for how it learns.
"""

from pathlib import Path

MODEL_PATH: Path = Path(__file__).parent / "minivllm-tiny"
"""A folder that `transformers` and minivllm can both load."""

DRAFT_MODEL_PATH: Path = Path(__file__).parent / "minivllm-tiny-draft"
"""Its small sibling with the same vocabulary, which guesses what it will say: a draft model. It has no
tokenizer of its own."""
