# %% [markdown]
# # 07 Continuous batching, step by step
#
# Six requests, three slots in the batch (`max_num_seqs`), and the real engine with the model that comes with
# minivllm: once under `static`, once under `fcfs` (first come, first served: continuous batching). Requests
# arrive while others run. So that every run is the same, each step lasts exactly one second of a virtual
# clock. Before each result there is a question: answer it first.

# %%
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lessons.walkthroughs import trace_path
from minivllm import LLM, SamplingParams
from minivllm.config import SchedulerConfig
from minivllm.decoding.sampler import Sampler
from minivllm.engine.engine import Engine
from minivllm.executor.simulated_executor import VirtualClock
from minivllm.model.tiny import MODEL_PATH
from minivllm.scheduling.plan import StepPlan
from minivllm.trace.reader import read_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.timeline import Timeline, make_timeline

TRACES = ("07_static.jsonl", "07_fcfs.jsonl")
PAGE = "compare"
PICTURES = {
    "comparison.svg": ("comparison", 0, 9, {"unit": "step"}),
    "batches.svg": ("batch_composition", 1, 9),
}

MAX_NUM_SEQS, BUDGET = 3, 48
REQUESTS = (  # name, step of arrival, prompt, tokens of the answer
    ("A", 0, "Question: What is a KV cache?\nAnswer:", 4),
    ("B", 0, "Once upon a time,", 14),
    ("C", 0, "Question: What is a block table?\nAnswer:", 6),
    ("D", 1, "Question: What is continuous batching?\nAnswer:", 5),
    ("E", 2, "Question: What is paging?\nAnswer:", 4),
    ("F", 3, "The cat sat on the mat. " * 8, 4),
)
llm = LLM(MODEL_PATH, num_gpu_blocks_override=64)


class Timed:
    """The real executor; a step takes as many seconds of the virtual clock as `cost` says."""

    def __init__(self, clock: VirtualClock, cost: Callable[[StepPlan], float]) -> None:
        self.clock, self.cost, self.last_attention_seconds = clock, cost, 0.0

    def execute(self, plan: StepPlan) -> Any:
        self.clock.advance(self.cost(plan))
        return llm.engine.executor.execute(plan)


def serve(policy: str, path: Path, cost: Callable[[StepPlan], float]) -> dict[str, str]:
    """Serve all requests; returns the answers."""
    clock = VirtualClock()
    config = SchedulerConfig(64, 16, MAX_NUM_SEQS, BUDGET, 256, scheduling_policy=policy)
    vocab_size = llm.engine.vocab_size
    answers: dict[str, str] = {}
    with Recorder(path) as recorder:
        recorder.use_clock(clock)
        engine = Engine(
            config,
            Timed(clock, cost),
            Sampler(vocab_size),
            vocab_size=vocab_size,
            tokenizer=llm.engine.tokenizer,
            recorder=recorder,
            model_shape=llm.engine.executor.model_shape,
            clock=clock,
            sleep=clock.advance,
        )
        coming = list(REQUESTS)
        while coming or engine.has_unfinished_requests():
            while coming and coming[0][1] <= clock():
                name, arrival, prompt, length = coming.pop(0)
                params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
                tokens = llm.get_tokenizer().encode(prompt)
                engine.add_request(name, tokens, params, prompt=prompt, arrival_time=float(arrival))
            for output in engine.step():
                if output.finished:
                    answers[output.request_id] = output.outputs[0].text
    return answers


def one_second(plan: StepPlan) -> float:
    return 1.0


# `static` does not wait here: a batch begins with the requests that have arrived.
STATIC = "static(timeout_seconds=0)"
paths = [trace_path(name) for name in TRACES]
answers = [serve(policy, path, one_second) for policy, path in zip((STATIC, "fcfs"), paths, strict=True)]
static, fcfs = [make_timeline(read_trace(path)) for path in paths]

# %% [markdown]
# ## Static batching: which request runs when?
#
# A cell is a step; a number is the tokens that it computes for that request. `…` waits; `─` has finished,
# and is parked until its batch is done.
#
# Predict: A, B and C begin together, and B's answer has 14 tokens, by far the most. In which step does D
# begin?


