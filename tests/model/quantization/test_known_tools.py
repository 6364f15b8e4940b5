"""The known tools as oracles: what they write we read as they do, and what we write they read as we do.

At night only (`--hypothesis-profile=nightly`), each tool in an environment of its own, whose Python is named:

    MINIVLLM_LLMCOMPRESSOR_PYTHON    pip install llmcompressor          compressed-tensors
    MINIVLLM_GPTQMODEL_PYTHON        pip install gptqmodel              GPTQ (a compiler is needed)
    MINIVLLM_AUTOAWQ_PYTHON          pip install autoawq 'transformers==4.51.3'

Their programs know nothing of ours. Where a tool only computes on a GPU, its own unpacking is compared.
"""

import os
import subprocess
from textwrap import dedent

import pytest
import torch
from safetensors.torch import load_file

from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.model.tiny import MODEL_PATH
from minivllm.quantize import Calibration, plan_quantization, quantize
from tests import profiles
from tests.model.conftest import Runner

pytestmark = pytest.mark.skipif(
    not profiles.is_night(), reason="minutes each, and tools of their own: at night"
)
SECONDS = 3000
TOKENS = list(range(5, 45))
FEW = Calibration(num_samples=8, seq_len=64)


def with_tool(tool, code, *arguments):
    """Run a program under the tool's own Python."""
    python = os.environ.get(f"MINIVLLM_{tool}_PYTHON")
    if not python:
        pytest.skip(f"MINIVLLM_{tool}_PYTHON names no Python that has it")
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    own |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "GPTQMODEL_CPU_WORKERS": "1"}
    done = subprocess.run(
        [python, "-c", dedent(code), *map(str, arguments)], env=own, capture_output=True, text=True,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def our_logits(folder):
    executor = TorchExecutor.from_folder(folder, dtype="float32", num_blocks=8, backend=TorchAttention)
    runner = Runner(executor)
    runner.step({0: TOKENS})
    return runner.result(0)


def their_logits(tool, code, folder, tmp_path):
    file = tmp_path / "logits.safetensors"
    with_tool(tool, code, folder, file, *TOKENS)
    return load_file(file)["logits"]


READ_BY_TRANSFORMERS = """
    import sys, torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM
    folder, file, *tokens = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([[int(token) for token in tokens]])).logits[0].float().contiguous()
    save_file({"logits": logits}, file)
"""
WRITE_BY_LLM_COMPRESSOR = """
    import sys, torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM
    folder, out, bits, group, symmetric = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = QuantizationArgs(
        num_bits=int(bits), type="int", symmetric=symmetric == "yes",
        **({"strategy": "channel"} if group == "-1" else {"strategy": "group", "group_size": int(group)}),
    )
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    oneshot(model=model, recipe=QuantizationModifier(config_groups=groups, ignore=["lm_head"]))
    model.save_pretrained(out, save_compressed=True)
"""


@pytest.mark.parametrize(("bits", "group", "symmetric"), [(4, 64, "yes"), (4, 64, "no"), (8, -1, "yes")])
def test_what_llm_compressor_writes_is_read_as_transformers_reads_it(bits, group, symmetric, tmp_path):
    out = tmp_path / "made"
    with_tool("LLMCOMPRESSOR", WRITE_BY_LLM_COMPRESSOR, MODEL_PATH, out, bits, group, symmetric)
    expected = their_logits("LLMCOMPRESSOR", READ_BY_TRANSFORMERS, out, tmp_path)
    assert (our_logits(out) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rtn", {"bits": 4, "group_size": 64}),
        ("rtn", {"bits": 8, "group_size": -1}),
    ],
)
def test_what_we_write_for_compressed_tensors_is_read_by_transformers_as_we_read_it(
    method, options, tmp_path
):
    done = quantize(plan_quantization(MODEL_PATH, method, FEW, **options), tmp_path / "made")
    expected = their_logits("LLMCOMPRESSOR", READ_BY_TRANSFORMERS, done.folder, tmp_path)
    assert (our_logits(done.folder) - expected).abs().max() <= 1e-4


UNPACK_BY_TRANSFORMERS = """
    import sys, torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig
    folder, file = sys.argv[1:]
    config = CompressedTensorsConfig(run_compressed=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config)
    layers = {name: module.weight for name, module in model.named_modules() if name.endswith("_proj")}
    save_file({name: weight.detach().float().contiguous() for name, weight in layers.items()}, file)
"""


