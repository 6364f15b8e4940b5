# %% [markdown]
# # 09 Chunked prefill, step by step
#
# A and B write an answer each, a token per step. In step 4 two more arrive: L, with a prompt of 1,202 tokens,
# and behind it S, with a short one. The real engine serves all four with the model that comes with minivllm,
# on one core of this machine: once with L's prompt in one step, then in chunks. Time is processor time, so
# nothing else that runs here counts. Before each result there is a question: answer it first.

# %%
from time import process_time
from typing import Any, NamedTuple

import torch

from lessons.walkthroughs import trace_path
from minivllm import LLM, SamplingParams
from minivllm.config import SchedulerConfig
from minivllm.decoding.sampler import Sampler
from minivllm.engine.engine import Engine
from minivllm.model.tiny import MODEL_PATH
from minivllm.trace.reader import read_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.timeline import Timeline, make_timeline

TRACES = ("09_whole.jsonl", "09_chunked.jsonl", "09_threshold.jsonl")
PAGE = "compare"
PICTURES = {
    "whole.svg": ("batch_composition", 0, 4),
    "chunked.svg": ("batch_composition", 1, 4),
    "comparison.svg": ("comparison", 0, 12),
    "threshold.svg": ("batch_composition", 2, 4),
}

ARRIVAL = 4
REQUESTS = (  # name, step of arrival, prompt, tokens of the answer
    ("A", 0, "Once upon a time,", 24),
    ("B", 0, "Question: What is a KV cache?\nAnswer:", 24),
    ("L", ARRIVAL, "The cat sat on the mat. " * 150, 4),
    ("S", ARRIVAL, "Question: What is paging?\nAnswer:", 4),
)
TIMES = 3
torch.set_num_threads(1)
llm = LLM(MODEL_PATH, num_gpu_blocks_override=256)


class Run(NamedTuple):
    """What `serve` saw.

    Attributes:
        seconds: of each step, the shortest time that it took in any try.
    """

    timeline: Timeline
    answers: dict[str, str]
    seconds: list[float]

    def tokens(self, step: int) -> dict[str, int]:
        """What a step computed, by request."""
        return {item.request: item.num_tokens for item in self.timeline.records[step].batch}

    def first_token(self, name: str) -> int:
        """The step that says the first token of a request's answer: its last one with more than one token."""
        return max(step for step in range(len(self.seconds)) if self.tokens(step).get(name, 0) > 1)

    def chunks(self, name: str) -> list[int]:
        """Tokens of its prompt, step by step."""
        return [self.tokens(step).get(name, 0) for step in range(ARRIVAL, self.first_token(name) + 1)]


def serve(name: str, **settings: Any) -> Run:
    """Serve all requests, a few times; the trace that is kept is that of the fastest try."""
    config = SchedulerConfig(256, 16, max_num_seqs=4, scheduling_policy="chunked", **settings)
    path, vocab_size, tokenizer = trace_path(name), llm.engine.vocab_size, llm.get_tokenizer()
    answers: dict[str, str] = {}
    tries: list[list[float]] = []
    for _ in range(TIMES):
        with Recorder(this_try := path.with_stem("09_try")) as recorder:
            recorder.use_clock(process_time)
            engine = Engine(
                config,
                llm.engine.executor,
                Sampler(vocab_size),
                vocab_size=vocab_size,
                tokenizer=tokenizer,
                recorder=recorder,
                model_shape=llm.engine.executor.model_shape,
                clock=process_time,
            )
            coming = list(REQUESTS)
            while coming or engine.has_unfinished_requests():
                while coming and coming[0][1] <= engine.num_steps:
                    request, _, prompt, length = coming.pop(0)
                    params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
                    engine.add_request(request, tokenizer.encode(prompt), params, prompt=prompt)
                for output in engine.step():
                    if output.finished:
                        answers[output.request_id] = output.outputs[0].text
        timeline = make_timeline(read_trace(this_try))
        tries.append([record.end - record.start for record in timeline.records])
        if sum(tries[-1]) == min(map(sum, tries)):
            this_try.replace(path)
    this_try.unlink(missing_ok=True)
    return Run(make_timeline(read_trace(path)), answers, [min(step) for step in zip(*tries, strict=True)])


