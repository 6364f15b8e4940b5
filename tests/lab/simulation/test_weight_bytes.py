"""What a step reads of the weights, in as many bytes as they are stored in: to the byte."""

from array import array

import pytest
from safetensors.torch import load_file

from minivllm import LLM, SamplingParams
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.simulated_executor import shape_of
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.lab.simulation.cards import hardware_card, model_card
from minivllm.lab.simulation.cost_model import CostModel
from minivllm.model.quantization.rounding import HEADS
from minivllm.model.tiny import MODEL_PATH
from minivllm.scheduling.plan import ScheduledSequence, StepPlan
from minivllm.trace.engine_counts import EngineCounts
from minivllm.trace.reader import make_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.timeline import Phase, make_timeline
from minivllm.trace.work import batch_shape, work_by_phase, work_of
from tests.model.conftest import make_checkpoint
from tests.model.quantization.conftest import make_quantized
from tests.trace.told_counts import Told

__all__ = ["make_checkpoint", "make_quantized"]

CONFIG = model_card("tiny")
HIDDEN, INNER, LAYERS, VOCABULARY = 192, 512, 5, 4096
QUERIES, KEYS = 6 * 32, 2 * 32
MATRICES = [(QUERIES + 2 * KEYS, HIDDEN), (HIDDEN, QUERIES), (2 * INNER, HIDDEN), (HIDDEN, INNER)]
"""[out, in] of a layer of the shipped model."""
NORMS = 4 * (LAYERS * 2 * HIDDEN + HIDDEN)
OUTPUT = 4 * VOCABULARY * HIDDEN
"""It is the embedding, too, and not rounded."""


def layer_bytes(name):
    """Codes, and a scale of 32 bits for each output, or for each 128 inputs of one where they divide them."""
    total = 0
    for outputs, inputs in MATRICES:
        groups = inputs // 128 if name == "int4" and inputs % 128 == 0 else 1
        total += outputs * inputs // (2 if name == "int4" else 1) + 4 * outputs * groups
    return LAYERS * total + NORMS


def executor_of(**settings):
    return TorchExecutor.from_folder(
        MODEL_PATH, device="cpu", num_blocks=2, backend=TorchAttention, **settings
    )


DECODE = batch_shape([(9, 1), (5, 1)], num_generated_tokens=2, num_generated_rows=2)
PROMPTS = batch_shape([(0, 7)])
MIXED = batch_shape([(9, 1), (0, 7)], num_generated_tokens=1, num_generated_rows=1)
CHUNK = batch_shape([(0, 7)], num_logit_rows=0)


@pytest.mark.parametrize("name", ["int8", "int4", "fp8"])
def test_rounded_weights_are_read_in_the_bytes_that_they_have(name):
    shape = executor_of(quantization=name).model_shape
    assert (shape.layer_bytes, shape.output_bytes) == (layer_bytes(name), OUTPUT)
    for batch in (DECODE, PROMPTS, MIXED):
        assert work_of(shape, batch).weight_bytes == layer_bytes(name) + OUTPUT
    assert work_of(shape, CHUNK).weight_bytes == layer_bytes(name)


def test_weights_that_are_not_quantised_have_the_bytes_of_their_type():
    shape = executor_of().model_shape
    assert shape.layer_bytes == shape.output_bytes == shape.decode_layer_bytes == 0
    whole = 4 * sum(outputs * inputs for outputs, inputs in MATRICES) * LAYERS + NORMS
    assert work_of(shape, DECODE).weight_bytes == whole + OUTPUT == executor_of().decoder.num_bytes


@pytest.mark.parametrize("name", ["int8", "int4", "fp8"])
def test_a_step_of_both_phases_reads_both_copies(name):
    shape = executor_of(decode_weight_dtype=name).model_shape
    full = 4 * sum(outputs * inputs for outputs, inputs in MATRICES) * LAYERS + NORMS + OUTPUT
    copy = layer_bytes(name) + OUTPUT
    assert work_of(shape, PROMPTS).weight_bytes == full
    assert work_of(shape, DECODE).weight_bytes == copy
    assert work_of(shape, MIXED).weight_bytes == full + copy
    again = batch_shape([(3, 40)], 1, 0, num_generated_tokens=30, num_generated_rows=1)
    assert work_of(shape, again).weight_bytes == full - OUTPUT + copy, "computed again after a preemption"


