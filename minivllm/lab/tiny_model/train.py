"""Trains the shipped model from nothing, in about a quarter of an hour on two quiet CPU cores.

    python -m minivllm.lab.tiny_model.train [--out DIR] [--steps N] [--minutes M] [--seed S] [--threads 2]

Corpus, tokenizer, held-out documents, weights and the order of reading all follow from the seed. Each row of
a batch is one whole document, and a batch holds documents of about the same length, so that little is spent
on padding. (Packing documents end to end into long rows also wastes nothing, but then attention reaches back
into other documents, and the people of one story wander into the next.)

The training itself is `transformers.LlamaForCausalLM` and AdamW; there is nothing to teach in writing them
again. With `--minutes` the learning rate also follows the clock and the run ends in time on a slower
machine, at the price of another result than `--steps` alone would give.

Read next: `checkpoint.py`, which writes the folder and measures what was written.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from minivllm.lab.tiny_model.checkpoint import TrainingRun, measure_perplexity, save_model, write_model_card
from minivllm.lab.tiny_model.corpus import Document, build_corpus
from minivllm.lab.tiny_model.tokenizer import BOS, CONTEXT_TOKENS, EOS, save_tokenizer, train_tokenizer
from minivllm.model.tiny import MODEL_PATH

BATCH_TOKENS = 1024
POOL_DOCUMENTS = 600
PEAK_LEARNING_RATE = 2e-3
WARMUP_STEPS = 200
SAVE_EVERY_STEPS = 500


def main() -> None:
    args = parse_arguments()
    started = time.monotonic()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    corpus = build_corpus(args.seed)
    tokenizer = train_tokenizer(document.text for document in corpus.train)
    save_tokenizer(tokenizer, args.out)
    documents = encode_documents(tokenizer, corpus.train)
    print(f"{len(documents):,} documents, {sum(map(len, documents)):,} tokens", flush=True)

    # Plain attention: for such short rows the fused kernel of the CPU is slower.
    make: Any = LlamaForCausalLM._from_config
    model: LlamaForCausalLM = make(tiny_config(tokenizer), attn_implementation="eager")
    steps, tokens = train(model, documents, args, started)
    save_model(model, args.out)
    run = TrainingRun(
        command=command_line(args),
        steps=steps,
        tokens=tokens,
        corpus_documents=len(documents),
        corpus_tokens=sum(map(len, documents)),
        wall_seconds=time.monotonic() - started,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    scores = measure_perplexity(args.out, corpus.held_out)
    for score in scores:
        print(f"{score.name:16} {score.perplexity:7.3f} per token  {score.bits_per_byte:6.3f} bits per byte")
    write_model_card(args.out, run, scores)


def parse_arguments(out: Path = MODEL_PATH, steps: int = 4400) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a model that ships with minivllm.")
    parser.add_argument("--out", type=Path, default=out, help="folder to write (default: the shipped one)")
    parser.add_argument("--steps", type=int, default=steps, help="optimizer steps (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=None, help="stop in time, at the latest after this long"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def command_line(args: argparse.Namespace) -> str:
    """What the model card says to type for the same weights."""
    command = f"python -m minivllm.lab.tiny_model.train --seed {args.seed} --steps {args.steps}"
    return command if args.minutes is None else f"{command} --minutes {args.minutes:g}"


def tiny_config(tokenizer: Tokenizer) -> LlamaConfig:
    """2.75 million parameters, of which the tied embeddings are 0.79 million."""
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT_TOKENS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
    )


def encode_documents(tokenizer: Tokenizer, documents: list[Document]) -> list[list[int]]:
    """`<s>` tokens `</s>` for each document; the tokenizer itself adds the first."""
    end = tokenizer.token_to_id(EOS)
    assert end is not None, "the tokenizer was trained with it"
    return [[*encoding.ids, end] for encoding in tokenizer.encode_batch([d.text for d in documents])]


def train(
    model: LlamaForCausalLM, documents: list[list[int]], args: argparse.Namespace, started: float
) -> tuple[int, int]:
    """Run the optimizer and return the number of steps taken and of tokens read."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batches = batches_of_like_length(documents, args.seed)
    model.train()
    running_loss, tokens_read = 0.0, 0
    for step in range(args.steps):
        elapsed_minutes = (time.monotonic() - started) / 60
        done = step / args.steps
        if args.minutes is not None:
            done = max(done, elapsed_minutes / args.minutes)
        if done >= 1:
            return step, tokens_read
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, done)
        batch = next(batches)
        tokens_read += sum(map(len, batch))
        tokens, labels = pad(batch)
        with torch.autocast("cpu", torch.bfloat16):  # a third more tokens per second where the CPU has bf16
            loss = model(input_ids=tokens, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        running_loss = loss.item() if step == 0 else 0.98 * running_loss + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"step {step:5}  loss {running_loss:.3f}  {elapsed_minutes:5.1f} min", flush=True)
        if step % SAVE_EVERY_STEPS == SAVE_EVERY_STEPS - 1:
            save_model(model, args.out)
    return args.steps, tokens_read


def batches_of_like_length(documents: list[list[int]], seed: int) -> Iterator[list[list[int]]]:
    """Endless batches of at most BATCH_TOKENS tokens, padding included; every epoch has a new order."""
    rng = random.Random(seed)
    while True:
        order = rng.sample(documents, len(documents))
        for start in range(0, len(order), POOL_DOCUMENTS):
            batches: list[list[list[int]]] = [[]]
            for document in sorted(order[start : start + POOL_DOCUMENTS], key=len):
                if len(document) * (len(batches[-1]) + 1) > BATCH_TOKENS:
                    batches.append([])
                batches[-1].append(document)
            rng.shuffle(batches)
            yield from batches


def pad(batch: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels `[documents, longest]`; -100 is a label that the loss passes over."""
    longest = max(map(len, batch))
    tokens = torch.tensor([[*document, *[0] * (longest - len(document))] for document in batch])
    labels = torch.tensor([[*document, *[-100] * (longest - len(document))] for document in batch])
    return tokens, labels


def learning_rate(step: int, done: float) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak; `done` runs from 0 to 1."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return PEAK_LEARNING_RATE * warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


if __name__ == "__main__":
    main()
