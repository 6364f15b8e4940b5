"""Hugging Face transformers: `generate` in static batches of 16, in order of arrival, padded on the left.

A batch goes on until its longest answer is done; what comes after a request's own length is thrown away.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

BATCH_SIZE = 16
PADDING = 0


def load(job: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The model in its own type, with torch's own attention."""
    torch: Any = import_module("torch")
    transformers: Any = import_module("transformers")
    torch.set_num_threads(job["threads"])
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=getattr(torch, job["dtype"]), attn_implementation="sdpa"
    ).eval()
    # No end-of-sequence token: lengths are exact.
    model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=PADDING)

    def generate(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        width, steps = max(map(len, prompts)), max(lengths)
        padded = torch.tensor([[PADDING] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        out = model.generate(padded, attention_mask=mask, max_new_tokens=steps, min_new_tokens=steps)
        rows: list[list[int]] = out[:, width:].tolist()
        return rows

    how = f"generate, static batches of {BATCH_SIZE}"
    return {"version": transformers.__version__, "how": how, "batch_size": BATCH_SIZE}, generate
