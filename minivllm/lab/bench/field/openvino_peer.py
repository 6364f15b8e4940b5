"""OpenVINO GenAI: continuous batching over a paged cache.

It reads a format of its own, which optimum-intel writes. The precisions are forced: left alone, the CPU
plugin may compute a float32 model in bfloat16 with a smaller cache, and would be compared with another
amount of work.

Read next: `vllm_peer.py`.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def load(job: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Its pipeline of paged attention, with as many sequences at once as ours."""
    genai: Any = import_module("openvino_genai")
    openvino: Any = import_module("openvino")
    numpy: Any = import_module("numpy")
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = job["cache_gib"]
    scheduler.dynamic_split_fuse = True
    scheduler.max_num_batched_tokens = 1024
    scheduler.max_num_seqs = job["max_num_seqs"]
    scheduler.enable_prefix_caching = False
    precision = PRECISIONS[job["dtype"]]
    properties = {
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": precision,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "INFERENCE_NUM_THREADS": job["threads"],
        "NUM_STREAMS": 1,
    }
    pipeline = genai.ContinuousBatchingPipeline(job["converted"], scheduler, "CPU", properties)

    def config(length: int) -> Any:
        wanted = genai.GenerationConfig()
        wanted.max_new_tokens = length
        wanted.ignore_eos = True
        wanted.do_sample = False
        wanted.apply_chat_template = False
        return wanted

    def generate(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        asked = [openvino.Tensor(numpy.array([prompt], dtype=numpy.int64)) for prompt in prompts]
        results = pipeline.generate(asked, [config(length) for length in lengths])
        return [list(result.m_generation_ids[0]) for result in results]

    return {"version": genai.__version__.split("-")[0], "how": "continuous batching"}, generate


def convert(job: dict[str, Any], folder: str) -> None:
    """Weights as they are, and the tokenizer that the pipeline asks for though it is given token ids."""
    optimum: Any = import_module("optimum.intel")
    openvino: Any = import_module("openvino")
    tokenizers: Any = import_module("openvino_tokenizers")
    transformers: Any = import_module("transformers")
    rounding: dict[str, Any] = {"load_in_8bit": False}
    if job["weights"] == "int8":
        rounding = {"quantization_config": optimum.OVWeightQuantizationConfig(bits=8, sym=True)}
    elif job["weights"] == "int4":  # all of them, but for embeddings and head: these have 8 bits, as ours
        rounding = {
            "quantization_config": optimum.OVWeightQuantizationConfig(
                bits=4, sym=True, group_size=128, ratio=1.0
            )
        }
    model = optimum.OVModelForCausalLM.from_pretrained(
        job["model"], export=True, compile=False, stateful=True, **rounding
    )
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    there, back = tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
    openvino.save_model(there, os.path.join(folder, "openvino_tokenizer.xml"))
    openvino.save_model(back, os.path.join(folder, "openvino_detokenizer.xml"))
