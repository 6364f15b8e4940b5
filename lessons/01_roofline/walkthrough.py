# %% [markdown]
# # 01 Roofline, step by step
#
# What can your machine do at most, and how near does a real step come to it? First one core is measured: how
# fast it reads memory, how fast it multiplies. Then a model with random weights (27 million, 109 MB: text is
# of no interest here) serves batches of 1 to 32 requests, and every step is held against what was predicted.
# At the end, the same for a device that is not here. Before each result there is a question: answer it first.

# %%
from array import array
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from lessons.walkthroughs import trace_path
from minivllm import SamplingParams
from minivllm.config import SchedulerConfig
from minivllm.executor.simulated_executor import VirtualClock
from minivllm.lab.bench.limits import measure_limits
from minivllm.lab.simulation.cards import hardware_card, model_card
from minivllm.lab.simulation.cost_model import CostModel
from minivllm.lab.simulation.replica import Replica
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import open_subject
from minivllm.lab.workloads.workload import WorkloadRequest
from minivllm.trace.events import HardwareShape, ModelShape
from minivllm.trace.reader import read_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.timeline import StepRecord, Timeline, make_timeline
from minivllm.trace.work import BYTES_PER_ELEMENT, StepWork, attainable, batch_shape, ridge, work_of

TRACES = ("01_this_machine.jsonl", "01_a100.jsonl")
PAGE = "roofline"
PICTURES = {
    "machine.svg": ("roofline", 0, 29),
    "a100.svg": ("roofline", 1, 31),
    "batch.svg": ("decode_intensity", 1, 31),
}

BATCHES = (1, 2, 4, 8, 16, 32)
PROMPT, ANSWER = 16, 5
opened = open_subject(Settings(model="small", threads=1))
subject = opened.__enter__()
model = subject.executor.model_shape

# %% [markdown]
# ## How much must a step compute, and how much must it read?
#
# Predict: one token takes 2 FLOP for each weight of 4 bytes. How many FLOP for each byte is that? And for 256
# tokens of a prompt?


# %%
def cost(shape: ModelShape, batch: Sequence[tuple[int, int]]) -> StepWork:
    """The cost of a step: of each sequence, the tokens that are computed, and the new ones."""
    return work_of(shape, batch_shape(batch))


def told(what: str, work: StepWork) -> None:
    print(f"{what}: {work.flops / 1e6:9,.1f} MFLOP, {work.num_bytes / 1e6:6.1f} MB", end="; ")
    print(f"{work.intensity:6.2f} FLOP for each byte")


told("one token after 16        ", cost(model, [(16, 1)]))
told("16 sequences, a token each", cost(model, [(16, 1)] * 16))
told("a prompt of 256 tokens    ", cost(model, [(0, 256)]))

# %% [markdown]
# ## What can this machine do?
#
# Predict: how many gigabytes does memory deliver to one core in a second? How many additions and
# multiplications can the core do meanwhile? It is measured now, and once more after the run, since others may
# use the machine, too: the best counts.


# %%
def measured() -> tuple[float, float]:
    limits = measure_limits(int(cost(model, [(16, 1)]).weight_bytes), torch.float32)
    return limits.flops_per_second, limits.bytes_per_second


def serve(runs: Sequence[tuple[int, int]], recorder: Recorder) -> None:
    """Serve batch after batch: so many requests at a time, with prompts of so many tokens."""
    engine = subject.engine(recorder)
    params = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True)
    for number, (num_requests, length) in enumerate(runs):
        for index in range(num_requests):
            prompt = [3 + (7 * place + index) % 900 for place in range(length)]
            engine.add_request(f"{number}.{index}", prompt, params)
        while engine.has_unfinished_requests():
            engine.step()


before = measured()
serve([(4, PROMPT)], Recorder())
recorder = Recorder()
serve([*((size, PROMPT) for size in BATCHES), (1, 500)], recorder)
after = measured()
peak, bandwidth = (max(pair) for pair in zip(before, after, strict=True))
print(f"matrix products {peak / 1e9:,.1f} GFLOP/s, memory {bandwidth / 1e9:,.1f} GB/s", end="; ")
print(f"ridge point {ridge(peak, bandwidth):.1f} FLOP for each byte")
need = ridge(peak, bandwidth) * BYTES_PER_ELEMENT[model.dtype] / 2
print(f"so a step should have {need:.1f} tokens or more, to be worth reading the weights")


# %%
def keep(recorder: Recorder, hardware: HardwareShape, path: Path) -> Timeline:
    """Write what was recorded, with the limits that are known only now."""
    header, *events = recorder.events
    with Recorder(path) as out:
        out.emit(msgspec.structs.replace(header, hardware=hardware))
        for event in events:
            out.emit(event)
    return make_timeline(read_trace(path))


