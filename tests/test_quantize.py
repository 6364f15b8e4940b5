"""`minivllm quantize` as a command and from Python: what it writes opens again, mistakes are sentences."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

import minivllm.quantize as making
from minivllm import LLM, SamplingParams
from minivllm.executor.torch_executor import load_decoder
from minivllm.files import CannotWrite, check_new_folder, new_folder
from minivllm.lab.tiny_model.calibration_text import as_lines, draw_texts
from minivllm.model.config import ModelConfig
from minivllm.model.quantization.quantize_layers import Run
from minivllm.model.quantization.texts import BUILTIN, HELD_OUT, read_samples, read_texts
from minivllm.model.tiny import MODEL_PATH
from minivllm.model.tokenizer import Tokenizer
from minivllm.quantize import Calibration, plan_quantization, quantize, quantized_folder

FEW = Calibration(num_samples=6, seq_len=40)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(making, "NUM_HELD_OUT", 2)


CHECKPOINTS = [
    ("rtn", {}, "compressed-tensors"),
    ("rtn", {"bits": 3, "symmetric": False}, "compressed-tensors"),
    ("awq", {}, "awq"),
    ("gptq", {}, "gptq"),
    ("gptq", {"act_order": True, "symmetric": False, "bits": 8}, "gptq"),
    ("smoothquant", {}, "compressed-tensors"),
    ("fp8", {}, "compressed-tensors"),
]


@pytest.mark.parametrize(("method", "options", "written_as"), CHECKPOINTS)
def test_what_is_written_is_what_was_quantised(method, options, written_as, tmp_path, monkeypatch):
    """Read back by the loader, every matrix has the values that the last layer's error was measured with."""
    decoders = []
    whole = making.load_whole
    monkeypatch.setattr(making, "load_whole", lambda *a: (decoders.append(whole(*a)), decoders[-1])[1])
    done = quantize(plan_quantization(MODEL_PATH, method, FEW, **options), tmp_path / "q")
    assert done.bytes_after < 0.7 * done.bytes_before and done.verdict.kl_divergence < 0.05
    config = ModelConfig.from_folder(tmp_path / "q")
    assert config.quantization["quant_method"] == written_as
    loaded = load_decoder(tmp_path / "q", config, torch.float32, CPU)
    made = decoders[0][0]
    assert torch.equal(loaded.embedding, made.embedding) and loaded.tied
    for ours, theirs in zip(made.layers, loaded.layers, strict=True):
        assert torch.equal(ours.input_norm.weight, theirs.input_norm.weight)
        assert torch.equal(ours.post_attention_norm.weight, theirs.post_attention_norm.weight)
        for a, b in zip(ours.linears, theirs.linears, strict=True):
            assert torch.allclose(a.matrix.dense(), b.matrix.dense(), atol=1e-6)
    assert Tokenizer.from_folder(tmp_path / "q").encode("Hi") == Tokenizer.from_folder(MODEL_PATH).encode(
        "Hi"
    )
    assert (tmp_path / "q/generation_config.json").is_file() and not list(tmp_path.glob(".*.tmp"))


def test_biases_and_untied_heads_are_written_in_the_type_that_they_had(tmp_path):
    from transformers import AutoModelForCausalLM, Qwen2Config

    model = AutoModelForCausalLM.from_config(
        Qwen2Config(vocab_size=4096, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
                    num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    )  # fmt: skip
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    calibration = Calibration(num_samples=6, seq_len=40, tokenizer=MODEL_PATH)
    quantize(plan_quantization(tmp_path / "model", "awq", calibration), tmp_path / "q")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "q"))
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert {after[name].dtype for name in before if name in after} == {torch.bfloat16}
    left = {name for name in before if name not in after}
    assert left == {name for name in before if name.endswith("_proj.weight")}
    assert "model.layers.0.self_attn.q_proj.bias" in after
    with pytest.raises(ValueError, match="is quantised already \\('awq'\\); quantise the original"):
        plan_quantization(tmp_path / "q", "gptq", calibration)


def test_the_command_tells_of_every_layer_and_of_what_was_lost(here, tmp_path):
    few = ("--samples", 6, "--seq-len", 40)
    code, out, _ = here("quantize", "--method", "gptq", "--bits", 4, "--group-size", 32, *few, "--dry-run")
    assert code == 0 and "4 bits, symmetric, groups of 32" in out and "layer" not in out
    code, out, err = here("quantize", "--method", "rtn", *few, "--out", "made")
    assert code == 0, err
    assert [f"layer {n:3}" in out for n in range(5)] == [True] * 5
    for words in (
        "error rounded",
        "held-out perplexity",
        "KL divergence",
        "weights 5.5 MB",
        "written to made",
    ):
        assert words in out
    assert (tmp_path / "made/model.safetensors").stat().st_mode == (
        tmp_path / "made/config.json"
    ).stat().st_mode
    code, _, err = here("quantize", "--out", "made")
    assert code == 2 and "out must be a new or an empty folder, but 'made' is there already" in err


