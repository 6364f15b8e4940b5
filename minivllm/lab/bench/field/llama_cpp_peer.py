"""llama.cpp, by the low-level calls of llama-cpp-python: as many sequences in one batch as ours may run.

First all prompts, in batches of 2,048 tokens, then one token for each sequence that is not done yet: what
its own server does with 64 slots when all requests are there at the start, without the server around it.

Read next: `result.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any

CACHE_TYPES = {"float32": 0, "bfloat16": 30}
"""ggml's numbers for types."""
FILE_TYPES = {"int8": 7, "int4": 2}
"""Its names: Q8_0 and Q4_0, a scale for each 32 weights; the head gets 8 or 6 bits."""
BATCH_TOKENS = 2048
MOST_SEQUENCES = 256
"""More than these it does not take at once."""


def load(job: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """One context for one stream, another for as many as the workload has."""
    llama: Any = import_module("llama_cpp")
    numpy: Any = import_module("numpy")
    llama.llama_log_set(quiet(llama), None)
    path = os.path.join(job["converted"], "model.gguf").encode()
    model = llama.llama_model_load_from_file(path, llama.llama_model_default_params())
    if not model:
        raise RuntimeError("llama.cpp cannot load the converted model")
    vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    most = min(job["max_num_seqs"], MOST_SEQUENCES)
    contexts: dict[int, Any] = {}
    for measure in job["measures"].values():
        num_sequences = min(most, len(measure["prompts"]))
        longest = max(len(p) + n for p, n in zip(measure["prompts"], measure["lengths"], strict=True))
        contexts[num_sequences] = max(longest, contexts.get(num_sequences, 0))
    for num_sequences, longest in contexts.items():
        contexts[num_sequences] = open_context(llama, model, job, num_sequences, longest)

    def generate(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        context = contexts[min(size for size in contexts if size >= len(prompts))]
        batch = llama.llama_batch_init(BATCH_TOKENS, 0, 1)
        try:
            return decode_all(llama, numpy, context, batch, vocab_size, prompts, lengths)
        finally:
            llama.llama_batch_free(batch)

    how = "all sequences in one batch"
    return {"version": llama.__version__, "how": how, "batch_size": most}, generate


def open_context(llama: Any, model: Any, job: dict[str, Any], num_sequences: int, longest: int) -> Any:
    """A cache in the model's own type, with a strip for each sequence."""
    params = llama.llama_context_default_params()
    params.n_ctx = num_sequences * (-(-longest // 256) * 256)
    params.n_batch = BATCH_TOKENS
    params.n_seq_max = num_sequences
    params.n_threads = params.n_threads_batch = job["threads"]
    params.type_k = params.type_v = CACHE_TYPES[job["dtype"]]
    params.flash_attn_type = 0  # its flash attention rounds float32 to 16 bits, and is slower here
    context = llama.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError("llama.cpp cannot open a context")
    return context


def decode_all(
    llama: Any,
    numpy: Any,
    context: Any,
    batch: Any,
    vocab_size: int,
    prompts: list[list[int]],
    lengths: list[int],
) -> list[list[int]]:
    """Greedy tokens of every sequence, exactly as many as are wanted."""
    llama.llama_memory_clear(llama.llama_get_memory(context), False)
    rows: list[list[int]] = [[] for _ in prompts]

    def compute(tokens: list[tuple[int, int, int, bool]]) -> None:
        """One call: (token, position, sequence, whether its next token is wanted)."""
        for index, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = wanted
        batch.n_tokens = len(tokens)
        if llama.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        receivers = [sequence for _, _, sequence, wanted in tokens if wanted]
        if receivers:
            shape = (len(receivers), vocab_size)
            logits = numpy.ctypeslib.as_array(llama.llama_get_logits(context), shape=shape)
            for sequence, token in zip(receivers, logits.argmax(axis=1).tolist(), strict=True):
                rows[sequence].append(token)

    waiting = [
        (token, position, sequence, position == len(prompt) - 1)
        for sequence, prompt in enumerate(prompts)
        for position, token in enumerate(prompt)
    ]
    for start in range(0, len(waiting), BATCH_TOKENS):
        compute(waiting[start : start + BATCH_TOKENS])
    while True:
        running = [index for index, length in enumerate(lengths) if len(rows[index]) < length]
        if not running:
            return rows
        compute([(rows[i][-1], len(prompts[i]) + len(rows[i]) - 1, i, True) for i in running])


def quiet(llama: Any) -> Any:
    """Its log, to nowhere; it must live as long as the library."""
    global _LOG
    _LOG = llama.llama_log_callback(lambda level, text, data: None)
    return _LOG


_LOG: Any = None


def convert(job: dict[str, Any], folder: str) -> None:
    """A Llama checkpoint as GGUF, weights as they are; without a tokenizer, because it gets token ids.

    With "characters" in the job (ranges of them: first, count) each token is one of them, for its server.
    """
    gguf: Any = import_module("gguf")
    numpy: Any = import_module("numpy")
    with open(os.path.join(job["model"], "config.json")) as file:
        config = json.load(file)
    if config["model_type"] != "llama":
        raise RuntimeError(f"only Llama checkpoints are converted here, not {config['model_type']}")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    plain = os.path.join(folder, "plain.gguf" if job["weights"] else "model.gguf")
    writer = gguf.GGUFWriter(plain, "llama")
    add_vocabulary(writer, config["vocab_size"], job.get("characters"))
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base((config.get("rope_parameters") or config).get("rope_theta", 10_000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads_of = {"q_proj": heads, "k_proj": kv_heads}
    for name, bits in read_tensors(numpy, job["model"]):
        num_heads = heads_of.get(name.split(".")[-2])
        if num_heads:  # rotary halves lie interleaved here
            halves = bits.reshape(num_heads, 2, head_dim // 2, bits.shape[1])
            bits = numpy.ascontiguousarray(halves.swapaxes(1, 2)).reshape(bits.shape)
        new_name = names.get_name(name, try_suffixes=(".weight",))
        if bits.dtype == numpy.uint16 and bits.ndim > 1:
            writer.add_tensor(new_name, bits.view(numpy.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
        elif bits.dtype == numpy.uint16:  # norms have to be float32, and bfloat16 is its upper half
            writer.add_tensor(new_name, (bits.astype(numpy.uint32) << 16).view(numpy.float32))
        else:
            writer.add_tensor(new_name, bits)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if job["weights"]:
        round_weights(plain, os.path.join(folder, "model.gguf"), FILE_TYPES[job["weights"]])
        os.remove(plain)


def add_vocabulary(writer: Any, size: int, ranges: list[list[int]] | None) -> None:
    """None, or one in which the first tokens have roles, and no two characters are ever joined."""
    writer.add_vocab_size(size)
    if ranges is None:
        writer.add_tokenizer_model("no_vocab")
        return
    characters = [chr(first + offset) for first, count in ranges for offset in range(count)]
    if size > len(characters):
        raise RuntimeError(f"a vocabulary of {size} tokens has more than there are characters for")
    normal, unknown, control = 1, 2, 3
    writer.add_tokenizer_model("llama")
    writer.add_token_list(characters[:size])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types(([unknown, control, control] + [normal] * size)[:size])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def round_weights(plain: str, rounded: str, file_type: int) -> None:
    """Its own rounding, from one file to another."""
    llama: Any = import_module("llama_cpp")
    llama.llama_log_set(quiet(llama), None)
    params = llama.llama_model_quantize_default_params()
    params.ftype = file_type
    if llama.llama_model_quantize(plain.encode(), rounded.encode(), params):
        raise RuntimeError("llama.cpp cannot round the converted model")


def read_tensors(numpy: Any, folder: str) -> Iterator[tuple[str, Any]]:
    """Name and numbers of each weight; bfloat16, which NumPy has not, as its 16 bits."""
    types = {"F32": numpy.float32, "BF16": numpy.uint16}
    for entry in sorted(os.listdir(folder)):
        if not entry.endswith(".safetensors"):
            continue
        path = os.path.join(folder, entry)
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        content = numpy.memmap(path, dtype=numpy.uint8, mode="r", offset=8 + size)
        for name, entry_of in header.items():
            if name != "__metadata__":
                start, end = entry_of["data_offsets"]
                yield name, content[start:end].view(types[entry_of["dtype"]]).reshape(entry_of["shape"])