path = trace_path(TRACES[0])
mine = HardwareShape("one core of this machine, measured", peak, bandwidth)
run = keep(recorder, mine, path)
opened.__exit__(None, None, None)

# %% [markdown]
# ## Which batch is worth its reading?
#
# Predict: a step that decodes one sequence, and one that decodes 16. How many times as long does the second
# one take, at least? And how near does a real step come to that?


# %%
def batch_of(record: StepRecord) -> list[tuple[int, int]]:
    return [(item.start, item.num_tokens) for item in record.batch]


def floor_of(work: StepWork, hardware: HardwareShape) -> float:
    """The least seconds of a step: its products, then its attention, each computing and reading at once."""
    flops, num_bytes = hardware.peak_flops, hardware.memory_bandwidth
    products = max(work.linear_flops / flops, work.weight_bytes / num_bytes)
    return products + max(work.attention_flops / flops, work.kv_bytes / num_bytes)


def decodes(timeline: Timeline) -> list[StepRecord]:
    """Of all steps that decode as many sequences the fastest: what disturbs a step is not its cost."""
    best: dict[int, StepRecord] = {}
    for record in timeline.records:
        if all(count == 1 for _, count in batch_of(record)):
            other = best.setdefault(len(record.batch), record)
            if record.seconds["model"] < other.seconds["model"]:
                best[len(record.batch)] = record
    return list(best.values())


def prefills(timeline: Timeline) -> list[StepRecord]:
    """All steps that compute prompts."""
    return [record for record in timeline.records if any(count > 1 for _, count in batch_of(record))]


def compare(
    records: Sequence[StepRecord], shape: ModelShape, hardware: HardwareShape, clock: str = "measured"
) -> None:
    print(f"sequences   tokens   FLOP/byte       at least    {clock:>9s}   of the roof")
    for record in records:
        batch = batch_of(record)
        work, took = cost(shape, batch), record.seconds["model"]
        roof = attainable(work.intensity, hardware.peak_flops, hardware.memory_bandwidth)
        least, tokens = floor_of(work, hardware), sum(count for _, count in batch)
        print(f"{len(batch):9d} {tokens:8d} {work.intensity:11.2f} {1e3 * least:11.2f} ms", end="")
        print(f"{1e3 * took:11.2f} ms {work.flops / took / roof:13.0%}")


compare(decodes(run), model, mine)

# %% [markdown]
# ## And prompts?
#
# Predict: 32 prompts of 16 tokens are 512 tokens in a step. What limits it, memory or arithmetic? And is one
# prompt of 500 tokens cheaper, or dearer?

# %%
compare(prefills(run), model, mine)

# %% [markdown]
# ## Does a large batch make everything cheap?
#
# Each sequence has keys and values of its own. Predict: how does the intensity of the weights grow with the
# batch, and how that of attention? And if the contexts are long?

# %%
llama, a100 = model_card("llama-2-7b").shape(), hardware_card("a100-40gb")
print("Llama 2 7B        FLOP for each byte of   weights   keys and values   both")
for context in (100, 1000, 4000):
    for size in (1, 16, 256):
        work = cost(llama, [(context, 1)] * size)
        weights, kv = work.linear_flops / work.weight_bytes, work.attention_flops / work.kv_bytes
        print(
            f"{size:4d} sequences after {context:5,} tokens {weights:17.0f} {kv:17.2f} {work.intensity:6.1f}"
        )

# %% [markdown]
# ## A device that is not here
#
# The same scheduler, in virtual time, on an A100 with Llama 2 7B. The data sheet says 312 TFLOP/s and 1,555
# GB/s, so the ridge point lies at 201 FLOP for each byte. Weights have 2 bytes, so a step is worth its
# reading from 201 tokens on. (The simulator assumes that a real step comes to about half of the roof.)
#
# Predict: 64 sequences decode, after 300 tokens each. Left of the ridge, or right of it? And 128? Where would
# 201 be?

# %%
clock, kept = VirtualClock(), Recorder()
kept.use_clock(clock)
replica = Replica(
    SchedulerConfig(2600, 16, 128, 40_000, 2048),
    CostModel(a100, model_card("llama-2-7b")),
    recorder=kept,
    clock=clock,
    model_shape=llama,
)
for size in (1, 2, 4, 8, 16, 32, 64, 128):
    for index in range(size):
        replica.add(WorkloadRequest(f"{size}.{index}", clock(), array("i", [7] * 300), 4, 4))
    while (end := replica.begin()) is not None:
        clock.now = end
        replica.finish()
path_of_a100 = trace_path(TRACES[1])
theirs = keep(kept, a100.shape(), path_of_a100)
compare(decodes(theirs), llama, a100.shape(), "simulated")
print("prompts:")
compare(prefills(theirs)[:3], llama, a100.shape(), "simulated")
print(f"\nAll steps under their roof, on the page Roofline: minivllm dashboard {path}")
