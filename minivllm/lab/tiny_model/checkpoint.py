"""Writes the folder of the shipped model, and measures what was written.

The weights are rounded to float16 in the file, half the bytes, while `config.json` asks for float32:
widening loses nothing, and every number on the model card comes from the rounded weights, read back from
the folder.

`config.json` speaks two dialects. Readers up to transformers 4 look for `rope_theta` and `torch_dtype`,
transformers 5 for `rope_parameters` and `dtype`; the file has both.

Read next: `train.py`, which calls this.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from minivllm.lab.tiny_model.corpus import Document
from minivllm.lab.tiny_model.tokenizer import write_json

ROPE_THETA = 10_000.0


@dataclass(frozen=True)
class TrainingRun:
    """What the model card says about how the weights came to be."""

    command: str
    steps: int
    tokens: int
    corpus_documents: int
    corpus_tokens: int
    wall_seconds: float
    parameters: int


@dataclass(frozen=True)
class Score:
    """How well one part of the held-out documents was predicted."""

    name: str
    documents: int
    perplexity: float
    bits_per_byte: float


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write weights and configuration. The tied output matrix is the embedding, so it is not stored again."""
    tensors = {
        name: tensor.detach().to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = model.config
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": config.max_position_embeddings,
            "rms_norm_eps": config.rms_norm_eps,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id,
            "rope_theta": ROPE_THETA,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
            "torch_dtype": "float32",
            "dtype": "float32",
        },
    )
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id, "do_sample": False},
    )


def measure_perplexity(folder: Path, held_out: list[Document]) -> list[Score]:
    """Perplexity of the saved weights on documents never trained on, in total and by language and kind."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder)
    model: Any = loaded.eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    groups: dict[str, list[tuple[float, int, int]]] = {"all": []}
    for document in held_out:
        measured = (*document_loss(model, tokenizer, document), len(document.text.encode()))
        groups["all"].append(measured)
        groups.setdefault(f"{document.language} {document.kind}", []).append(measured)
    scores = []
    for name, rows in groups.items():
        nats, tokens, text_bytes = (sum(column) for column in zip(*rows, strict=True))
        scores.append(Score(name, len(rows), math.exp(nats / tokens), nats / math.log(2) / text_bytes))
    return scores


@torch.inference_mode()
def document_loss(model: Any, tokenizer: Any, document: Document) -> tuple[float, int]:
    """Total negative log likelihood in nats, and the tokens predicted: all but `<s>`, `</s>` included."""
    ids = torch.tensor([[*tokenizer(document.text).input_ids, tokenizer.eos_token_id]])
    logits = model(input_ids=ids).logits[0, :-1]
    nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    return nats, ids.shape[1] - 1


def write_model_card(folder: Path, run: TrainingRun, scores: list[Score]) -> None:
    rows = "\n".join(
        f"| {s.name} | {s.documents} | {s.perplexity:.3f} | {s.bits_per_byte:.3f} |" for s in scores
    )
    card = MODEL_CARD.format(rows=rows, minutes=run.wall_seconds / 60, **vars(run))
    (folder / "README.md").write_text(card, encoding="utf-8")


MODEL_CARD = """\
---
license: apache-2.0
language: [en, zh]
library_name: transformers
pipeline_tag: text-generation
---

# minivllm-tiny

The model that ships with minivllm, so that every lesson and test has real weights without a network. It has
{parameters:,} parameters in the shape of Llama: 5 layers, 6 query heads and 2 key-value heads of 32
dimensions, rotary embedding, tied embeddings, a byte-fallback BPE vocabulary of 4,096.

It answers questions about LLM inference and tells short stories, in English and in Chinese:

    Question: What is a block table?
    Answer:

    问：什么是KV缓存？
    答：

or as a chat, through the chat template of the tokenizer. Greedy decoding suits the questions; for stories
try a temperature of 0.8 and `Once upon a time` or `从前`.

## Training

    {command}

The corpus is generated by `minivllm/lab/tiny_model/corpus` from facts and story grammars written for it:
{corpus_documents:,} documents, {corpus_tokens:,} tokens. Training read {tokens:,} tokens in {steps:,} steps
of AdamW with a cosine schedule and took {minutes:.0f} minutes of wall time on two shared CPU cores. Each row
of a batch was one document; matrix products were computed in bfloat16, all else in float32. Seed and steps
fix the data and the order of reading; the last digits of the weights also depend on the machine's arithmetic.

The tensors are stored in float16 and loaded as float32. All numbers here are of the stored weights.

## Held-out perplexity

Two percent of the documents were set aside by seed before training. Perplexity is per token, `</s>`
included; bits per byte are of UTF-8 text. Every sentence of an answer also occurs in training, only in
other combinations of phrasing, form and neighbouring facts, and stories come from one grammar: the numbers
say how well the model has learned its corpus, not how it does on text from elsewhere.

| part | documents | perplexity | bits per byte |
|---|---|---|---|
{rows}

## Limits

It knows some hundred terms and nothing else. Asked in words far from those of its corpus it may explain a
neighbouring term, and asked about other things it may refuse, in either language, or make something up. Its
stories are grammatical, but it often confuses characters: a name or an animal may change from one sentence to
the next. It has no arithmetic and no safety training. Its longest training document had about 480 tokens;
positions up to 2,048 are allowed but not practised.

Licence: Apache-2.0, weights and corpus alike.
"""
