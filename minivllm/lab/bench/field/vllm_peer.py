"""vLLM on a CPU: the engine in this process, compiled (its own default), without its prefix cache.

The compiled code goes to the cache folder, so that only the first run waits for it.

Read next: `llama_cpp_peer.py`.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any


def load(job: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Its offline engine, on the first cores of those that we may use."""
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": str(job["cache_gib"]),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores(job["threads"]))),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CACHE_ROOT": os.path.join(job["cache"], "vllm"),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    os.environ.update(settings)  # read when vllm is imported
    vllm: Any = import_module("vllm")
    llm = vllm.LLM(
        job["model"],
        skip_tokenizer_init=True,
        dtype=job["dtype"],
        max_model_len=job["max_model_len"],
        max_num_seqs=job["max_num_seqs"],
        max_num_batched_tokens=4096,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )

    def generate(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        params = [
            vllm.SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, detokenize=False)
            for length in lengths
        ]
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [list(each.outputs[0].token_ids) for each in llm.generate(asked, params, use_tqdm=False)]

    return {"version": vllm.__version__, "how": "continuous batching, compiled"}, generate


def cores(threads: int) -> list[int]:
    """The cores to bind to: the first of those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))[:threads]
    return list(range(threads))