MISTAKES = [
    ((), "out is missing: name a new folder with --out"),
    (("--out", "a/b"), "out: there is no folder"),
    (("--out", "x", "--method", "gguf"), "method must be one of 'rtn', 'awq', 'gptq', 'smoothquant', 'fp8'"),
    (("--out", "x", "--group-size", 128), "group_size 128 does not divide the 192 inputs of q_proj"),
    (("--out", "x", "--bits", 3), "bits must be 4 for the method 'awq', got 3"),
    (("--out", "x", "--samples", 0), "samples must be an integer of at least 1, got 0"),
    (("--out", "x", "--calibration", "none.txt"), "calibration 'none.txt' cannot be read: No such file"),
    (("nowhere/at/all", "--out", "x"), "model: there is no folder 'nowhere/at/all'"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_a_sentence_and_leaves_nothing_behind(arguments, message, here, tmp_path):
    code, out, err = here("quantize", *arguments)
    assert code == 2 and message in " ".join(err.split()) and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_stop_or_a_full_disk_leaves_nothing_behind(error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(making.shutil, "copyfile", fail)  # the weights are written by then
    plan = plan_quantization(MODEL_PATH, "rtn", FEW)
    expected = KeyboardInterrupt if error is KeyboardInterrupt else CannotWrite
    with pytest.raises(
        expected, match=None if error is KeyboardInterrupt else "out: cannot write to .*No space"
    ):
        quantize(plan, tmp_path / "q")
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with new_folder(check_new_folder(tmp_path / name, "out"), "out") as folder:
            (folder / "file").write_text("all")
        assert (tmp_path / name / "file").read_text() == "all"
    with pytest.raises(CannotWrite, match="out: cannot write"), new_folder(tmp_path / "new", "out"):
        pass
    assert (tmp_path / "new/file").read_text() == "all"
    assert sorted(os.listdir(tmp_path)) == ["empty", "new"]
    with pytest.raises(ValueError, match="out: '/proc/new' cannot be a folder"):
        check_new_folder("/proc/new", "out")  # also for root, who may write anywhere


def test_awq_and_gptq_are_calibrated_at_load_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(making, "user_caches", lambda: tmp_path)
    monkeypatch.setattr(making, "Calibration", lambda: FEW)
    made = []
    layers = Run.__iter__
    monkeypatch.setattr(Run, "__iter__", lambda run: (made.append(run.settings.method), layers(run))[1])
    for method in ("gptq", "gptq_marlin", "gptq"):
        settings = {"num_gpu_blocks_override": 20, "attention_backend": "torch"}
        with LLM(MODEL_PATH, quantization=method, **settings) as llm:
            output = llm.generate("Question: What is a block table?\nAnswer:", SamplingParams(max_tokens=4))
        assert output[0].outputs[0].text
    assert made == ["gptq"]
    kept = quantized_folder(MODEL_PATH, "gptq")
    assert kept.parent == tmp_path / "minivllm" and made == ["gptq"]


def test_the_texts_are_those_of_the_corpus_and_judgement_has_its_own():
    calibration, held_out = draw_texts()
    assert BUILTIN.read_text(encoding="utf-8") == as_lines(calibration)
    assert HELD_OUT.read_text(encoding="utf-8") == as_lines(held_out)
    assert not set(calibration) & set(held_out) and len(set(held_out)) > 100


def test_samples_come_from_lines_or_from_pieces_of_a_long_text(tmp_path):
    encode = Tokenizer.from_folder(MODEL_PATH).encode
    bos = encode("")
    samples = read_samples("builtin", encode, num_samples=9, seq_len=20)
    assert len(samples) == 9 and max(map(len, samples)) == 20 and all(ids[:1] == bos for ids in samples)
    assert samples != read_samples("builtin", encode, num_samples=9, seq_len=20, seed=1)
    (tmp_path / "a.txt").write_text("The cat sat on the mat. " * 50, encoding="utf-8")
    pieces = read_samples(tmp_path / "a.txt", encode, num_samples=5, seq_len=30)
    assert len(pieces) == 5 and all(ids[:1] == bos and len(ids) <= 30 for ids in pieces)
    whole = read_samples(tmp_path / "a.txt", encode, num_samples=10**6, seq_len=30)
    body = encode("The cat sat on the mat. " * 50)
    assert sum(len(ids) - len(bos) for ids in whole) == len(body) - len(bos)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"t": 1}\n', 'line 2 of .* must be {"text": "…"}'),
        ("a.jsonl", b"[" * 10**5, "line 1 of"),
        ("a.txt", b"\xff\xfe\xfa", "is not UTF-8 text: byte 0"),
        ("a.txt", b"", "has no text of two tokens or more"),
    ],
)
def test_a_file_that_is_no_text_is_a_sentence(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_samples(tmp_path / name, Tokenizer.from_folder(MODEL_PATH).encode, num_samples=2, seq_len=20)


def test_a_file_of_ones_own_is_split_into_calibration_and_judgement(tmp_path):
    lines = [json.dumps({"text": f"The story of the number {n}, which was lonely."}) for n in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    plan = plan_quantization(MODEL_PATH, "rtn", Calibration(tmp_path / "a.jsonl"))
    assert (len(plan.samples.calibration), len(plan.samples.held_out)) == (18, 2)
    assert not {*map(tuple, plan.samples.calibration)} & {*map(tuple, plan.samples.held_out)}
    assert len(read_texts(tmp_path / "a.jsonl")) == 20


def test_a_tokenizer_of_another_model_is_refused_where_its_tokens_do_not_fit(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((MODEL_PATH / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(ValueError, match=r"has no tokenizer\.json, and calibration reads text"):
        plan_quantization(tmp_path, "rtn")
    with pytest.raises(ValueError, match="but the model's vocab_size is 100"):
        plan_quantization(tmp_path, "rtn", Calibration(tokenizer=MODEL_PATH))
