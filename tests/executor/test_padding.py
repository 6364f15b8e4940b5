"""Padding is computed, and changes nothing."""

import msgspec
import pytest
import torch

from minivllm import LLM, SamplingParams
from minivllm.executor.runners.eager import EagerRunner
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.model.tiny import MODEL_PATH
from minivllm.trace.events import BatchPlanned, SequenceFinished, TokensSampled
from minivllm.trace.recorder import Recorder


class Counting:
    """An executor that counts the rows that go through the model."""

    def __init__(self, inner):
        self.inner, self.rows = inner, []
        forward = inner.decoder.forward
        inner.runner = EagerRunner(inner.decoder, inner.attention)  # a compiled step does not pass there

        def counted(token_ids, positions, attend, rows):
            self.rows.append(len(token_ids))
            return forward(token_ids, positions, attend, rows)

        inner.decoder.forward = counted


@pytest.mark.parametrize(
    ("num_padding", "dtype"), [(0, "float64"), (1, "float64"), (50, "float64"), (50, "float32")]
)
def test_padding_rows_go_through_the_model_and_leave_no_mark(num_padding, dtype):
    plans = []
    logits, storages = [], []
    for padding in (0, num_padding):
        executor = TorchExecutor.from_folder(MODEL_PATH, dtype=dtype, num_blocks=16)
        executor.storage.cells.zero_()
        counting = Counting(executor)
        if not plans:
            plans = make_plans()
        seen = [executor.execute(msgspec.structs.replace(plan, num_padding_tokens=padding)) for plan in plans]
        assert counting.rows == [plan.total_num_scheduled_tokens + padding for plan in plans]
        logits.append(seen)
        storages.append(executor.storage)
    for plain, padded in zip(*logits, strict=True):
        torch.testing.assert_close(plain, padded, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(storages[0].cells, storages[1].cells, atol=1e-5, rtol=1e-5)


def make_plans():
    """A prefill of two prompts, and three decodes of both."""
    from minivllm.config import SchedulerConfig
    from minivllm.engine.core import EngineCore
    from minivllm.scheduling.plan import NextToken, Sampled
    from minivllm.scheduling.request import Request, Sequence

    core = EngineCore(SchedulerConfig(num_blocks=16))
    for number, prompt in enumerate(([5, 6, 7, 8], [9] * 20)):
        sequence = Sequence(number, prompt)
        core.add(Request(str(number), [sequence], 8, 0.0))
    plans = []
    for step in range(4):
        plan = core.plan_step()
        plans.append(plan)
        core.finish_step(plan, Sampled([NextToken(item.seq_id, 3 + step) for item in plan.scheduled]))
    return plans


def test_a_static_batch_says_what_continuous_batching_says_and_the_trace_tells_its_padding():
    prompts = ["Once upon a time,", "从前，", "The " * 30, "A block"]
    params = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in (4, 20, 9, 13)]
    texts, padding = {}, {}
    for policy in ("fcfs", "static(batch_size=3, timeout_seconds=0.01)"):
        recorder = Recorder()
        llm = LLM(
            MODEL_PATH,
            dtype="float64",
            max_model_len=128,
            num_gpu_blocks_override=64,
            scheduling_policy=policy,
            trace=recorder,
        )
        outputs = llm.generate(prompts, params, use_tqdm=False)
        texts[policy] = [output.outputs[0].text for output in outputs]
        planned = [event for event in recorder.events if isinstance(event, BatchPlanned)]
        padding[policy] = sum(event.num_padding_tokens for event in planned)
        if policy == "fcfs":
            assert padding[policy] == 0
            continue
        lengths = [len(output.prompt_token_ids) for output in outputs]
        longest = max(lengths[:3])
        prefill = 3 * longest - sum(lengths[:3])
        held = sum(20 - count for count in (4, 20, 9))
        assert padding[policy] == prefill + held
        kinds = [
            type(event) for event in recorder.events if isinstance(event, TokensSampled | SequenceFinished)
        ]
        assert kinds[20:23] == [SequenceFinished] * 3, "after the twentieth token of the slowest, all three"
    assert len(set(map(tuple, texts.values()))) == 1