# %%
def finished(timeline: Timeline) -> dict[str, int]:
    """The step in which each request leaves."""
    return {name: record.step for record in timeline.records for name in record.ended}


def gantt(timeline: Timeline) -> dict[str, list[str]]:
    """A row per request, a cell per step."""
    leaves = finished(timeline)
    rows = {}
    for name, arrival, *_ in REQUESTS:
        cells = [""] * arrival + ["…"] * (leaves[name] + 1 - arrival)
        for record in timeline.records:
            for item in record.batch:
                if item.request == name:
                    cells[record.step :] = [str(item.num_tokens)] + ["─"] * (leaves[name] - record.step)
        rows[name] = cells
    return rows


def show(timeline: Timeline) -> None:
    print("step " + "".join(f"{step:3d}" for step in range(timeline.num_steps)))
    for name, cells in gantt(timeline).items():
        print(f"{name}    " + "".join(f"{cell:>3s}" for cell in cells))


show(static)

# %% [markdown]
# ## Continuous batching: the same requests
#
# Predict: A finishes in step 3. Which request has its slot in step 4? And F's prompt has 66 tokens: the
# budget is 48 a step, and two others run. Into which chunks is it cut?

# %%
show(fcfs)
chunks = [item.num_tokens for record in fcfs.records for item in record.batch if item.request == "F"]
print(f"\nF: {chunks}; the first two are its prompt")

# %% [markdown]
# ## What became of the slots and of the budget?
#
# Predict: of the steps times the slots, which share computed something, under each of the two? And how many
# tokens were computed and thrown away, because a static batch is a rectangle?


# %%
def count(name: str, timeline: Timeline) -> None:
    slots = timeline.num_steps * MAX_NUM_SEQS
    cells = [cell for row in gantt(timeline).values() for cell in row]
    in_use = sum(cell.isdigit() for cell in cells)
    parked, waited = cells.count("─"), cells.count("…")
    computed = sum(item.num_tokens for record in timeline.records for item in record.batch)
    padding = sum(record.num_padding_tokens for record in timeline.records)
    print(f"{name}: {timeline.num_steps} steps · {MAX_NUM_SEQS} slots = {slots}", end="; ")
    print(f"computing {in_use} ({in_use / slots:.0%}), parked {parked}, empty {slots - in_use - parked}")
    print(f"        {computed} tokens computed, {padding} more for padding; steps of waiting: {waited}")


count("static", static)
count("fcfs  ", fcfs)

# %% [markdown]
# ## Is any request worse off?
#
# Predict: a request that came early shares its steps with newcomers now. Does one finish in a *later step*
# than under static batching? And are the answers still the same?

# %%
before, after = finished(static), finished(fcfs)
for name, *_ in REQUESTS:
    print(f"{name} is done in step {before[name]:2d} under static, {after[name]:2d} under fcfs")
assert all(after[name] <= before[name] for name in before)
assert answers[0] == answers[1]
print(f"all say the same under both; A says {answers[1]['A']!r}")

# %% [markdown]
# ## And in seconds?
#
# So far each step took one second, whatever it computed. Now let it take 1 second and 0.1 for each token.
#
# Predict: B writes a token in every step. Now the prompts of D, E and F are computed in B's steps. Is B still
# done as early as under static batching?


# %%
def by_tokens(plan: StepPlan) -> float:
    return 1.0 + 0.1 * (plan.total_num_scheduled_tokens + plan.num_padding_tokens)


def seconds(timeline: Timeline) -> dict[str, float]:
    return {name: record.end for record in timeline.records for name in record.ended}


costly = []
for policy, path in zip((STATIC, "fcfs"), paths, strict=True):
    other = path.with_stem(path.stem + "_by_tokens")
    serve(policy, other, by_tokens)
    costly.append(make_timeline(read_trace(other)))
before, after = (seconds(timeline) for timeline in costly)
for name, *_ in REQUESTS:
    print(f"{name} is done after {before[name]:4.1f} s under static, {after[name]:4.1f} s under fcfs")
print(f"\nThe two runs, side by side on the page Compare: minivllm dashboard {paths[0]}")
