"""Trains the small sibling of the shipped model, which guesses what that one will say.

    python -m minivllm.lab.tiny_model.train_draft [--out DIR] [--steps N] [--minutes M] [--seed S] [--threads
    2]

Same corpus, same tokenizer, same training (`train.py`), a quarter of the parameters: two layers, because one
that looks up what followed the same word before needs two, and half the width, because most of a draft's
time goes to the product with the vocabulary. A draft model need not be right, only often and quickly.

Read next: `minivllm/executor/draft_model.py`, which uses it.
"""

import time
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from minivllm.lab.tiny_model.checkpoint import save_model
from minivllm.lab.tiny_model.corpus import build_corpus
from minivllm.lab.tiny_model.train import encode_documents, parse_arguments, tiny_config, train
from minivllm.model.tiny import DRAFT_MODEL_PATH, MODEL_PATH

STEPS = 4000


def main() -> None:
    args = parse_arguments(out=DRAFT_MODEL_PATH, steps=STEPS)
    started = time.monotonic()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(MODEL_PATH / "tokenizer.json"))
    documents = encode_documents(tokenizer, build_corpus(args.seed).train)
    make: Any = LlamaForCausalLM._from_config
    model: LlamaForCausalLM = make(draft_config(tokenizer), attn_implementation="eager")
    steps, tokens = train(model, documents, args, started)
    save_model(model, args.out)
    minutes = (time.monotonic() - started) / 60
    print(f"{steps:,} steps, {tokens:,} tokens, {minutes:.0f} minutes")


def draft_config(tokenizer: Tokenizer) -> LlamaConfig:
    """0.6 million parameters, of which the tied embeddings are 0.39 million."""
    config = tiny_config(tokenizer)
    config.hidden_size, config.intermediate_size = 96, 256
    config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads = 2, 3, 1
    config.layer_types = None
    return config


if __name__ == "__main__":
    main()
