"""Every engine gets the runner that `choose.py` promises, and a step goes to one that supports it."""

import numpy as np
import pytest
import torch

from minivllm.executor.attention import numba_cpu_backend
from minivllm.executor.attention.kernel_backend import KernelAttention, MicroscopeAttention
from minivllm.executor.attention.metadata import AttentionMetadata
from minivllm.executor.attention.numba_cpu_backend import NumbaCpuAttention
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.runners.choose import choose_runner
from minivllm.executor.runners.compiled import CompiledRunner
from minivllm.executor.runners.eager import EagerRunner
from minivllm.executor.runners.fused import FusedRunner
from minivllm.executor.runners.graphs import GraphRunner
from minivllm.executor.runners.model_runner import FirstSupporting, ModelRunner
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder

CPU = torch.device("cpu")


class FakeCudaAttention(MicroscopeAttention):
    """The kernels of a GPU, where there is none: no step is run here."""

    name = "numba-cuda"


def runners_of(backend, *, hidden_act="silu", **settings):
    """The classes of the chosen runners, in order, and the runners."""
    config = ModelConfig.from_dict(
        {"architectures": ["LlamaForCausalLM"], "vocab_size": 9, "hidden_size": 64, "intermediate_size": 8,
         "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_act": hidden_act,
         "max_position_embeddings": 50}
    )  # fmt: skip
    decoder = Decoder(config, torch.float32, CPU)
    for _, view in decoder.views():
        view.normal_()
    runner = choose_runner(decoder, backend(config, KVStorage(config, 4, 4, torch.float32, CPU)), **settings)
    runners = runner.runners if isinstance(runner, FirstSupporting) else (runner,)
    return [type(runner) for runner in runners], runners


def test_plain_attention_is_run_eagerly():
    for backend in (TorchAttention, MicroscopeAttention):
        assert runners_of(backend)[0] == [EagerRunner]


def test_a_cpu_compiles_whole_steps_of_the_models_that_it_knows():
    assert runners_of(NumbaCpuAttention)[0] == [CompiledRunner]
    assert runners_of(NumbaCpuAttention, hidden_act="gelu")[0] == [FusedRunner]


def test_a_cpu_with_matrix_units_has_a_runner_for_large_steps_beside_it(monkeypatch):
    monkeypatch.setattr(numba_cpu_backend, "has_matrix_units", lambda dtype: True)
    assert runners_of(NumbaCpuAttention)[0] == [CompiledRunner, FusedRunner]
    assert runners_of(NumbaCpuAttention, hidden_act="gelu")[0] == [FusedRunner]


def test_a_gpu_replays_decode_steps_within_the_limits_of_the_engine():
    assert issubclass(FakeCudaAttention, KernelAttention)
    kinds, (graphs, _) = runners_of(FakeCudaAttention, max_num_seqs=5, max_model_len=18)
    assert kinds == [GraphRunner, EagerRunner]
    assert (graphs.max_blocks, graphs.sizes[-1]) == (5, 5), "18 tokens are 5 blocks of 4"
    _, (graphs, _) = runners_of(FakeCudaAttention)
    assert (graphs.max_blocks, graphs.sizes[-1]) == (13, 128), "without limits, the model's own 50 tokens"


def test_a_gpu_that_is_to_compute_every_step_anew_does():
    assert runners_of(FakeCudaAttention, enforce_eager=True)[0] == [EagerRunner]


class FakeRunner(ModelRunner):
    """Supports steps of at most so many rows, and says which runner has run."""

    def __init__(self, most, seconds):
        self.most, self.seconds = most, seconds

    def supports(self, metadata, num_padding):
        return metadata.num_tokens + num_padding <= self.most

    def run(self, metadata, num_padding):
        self.attention_seconds = self.seconds
        return torch.tensor([self.most])


@pytest.mark.parametrize(
    ("num_tokens", "num_padding", "expected"), [(1, 0, 2), (2, 0, 2), (2, 1, 7), (5, 0, 7)]
)
def test_a_step_goes_to_the_first_runner_that_supports_it(num_tokens, num_padding, expected):
    runner = FirstSupporting(FakeRunner(2, 0.25), FakeRunner(7, 0.5), FakeRunner(100, 1.0))
    rows = np.arange(num_tokens)
    step = AttentionMetadata(rows, rows, rows, rows, rows, rows[None], rows)
    assert runner.run(step, num_padding).item() == expected
    assert runner.attention_seconds == {2: 0.25, 7: 0.5}[expected]