@pytest.mark.parametrize("name", ["gptq-4", "awq", "packed-8-order", "bytes-dynamic", "float8-block"])
def test_a_card_of_a_quantised_checkpoint_has_the_bytes_of_its_file(name, make_quantized):
    folder, _ = make_quantized(name)
    card, shape = (
        model_card(str(folder)),
        TorchExecutor.from_folder(folder, device="cpu", num_blocks=2, backend=TorchAttention).model_shape,
    )
    tensors = load_file(folder / "model.safetensors")
    stored = {key: tensor.numel() * tensor.element_size() for key, tensor in tensors.items()}
    output = "lm_head." if any(key.startswith("lm_head.") for key in stored) else "model.embed_tokens."
    assert card.output_bytes == sum(size for key, size in stored.items() if key.startswith(output))
    assert card.layer_bytes == sum(
        size for key, size in stored.items() if key.startswith(("model.layers.", "model.norm."))
    )
    assert card.shape().layer_bytes == card.layer_bytes
    dense = 4 * (card.num_parameters - 2 * card.vocab_size * card.hidden_size)
    assert shape.layer_bytes == pytest.approx(card.layer_bytes, rel=0.3) and card.layer_bytes < 0.6 * dense


def test_a_simulated_step_is_as_long_as_its_passes():
    """On a card whose arithmetic costs nothing, time is bytes."""
    hardware = hardware_card("h100")
    bandwidth = hardware.memory_bandwidth * hardware.bandwidth_efficiency
    card = model_card("llama-3-8b")
    output = card.vocab_size * card.hidden_size
    in_layers = card.num_parameters - 2 * output
    for name, width in (("int8", 1), ("int4", 0.5), ("fp8", 1)):
        cost = CostModel(hardware, card, decode_weight_dtype=name)
        output_width = 1 if HEADS.get(name) else 2
        copy, full = width * in_layers + output_width * output, 2 * (in_layers + output)
        for batch, read in ((PROMPTS, full), (DECODE, copy), (MIXED, full + copy)):
            assert cost.step_time(batch).linear == pytest.approx(read / bandwidth)
        assert cost.second_weight_bytes == width * in_layers + (output if HEADS.get(name) else 0)


def test_a_plan_says_which_of_its_tokens_are_behind_their_prompts():
    def item(start, count, prompt, logits):
        return ScheduledSequence(start, start, array("i", [5] * count), array("i", [0]), logits, 0, prompt)

    plan = StepPlan(0, (item(0, 7, 9, 0), item(3, 9, 10, 1), item(20, 4, 10, 4), item(2, 3, None, 1)))
    shape = shape_of(plan)
    assert (shape.num_generated_tokens, shape.num_generated_rows) == (2 + 4, 1 + 4)


def test_a_trace_and_the_metrics_count_both_copies():
    counts = EngineCounts()
    recorder = Recorder()
    llm = LLM(
        MODEL_PATH, attention_backend="torch", decode_weight_dtype="int8", trace=recorder,
        max_num_batched_tokens=8, num_gpu_blocks_override=12, block_size=4, max_model_len=40,
    )  # fmt: skip
    prompts = ["Once upon a time there was", "A block table", "The scheduler"]
    llm.generate(prompts, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True), use_tqdm=False)
    recorder.close()
    header, *events = recorder.events
    for event in (header, *events):
        counts.emit(event)
    trace = make_trace(header, events)
    told = Told(trace)
    for name in ("estimated_flops_per_gpu", "estimated_read_bytes_per_gpu", "estimated_write_bytes_per_gpu"):
        assert counts.counters[name] == round(told.counters[name]), name
    copy = layer_bytes("int8") + OUTPUT
    of_decodes = [
        work_by_phase(header.model, record)[Phase.DECODE].weight_bytes
        for record in make_timeline(trace).records
        if any(item.phase is Phase.DECODE for item in record.batch)
    ]
    assert of_decodes and set(of_decodes) == {copy}
