# %% [markdown]
# # 08 Preemption, step by step
#
# A, B and C write answers until the pool is full, and one of them must go. The real engine serves them with
# the model that comes with minivllm, on one core of this machine: once with `recompute`, once with `swap`.
# Then both are measured for requests of many lengths, here and by formula for a GPU. Time is processor time,
# so nothing else that runs here counts. Before each result there is a question: answer it first.

# %%
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import torch

from lessons.walkthroughs import times, trace_path
from minivllm import LLM, SamplingParams
from minivllm.config import SchedulerConfig
from minivllm.decoding.sampler import Sampler
from minivllm.engine.engine import Engine
from minivllm.executor.simulated_executor import SimulatedExecutor, SimulatedSampler, VirtualClock
from minivllm.lab.simulation.cards import hardware_card, model_card
from minivllm.lab.simulation.cost_model import CostModel
from minivllm.model.tiny import MODEL_PATH
from minivllm.scheduling.plan import StepPlan
from minivllm.scheduling.policy import SchedulerView, SchedulingPolicy
from minivllm.scheduling.request import Request
from minivllm.trace.preemption_costs import crossing, preemption_costs
from minivllm.trace.reader import read_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.timeline import Timeline, make_timeline

TRACES = (
    "08_recompute.jsonl",
    "08_swap.jsonl",
    "08_cost_recompute.jsonl",
    "08_cost_swap.jsonl",
    "08_a100_recompute.jsonl",
    "08_a100_swap.jsonl",
)
PAGE = "compare"
PICTURES = {
    "comparison.svg": ("comparison", 0, -1),
    "down.svg": ("block_pool", 1, 15, {"request": "C"}),
    "up.svg": ("block_pool", 1, 30, {"request": "C"}),
    "measured.svg": ("preemption_cost", 2, 0),
    "a100.svg": ("preemption_cost", 4, 0),
}

BLOCK_SIZE, NUM_BLOCKS, NUM_HOST_BLOCKS = 32, 37, 16
REQUESTS = (  # name, step of arrival, tokens of the prompt, tokens of the answer
    ("A", 0, 370, 30),
    ("B", 0, 370, 30),
    ("C", 0, 370, 30),
    ("D", 20, 20, 6),
)
TRIES = times(6)
torch.set_num_threads(1)
llm = LLM(MODEL_PATH, block_size=BLOCK_SIZE, num_gpu_blocks_override=44, swap_space=0.002)
tokenizer = llm.get_tokenizer()
TEXT = tokenizer.encode("The cat sat on the mat. One sunny day, a small fox went for a walk. " * 200)


class Timed:
    """The real executor; a step takes as many seconds of the virtual clock as `seconds` says."""

    def __init__(self, clock: VirtualClock, seconds: Sequence[float]) -> None:
        self.clock, self.seconds, self.last_attention_seconds = clock, seconds, 0.0

    def execute(self, plan: StepPlan) -> Any:
        self.clock.advance(self.seconds[plan.step])
        return llm.engine.executor.execute(plan)


def make_engine(
    config: SchedulerConfig, recorder: Recorder, llm: LLM = llm, executor: Any = None, **more: Any
) -> Engine:
    """An engine on the model and the memories that `llm` has."""
    vocab_size = llm.engine.vocab_size
    return Engine(
        config,
        executor or llm.engine.executor,
        Sampler(vocab_size),
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        recorder=recorder,
        model_shape=llm.engine.executor.model_shape,
        **more,
    )


def add(engine: Engine, name: str, prompt: Sequence[int], length: int) -> None:
    params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
    engine.add_request(name, list(prompt), params, prompt="")


Answers = dict[str, tuple[int, ...]]


def serve(num_blocks: int, num_host_blocks: int, path: Path, tries: int = 1) -> tuple[Timeline, Answers]:
    """Serve all requests several times, then once more: now each step takes the least time that it took."""
    mode = "swap" if num_host_blocks else "recompute"
    config = SchedulerConfig(
        num_blocks, BLOCK_SIZE, 8, 2048, 1024, preemption_mode=mode, num_host_blocks=num_host_blocks
    )
    measured = [
        [record.end - record.start for record in serve_once(config, path, clock=process_time)[0].records]
        for _ in range(tries)
    ]
    clock = VirtualClock()
    timed = Timed(clock, [min(step) for step in zip(*measured, strict=True)])
    return serve_once(config, path, executor=timed, clock=clock, sleep=clock.advance)


