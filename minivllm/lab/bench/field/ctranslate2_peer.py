"""CTranslate2: static batches of 16 in order of arrival, float32 only on a CPU.

Read next: `onnx_peer.py`.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

BATCH_SIZE = 16


def load(job: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Its generator; prompts are written as texts of tokens."""
    os.environ.setdefault("CT2_USE_MKL", "0")  # MKL's threads and its own get in each other's way
    ctranslate2: Any = import_module("ctranslate2")
    generator = ctranslate2.Generator(
        job["converted"],
        device="cpu",
        compute_type=job["dtype"],
        inter_threads=1,
        intra_threads=job["threads"],
    )
    tokenizers: Any = import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(job["model"], "tokenizer.json"))
    tokens = [tokenizer.id_to_token(token) for token in range(tokenizer.get_vocab_size())]

    def generate(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        steps = max(lengths)
        results = generator.generate_batch(
            [[tokens[token] for token in prompt] for prompt in prompts],
            max_length=steps,
            min_length=steps,
            include_prompt_in_result=False,
            beam_size=1,
            sampling_topk=1,
            max_batch_size=0,
        )
        return [result.sequences_ids[0] for result in results]

    how = f"static batches of {BATCH_SIZE}"
    return {"version": ctranslate2.__version__, "how": how, "batch_size": BATCH_SIZE}, generate


def convert(job: dict[str, Any], folder: str) -> None:
    converters: Any = import_module("ctranslate2.converters")
    converters.TransformersConverter(job["model"]).convert(folder, force=True)
