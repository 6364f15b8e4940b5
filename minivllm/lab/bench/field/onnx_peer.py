"""ONNX Runtime GenAI: static batches of 16 in order of arrival, padded on the right, float32 only.

Its continuous batching needs an operator that is missing on its CPU. Padding on the left is not masked and
gives wrong tokens; on the right it is.

Read next: `openvino_peer.py`.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from importlib import import_module
from typing import Any

BATCH_SIZE = 16
PADDING = 2


def load(job: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """A generator for each batch, on as many threads as the others have."""
    genai: Any = import_module("onnxruntime_genai")
    numpy: Any = import_module("numpy")
    set_threads(os.path.join(job["converted"], "genai_config.json"), job["threads"])
    model = genai.Model(job["converted"])

    def generate(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        width, steps = max(map(len, prompts)), max(lengths)
        total = width + steps
        params = genai.GeneratorParams(model)
        params.set_search_options(
            max_length=total, min_length=total, batch_size=len(prompts), do_sample=False
        )
        generator = genai.Generator(model, params)
        padded = [prompt + [PADDING] * (width - len(prompt)) for prompt in prompts]
        generator.append_tokens(numpy.array(padded, dtype=numpy.int32))
        for _ in range(steps):
            generator.generate_next_token()
        return [list(generator.get_sequence(row)[width:]) for row in range(len(prompts))]

    how = f"static batches of {BATCH_SIZE}"
    facts = {"version": genai.__version__, "how": how, "batch_size": BATCH_SIZE, "is_padded": True}
    return facts, generate


def convert(job: dict[str, Any], folder: str) -> None:
    """Its builder, which is a program rather than a function."""
    options = {
        "-i": job["model"],
        "-o": folder,
        "-p": "fp32",
        "-e": "cpu",
        "-c": os.path.join(folder, "work"),
    }
    sys.argv = ["builder", *(word for option in options.items() for word in option)]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")


def set_threads(path: str, threads: int) -> None:
    """Threads are a setting in the model's folder."""
    with open(path) as file:
        config = json.load(file)
    session = config["model"]["decoder"]["session_options"]
    session.update(intra_op_num_threads=threads, inter_op_num_threads=1)
    with open(path, "w") as file:
        json.dump(config, file)
