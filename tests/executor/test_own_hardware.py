"""A run that is traced says on what it took place; one that is not measures nothing."""

import torch

from minivllm.engine import create_engine as module
from minivllm.executor.own_hardware import own_hardware
from minivllm.llm import LLM
from minivllm.model.tiny import MODEL_PATH
from minivllm.trace.recorder import Recorder


def test_the_roof_of_this_machine_is_measured_once():
    found = own_hardware("cpu", "float32")
    assert found.peak_flops > 0 and found.memory_bandwidth > 0 and found.num_devices == 1
    assert f"{torch.get_num_threads()} thread" in found.name and found.name.endswith(", measured")
    assert own_hardware("cpu", "float32") is found
    assert own_hardware("cpu", "no dtype of torch").peak_flops > 0


def test_a_trace_says_on_what_it_was_recorded_and_without_one_nothing_is_measured(monkeypatch):
    recorder = Recorder()
    LLM(MODEL_PATH, trace=recorder, attention_backend="torch", num_gpu_blocks_override=8, max_model_len=64)
    assert recorder.events[0].hardware == own_hardware("cpu", "float32")
    monkeypatch.setattr(module, "own_hardware", lambda *_: 1 / 0)
    LLM(MODEL_PATH, attention_backend="torch", num_gpu_blocks_override=8, max_model_len=64)