def serve_once(config: SchedulerConfig, path: Path, **more: Any) -> tuple[Timeline, Answers]:
    answers: Answers = {}
    with Recorder(path) as recorder:
        recorder.use_clock(more["clock"])
        engine, coming = make_engine(config, recorder, **more), list(REQUESTS)
        while coming or engine.has_unfinished_requests():
            while coming and coming[0][1] <= engine.num_steps:
                name, _, count, length = coming.pop(0)
                add(engine, name, TEXT[ord(name) : ord(name) + count], length)
            for output in engine.step():
                if output.finished:
                    answers[output.request_id] = tuple(output.outputs[0].token_ids)
    return make_timeline(read_trace(path)), answers


paths = [trace_path(name) for name in TRACES]
serve(44, 0, paths[0])  # the first run of all is slower: it warms the caches
recompute, answers = serve(NUM_BLOCKS, 0, paths[0], TRIES)

# %% [markdown]
# ## Who has to go, and when?
#
# Each prompt has 370 tokens, so 12 blocks of 32, with room for 14 tokens more. The pool has 37 blocks.
#
# Predict: in which step is the pool too small, who needs a block then, and who is preempted for it? D, with
# 20 tokens, arrives in step 20. Eleven blocks are free then. Does it run at once?


# %%
def show(timeline: Timeline) -> None:
    """Steps in which something happens besides decoding."""
    for record in timeline.records:
        words = [f"{event.request} is preempted ({event.mode})" for event in record.preempted]
        words += [f"{sum(len(e.blocks) for e in record.swapped_out)} blocks down"] * bool(record.swapped_out)
        words += [f"{sum(len(e.blocks) for e in record.swapped_in)} blocks up"] * bool(record.swapped_in)
        words += [f"{name} arrives" for name in record.queued] + [f"{name} is done" for name in record.ended]
        words += [f"{name} is admitted" for name in record.scheduled]
        tokens = " ".join(f"{item.request} {item.num_tokens}" for item in record.batch)
        if words:
            print(f"step {record.step:2d}: {tokens:<20s} {', '.join(words)}")


show(recompute)

# %% [markdown]
# ## The same with a swap space
#
# 16 blocks in the host's memory. C's blocks move down, and later up again.
#
# Predict: how many blocks are moved? How many tokens does C compute in the step in which it comes back? And
# does any request say something else than in a pool that holds all four?

# %%
swap, swapped = serve(NUM_BLOCKS, NUM_HOST_BLOCKS, paths[1], TRIES)
show(swap)
_, roomy = serve(44, 0, trace_path("08_other.jsonl"))
assert answers == swapped == roomy
print(
    "\nall four say the same with recompute, with swap, and in a pool of 44 blocks, where none is preempted"
)

# %% [markdown]
# ## What if the host is full, too?
#
# Predict: with 10 host blocks instead of 16, C's blocks do not all fit. Are ten of them swapped out?

# %%
short, still = serve(NUM_BLOCKS, 10, trace_path("08_other.jsonl"))
for record in short.records:
    for event in record.preempted:
        print(f"step {record.step}: {event.request}: {event.mode}, because {event.reason}")
assert still == roomy

# %% [markdown]
# ## Who preempts whom for ever?
#
# A rule that sounds fair: "the request with the least in the cache comes first". Here it is as a policy of
# the engine. Two requests, and a pool in which only one of them fits.
#
# Predict: X runs, Y waits and has nothing in the cache. What happens in the next step? And in the one after?


# %%
class LeastComputedFirst(SchedulingPolicy):
    def rank(self, request: Request) -> float:
        return sum(sequence.num_computed_tokens for sequence in request.sequences)

    def schedule_order(self, view: SchedulerView) -> Iterable[Request]:
        return sorted([*view.running, *view.waiting], key=self.rank)


def steps_of(policy: SchedulingPolicy | None) -> tuple[int, int, list[str]]:
    """Steps until both are done, tokens that were computed, and who was preempted, in order."""
    path = trace_path("08_other.jsonl")
    with Recorder(path) as recorder:
        config = SchedulerConfig(8, BLOCK_SIZE, 8, 64, 256)
        engine = make_engine(config, recorder, policy=policy)
        for name in "XY":
            add(engine, name, TEXT[ord(name) : ord(name) + 200], 8)
        while engine.has_unfinished_requests():
            engine.step()
    timeline = make_timeline(read_trace(path))
    gone = [event.request for record in timeline.records for event in record.preempted]
    computed = sum(item.num_tokens for record in timeline.records for item in record.batch)
    return timeline.num_steps, computed, gone


for name, policy in (("fcfs", None), ("least computed first", LeastComputedFirst())):
    steps, computed, gone = steps_of(policy)
    counts = dict(Counter(gone))
    print(f"{name}: {steps} steps, {computed:,} tokens computed, preempted: {counts or 'none'}")
    if gone:
        print(f"    in this order: {' '.join(gone[:12])} …")