serve(TRACES[0], max_num_batched_tokens=128)  # the first run of all is slower: it warms the caches
whole = serve(TRACES[0], max_num_batched_tokens=2048, enable_chunked_prefill=False)
chunked = serve(TRACES[1], max_num_batched_tokens=128)
print(f"L's prompt has {sum(whole.chunks('L')):,} tokens, S's {sum(whole.chunks('S'))}")

# %% [markdown]
# ## The whole prompt in one step
#
# `enable_chunked_prefill=False`, and a budget of 2,048 tokens. A and B get their token in every step, so no
# request is kept out of a step.
#
# Predict: how many tokens does step 4 compute? And how many times as long as step 3 does it take?


# %%
def show(run: Run, steps: range) -> None:
    for step in steps:
        tokens = run.tokens(step)
        words = "  ".join(f"{name} {count}" for name, count in tokens.items())
        milliseconds = 1000 * run.seconds[step]
        print(f"step {step:2d}: {sum(tokens.values()):5,} tokens, {milliseconds:6.1f} ms   {words}")


show(whole, range(2, 8))

# %% [markdown]
# ## In chunks
#
# The same requests, a budget of 128, and the policy `chunked`: decodes first, prompts get what is left.
#
# Predict: how large are L's chunks, and why not 128? How many are there? And which is the first step that
# computes anything for S, which came right behind L?

# %%
show(chunked, range(2, 18))
print(f"\nL's chunks: {chunked.chunks('L')}")

# %% [markdown]
# ## Are the answers the same?
#
# Predict: L's prompt was cut into pieces. Is anything lost that a later piece needs of an earlier one?

# %%
assert whole.answers == chunked.answers
print(f"all four say the same in both runs; L goes on with {chunked.answers['L']!r}")

# %% [markdown]
# ## How small should a chunk be?
#
# The longest time between two tokens of A's answer (its longest ITL) is that of the longest step. L's first
# token (its TTFT) comes when all its chunks are computed. A chunk reads the keys and values of all chunks
# before it, and the weights of the model, once more.
#
# Predict: with a budget of 32 instead of 128, A's longest ITL is shorter. By a factor of four? And does L's
# first token come later?


# %%
def measured(run: Run) -> str:
    """A's longest ITL, and the first tokens of L and S, in tokens of work and in milliseconds."""
    work = max(sum(run.tokens(step).values()) for step in range(1, len(run.seconds)))
    longest = 1000 * max(run.seconds[1 : 1 + run.first_token("L")])
    first = [1000 * sum(run.seconds[ARRIVAL : 1 + run.first_token(name)]) for name in "LS"]
    chunks = run.chunks("L")
    read_again = sum(sum(chunks[:number]) for number in range(len(chunks)))
    return (
        f"{work:6,} {longest:8.1f} ms {first[0]:9.1f} ms {first[1]:9.1f} ms {len(chunks):7d} {read_again:10,}"
    )


print("budget  longest ITL of A       TTFT of L    TTFT of S  chunks  read again")
print("        tokens      time")
print(f"{'whole':>6s}  {measured(whole)}")
for budget in (512, 256, 128, 64, 32):
    run = chunked if budget == 128 else serve("09_other.jsonl", max_num_batched_tokens=budget)
    assert run.answers == whole.answers
    print(f"{budget:6d}  {measured(run)}")

# %% [markdown]
# ## A threshold for long prompts
#
# In all runs with chunks, S had to wait until the whole of L was computed: L takes every step's budget.
# `long_prefill_token_threshold=64` lets one prompt have at most 64 tokens of a step.
#
# Predict: the budget is 128 again. Which step says S's first token now? And what becomes of L's?

# %%
threshold = serve(TRACES[2], max_num_batched_tokens=128, long_prefill_token_threshold=64)
assert threshold.answers == whole.answers
show(threshold, range(3, 10))
for name, run in (("no threshold", chunked), ("threshold 64", threshold)):
    steps = ", ".join(f"{request} in step {run.first_token(request)}" for request in "LS")
    print(f"\n{name}: first token of {steps}", end="")
print("\n\nbudget  longest ITL of A       TTFT of L    TTFT of S  chunks  read again")
print(f"{128:6d}  {measured(threshold)}")
print(f"\nThe first two runs, side by side on the page Compare: minivllm dashboard {trace_path(TRACES[0])}")
