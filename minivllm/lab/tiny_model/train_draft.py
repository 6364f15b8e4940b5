"""Trains the small sibling of the shipped model, which guesses what that one will say.

    python -m minivllm.lab.tiny_model.train_draft [--out DIR] [--steps N] [--minutes M] [--seed S]

Same corpus, same tokenizer, same training (`train.py`), a quarter of the parameters: two layers, because one
that looks up what followed the same word before needs two, and half the width, because most of a draft's time
goes to the product with the vocabulary. A draft model need not be right, only often and quickly.

Read next: `minivllm/executor/draft_model.py`, which uses it.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from minivllm.lab.tiny_model.checkpoint import save_model
from minivllm.lab.tiny_model.corpus import Document, build_corpus
from minivllm.lab.tiny_model.train import encode_documents, parse_arguments, tiny_config, train
from minivllm.model.tiny import DRAFT_MODEL_PATH, MODEL_PATH

STEPS = 4000


class Acceptance(NamedTuple):
    """How often a draft is right, token by token, on texts that neither model was trained on."""

    greedy: float
    """The likeliest token of both models is the same."""
    sampled: float
    """The chance that a draft is accepted at temperature 1: the sum of min(p, q)."""
    num_tokens: int


def main() -> None:
    args = parse_arguments(out=DRAFT_MODEL_PATH, steps=STEPS)
    started = time.monotonic()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(MODEL_PATH / "tokenizer.json"))
    corpus = build_corpus(args.seed)
    documents = encode_documents(tokenizer, corpus.train)
    make: Any = LlamaForCausalLM._from_config
    model: LlamaForCausalLM = make(draft_config(tokenizer), attn_implementation="eager")
    steps, tokens = train(model, documents, args, started)
    save_model(model, args.out)
    minutes = (time.monotonic() - started) / 60
    acceptance = measure_acceptance(args.out, tokenizer, corpus.held_out)
    print(f"{steps:,} steps, {minutes:.0f} minutes; {acceptance}")
    command = f"python -m minivllm.lab.tiny_model.train_draft --seed {args.seed} --steps {args.steps}"
    if args.minutes is not None:
        command += f" --minutes {args.minutes:g}"
    write_card(args.out, acceptance, steps=steps, tokens=tokens, minutes=minutes, command=command)


def draft_config(tokenizer: Tokenizer) -> LlamaConfig:
    """0.6 million parameters, of which the tied embeddings are 0.39 million."""
    config = tiny_config(tokenizer)
    config.hidden_size, config.intermediate_size = 96, 256
    config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads = 2, 3, 1
    config.layer_types = None
    return config


@torch.inference_mode()
def measure_acceptance(folder: Path, tokenizer: Tokenizer, held_out: list[Document]) -> Acceptance:
    """Of the saved weights, as a draft model for the shipped model."""
    loaded: list[Any] = [AutoModelForCausalLM.from_pretrained(path) for path in (MODEL_PATH, folder)]
    same = overlap = total = 0.0
    for ids in encode_documents(tokenizer, held_out):
        p, q = (model.eval()(input_ids=torch.tensor([ids])).logits[0, :-1].softmax(-1) for model in loaded)
        same += float((p.argmax(-1) == q.argmax(-1)).sum())
        overlap += float(torch.minimum(p, q).sum())
        total += len(p)
    return Acceptance(same / total, overlap / total, int(total))


def write_card(
    folder: Path, acceptance: Acceptance, *, steps: int, tokens: int, minutes: float, command: str
) -> None:
    card = MODEL_CARD.format(
        greedy=acceptance.greedy,
        sampled=acceptance.sampled,
        num_tokens=acceptance.num_tokens,
        steps=steps,
        tokens=tokens,
        minutes=minutes,
        command=command,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


MODEL_CARD = """\
---
license: apache-2.0
language: [en, zh]
library_name: transformers
pipeline_tag: text-generation
---

# minivllm-tiny-draft

The draft model of minivllm-tiny: it has the same vocabulary and a quarter of the parameters, and guesses
what that one will say. It has no tokenizer of its own.

    from minivllm import LLM
    from minivllm.model.tiny import DRAFT_MODEL_PATH, MODEL_PATH

    LLM(MODEL_PATH, speculative_config={{"model": DRAFT_MODEL_PATH, "num_speculative_tokens": 4}})

Two layers, 3 query heads and 1 key-value head of 32 dimensions, width 96. Trained on minivllm-tiny's corpus:

    {command}

{steps:,} steps, {tokens:,} tokens, {minutes:.0f} minutes on one busy CPU core. On {num_tokens:,} tokens of
documents that neither model was trained on, its likeliest token is the target's at {greedy:.1%} of the
positions, and a draft that is drawn from its law is accepted with probability {sampled:.1%} at temperature 1.
Where the two write on their own they leave the corpus, and agree less often.

Licence: Apache-2.0.
"""


if __name__ == "__main__":
    main()