# %% [markdown]
# ## What does each way cost?
#
# Seven preemptions each of requests with 8 to 512 tokens. A step that brings a request back is compared with
# the next one, in which it only decodes; of the seven, the least time counts.
#
# Predict: is there a length at which both cost the same? To recompute is to run the model; to swap is to copy
# 2,560 bytes for each token, there and back. Which grows faster?

# %%
LENGTHS = (8, 16, 32, 128, 512)


def preempt_often(
    make: Callable[[SchedulerConfig, Recorder, Any], Engine],
    mode: str,
    path: Path,
    *,
    block_size: int,
    lengths: Sequence[int],
    turns: int,
    clock: Callable[[], float],
) -> Timeline:
    """F fills the rest of the pool, and its third token needs one block more: so X goes, and comes back."""
    num_blocks = lengths[-1] // block_size + 2
    config = SchedulerConfig(
        num_blocks,
        block_size,
        max_num_seqs=2,
        max_num_batched_tokens=num_blocks * block_size,
        max_model_len=num_blocks * block_size,
        preemption_mode=mode,
        num_host_blocks=num_blocks if mode == "swap" else 0,
        watermark=0.0,
    )
    with Recorder(path) as recorder:
        recorder.use_clock(clock)
        engine = make(config, recorder, clock)
        for turn in range(turns):
            for length in lengths:
                rest = num_blocks - length // block_size
                add(engine, f"F{length}.{turn}", (TEXT * 4)[: rest * block_size - 1], 4)
                add(engine, f"X{length}.{turn}", (TEXT * 4)[: length - 2], 4)
                while engine.has_unfinished_requests():
                    engine.step()
    return make_timeline(read_trace(path))


def on_this_machine(config: SchedulerConfig, recorder: Recorder, clock: Any) -> Engine:
    return make_engine(config, recorder, by_eight, clock=clock)


by_eight = LLM(MODEL_PATH, block_size=8, num_gpu_blocks_override=66, swap_space=0.002)
measured = [
    preempt_often(
        on_this_machine, mode, path, block_size=8, lengths=LENGTHS, turns=times(7), clock=process_time
    )
    for mode, path in zip(("recompute", "swap"), paths[2:4], strict=True)
]


def table(runs: Sequence[Timeline]) -> None:
    costs = preemption_costs(runs)
    print("computed tokens   recompute        swap")
    for count in costs["recompute"]:
        print(f"{count:15,}", end="")
        print("".join(f"{1000 * costs[mode][count]:9.2f} ms" for mode in ("recompute", "swap")))
    at = crossing(costs)
    print(f"swapping is cheaper from about {at:,.0f} tokens on" if at else "the lines do not cross")


table(measured)

# %% [markdown]
# ## And on a GPU?
#
# An A100 computes thousands of times as fast as this core, and its host's memory is behind PCIe. Predict:
# which of the two lines goes down more, compared with here? And for short requests: a step that decodes reads
# all weights anyway. What do a hundred more tokens in it cost?
#
# The engine is the same; the time of each step is what the figures of the data sheets say (25 GB/s of PCIe
# 4.0, 312 TFLOP/s at 60 %, 1,555 GB/s at 80 %, 2.5 µs for each transfer). Keys and values of each layer are a
# transfer of their own.


# %%
def on_a_gpu(cost: CostModel) -> Callable[[SchedulerConfig, Recorder, Any], Engine]:
    def make(config: SchedulerConfig, recorder: Recorder, clock: VirtualClock) -> Engine:
        executor, sampler = SimulatedExecutor(cost, clock), SimulatedSampler()
        return Engine(
            config,
            executor,
            sampler,
            vocab_size=4096,
            tokenizer=tokenizer,
            recorder=recorder,
            model_shape=cost.model.shape(),
            clock=clock,
            sleep=clock.advance,
        )

    return make


ON_A_GPU = (64, 128, 256, 512, 1024, 2048, 4096)
for card, model, names in (
    ("a100-40gb", "llama-2-7b", paths[4:6]),
    ("a100-40gb", "llama-3-8b", [trace_path("08_other.jsonl")] * 2),
    ("h100", "llama-3-8b", [trace_path("08_other.jsonl")] * 2),
):
    cost = CostModel(hardware_card(card), model_card(model))
    runs = [
        preempt_often(
            on_a_gpu(cost), mode, path, block_size=16, lengths=ON_A_GPU, turns=1, clock=VirtualClock()
        )
        for mode, path in zip(("recompute", "swap"), names, strict=True)
    ]
    print(
        f"\n{cost.model.title} on one {cost.hardware.title}, {cost.model.kv_bytes_per_token:,} bytes a token"
    )
    table(runs)
trace_path("08_other.jsonl").unlink()
print(f"\nThe first two runs, side by side on the page Compare: minivllm dashboard {paths[0]}")