@pytest.mark.parametrize("method", ["fp8", "smoothquant"])
def test_weights_beside_rounded_activations_are_unpacked_as_we_unpack_them(method, tmp_path):
    """It rounds activations of FP8, too, and those of W8A8 by another rule: so logits are only near."""
    done = quantize(plan_quantization(MODEL_PATH, method, FEW), tmp_path / "made")
    file = tmp_path / "dense.safetensors"
    with_tool("LLMCOMPRESSOR", UNPACK_BY_TRANSFORMERS, done.folder, file)
    theirs = load_file(file)
    executor = TorchExecutor.from_folder(done.folder, dtype="float32", num_blocks=2, backend=TorchAttention)
    ours = dict(executor.decoder.views())
    assert len(theirs) == 7 * executor.config.num_layers
    for layer, weight in theirs.items():
        torch.testing.assert_close(ours[f"{layer}.weight"], weight, atol=1e-6, rtol=1e-6)


WRITE_BY_GPTQMODEL = """
    import sys
    from gptqmodel import GPTQModel, QuantizeConfig
    folder, out, bits, act_order, symmetric = sys.argv[1:]
    config = QuantizeConfig(
        bits=int(bits), group_size=64, desc_act=act_order == "yes", sym=symmetric == "yes"
    )
    model = GPTQModel.load(folder, config, device="cpu")
    rows = [[5 + (7 * row + place) % 4000 for place in range(64)] for row in range(8)]
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], batch_size=1)
    model.save(out)
"""
READ_BY_GPTQMODEL = """
    import sys, torch
    from gptqmodel import BACKEND, GPTQModel
    from safetensors.torch import save_file
    folder, file, *tokens = sys.argv[1:]
    model = GPTQModel.load(folder, device="cpu", backend=BACKEND.TORCH)
    with torch.inference_mode():
        logits = model.model(torch.tensor([[int(token) for token in tokens]])).logits[0].float().contiguous()
    save_file({"logits": logits}, file)
"""


@pytest.mark.parametrize(
    ("bits", "act_order", "symmetric"), [(4, "no", "yes"), (4, "yes", "no"), (8, "yes", "yes")]
)
def test_what_gptqmodel_writes_is_read_as_it_reads_it(bits, act_order, symmetric, tmp_path):
    """It computes in 16 bits, and so its logits are only near."""
    out = tmp_path / "made"
    with_tool("GPTQMODEL", WRITE_BY_GPTQMODEL, MODEL_PATH, out, bits, act_order, symmetric)
    expected = their_logits("GPTQMODEL", READ_BY_GPTQMODEL, out, tmp_path)
    assert (our_logits(out) - expected).abs().max() <= 0.05


@pytest.mark.parametrize("options", [{}, {"act_order": True, "symmetric": False}])
def test_what_we_write_for_gptq_is_read_by_gptqmodel_as_we_read_it(options, tmp_path):
    done = quantize(plan_quantization(MODEL_PATH, "gptq", FEW, **options), tmp_path / "made")
    expected = their_logits("GPTQMODEL", READ_BY_GPTQMODEL, done.folder, tmp_path)
    assert (our_logits(done.folder) - expected).abs().max() <= 0.05


UNPACK_BY_AUTOAWQ = """
    import sys, torch
    from awq.utils.packing_utils import dequantize_gemm
    from safetensors.torch import load_file, save_file
    folder, file, group = sys.argv[1:]
    tensors = load_file(f"{folder}/model.safetensors")
    made = {}
    for name in tensors:
        if name.endswith(".qweight"):
            layer = name.removesuffix(".qweight")
            parts = [tensors[f"{layer}.{part}"] for part in ("qweight", "qzeros", "scales")]
            made[layer] = dequantize_gemm(*parts, 4, int(group)).T.float().contiguous()
    save_file(made, file)
"""


def test_what_we_write_for_awq_is_unpacked_by_autoawq_as_we_unpack_it(tmp_path):
    done = quantize(plan_quantization(MODEL_PATH, "awq", FEW, group_size=64), tmp_path / "made")
    file = tmp_path / "dense.safetensors"
    with_tool("AUTOAWQ", UNPACK_BY_AUTOAWQ, done.folder, file, 64)
    theirs = load_file(file)
    executor = TorchExecutor.from_folder(done.folder, dtype="float32", num_blocks=2, backend=TorchAttention)
    ours = dict(executor.decoder.views())
    assert len(theirs) == 7 * executor.config.num_layers
    for layer, weight in theirs.items():  # it multiplies in 16 bits
        torch.testing.assert_close(ours[f"{layer}.weight"], weight, atol=2e-3, rtol=2e-3)
