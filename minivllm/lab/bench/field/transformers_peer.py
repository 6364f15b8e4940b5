"""Hugging Face transformers: `generate` in static batches of 16, in order of arrival, padded on the left.

Prompts are padded to the longest of the batch, and all sequences go on until the longest answer is done; what
comes after a request's own length is thrown away.

    batch of 4, static            continuous
    a ██████░░░░░░░░              a ██████ e ███████
    b ██████████████              b ██████████████
    c ███░░░░░░░░░░░              c ███ f ████████            ░ = computed, then thrown away
    d █████████░░░░░              d █████████ g ████

Read next: `ctranslate2_peer.py`.
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
    )
    device = job["device"]
    model = model.to(device).eval()
    # No end-of-sequence token: lengths are exact.
    model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=PADDING)

    def generate(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        width, steps = max(map(len, prompts)), max(lengths)
        padded = [[PADDING] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        out = model.generate(
            torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=steps,
            min_new_tokens=steps,
        )
        rows: list[list[int]] = out[:, width:].tolist()
        return rows

    how = f"generate, static batches of {BATCH_SIZE}"
    version = transformers.__version__
    return {"version": version, "how": how, "batch_size": BATCH_SIZE, "is_padded": True}, generate
