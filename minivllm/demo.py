"""The demo: a dozen prompts, one small KV cache, and everything that happens written down.

Twelve requests of very different lengths arrive over time at an engine whose pool is too small for all of
them at once. So one run shows what this project is about: newcomers join at any step (continuous batching),
a long prompt is cut into chunks beside the decodes of others (chunked prefill), and when the blocks run out
the youngest steps aside and starts again later (preemption), with the same text in the end.

Requests arrive at given *steps* and not at given seconds, so that the same events happen on every machine.
The live view below is drawn from the events, as every picture in this project is.

Read next: `llm.py` for how to use the engine, `viz/` for the dashboard that opens afterwards.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from minivllm.engine import Engine
from minivllm.engine_args import EngineArgs, create_engine
from minivllm.model.tiny import MODEL_PATH
from minivllm.outputs import RequestOutput
from minivllm.sampling_params import RequestOutputKind, SamplingParams
from minivllm.trace.events import Event, TraceHeader
from minivllm.trace.reader import read_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.replay import ReplayState, SequenceState
from minivllm.trace.summary import summarize


class DemoPrompt(NamedTuple):
    """One request of the demo."""

    arrival_step: int
    max_tokens: int
    text: str


BACKGROUND = (
    "A large language model writes one token at a time. To choose the next token it looks back at the keys "
    "and values of all tokens before it. These keys and values are kept in the KV cache, so that they are "
    "computed once and not again at every step. PagedAttention cuts the KV cache into blocks of equal size. "
    "A block table maps the logical blocks of a sequence to physical blocks in memory. Blocks are taken on "
    "demand, one when the last one is full. When no block is free, the scheduler preempts the youngest "
    "request, gives its blocks to the others, and computes its tokens again later. "
)

PROMPTS = (
    DemoPrompt(0, 48, "Question: What is a KV cache?\nAnswer:"),
    DemoPrompt(0, 96, "Once upon a time,"),
    DemoPrompt(0, 48, "问：什么是KV缓存？\n答："),
    DemoPrompt(3, 64, BACKGROUND + "\nQuestion: What is a block table?\nAnswer:"),
    DemoPrompt(8, 48, "Question: What is continuous batching?\nAnswer:"),
    DemoPrompt(12, 80, "从前，"),
    DemoPrompt(16, 48, "Question: What is PagedAttention?\nAnswer:"),
    DemoPrompt(20, 64, BACKGROUND + "\nQuestion: What is preemption?\nAnswer:"),
    DemoPrompt(26, 96, "Long ago, a small fox"),
    DemoPrompt(30, 48, "问：什么是连续批处理？\n答："),
    DemoPrompt(44, 40, "Question: What is copy-on-write?\nAnswer:"),
    DemoPrompt(56, 40, "问：什么是块表？\n答："),
)

LIMITS = {"num_gpu_blocks_override": 26, "block_size": 16, "max_num_batched_tokens": 48, "max_num_seqs": 8}
"""26 blocks hold 416 tokens, well below the 900 that the dozen have in the end."""


def run_demo(out: Path, console: Console) -> Path:
    """Run the demo, print texts and numbers, and return the path of the trace in the folder `out`.

    Raises:
        ValueError: the folder cannot be written to.
    """
    path = out / "trace.jsonl"
    view = LiveView()
    console.print("Loading the shipped model …", highlight=False)
    with Recorder(path, listener=view.apply) as recorder:
        engine = create_engine(EngineArgs(MODEL_PATH, trace=recorder, **LIMITS))
        with Live(view, console=console, refresh_per_second=12, transient=True):
            outputs = _run(engine)
    for number, prompt in enumerate(PROMPTS):
        _print_text(console, number, prompt.text, outputs[str(number)])
    console.print()
    for line in summarize(read_trace(path)).lines():
        console.print(line, markup=False, highlight=False)
    console.print(f"\nEvery step of it is in [bold]{path}[/bold].", highlight=False)
    return path


def _run(engine: Engine) -> dict[str, RequestOutput]:
    """Queue each prompt at its step, and step until all are done."""
    outputs: dict[str, RequestOutput] = {}
    turn = 0
    while len(outputs) < len(PROMPTS):
        for number, prompt in enumerate(PROMPTS):
            if prompt.arrival_step == turn:
                params = SamplingParams(
                    temperature=0, max_tokens=prompt.max_tokens, output_kind=RequestOutputKind.FINAL_ONLY
                )
                assert engine.tokenizer is not None
                engine.add_request(
                    str(number), engine.tokenizer.encode(prompt.text), params, prompt=prompt.text
                )
        outputs |= {output.request_id: output for output in engine.step()}
        turn += 1
    return outputs


def _print_text(console: Console, number: int, prompt: str, output: RequestOutput) -> None:
    shown = prompt if len(prompt) < 90 else f"{prompt[:40]} … {prompt[-46:]}"
    completion = output.outputs[0]
    console.print(Text(f"\n[{number}] {shown}", style="bold"))
    preempted = output.metrics.num_preemptions if output.metrics else 0
    note = f", preempted {preempted}×" if preempted else ""
    console.print(Text(completion.text.strip(), style="green"))
    console.print(
        Text(f"({len(completion.token_ids)} tokens, ended by {completion.finish_reason}{note})", style="dim")
    )


class LiveView:
    """What is happening right now, as a table in the terminal, rebuilt from the events alone."""

    def __init__(self) -> None:
        self.state: ReplayState | None = None
        self._began = perf_counter()

    def apply(self, event: Event) -> None:
        if isinstance(event, TraceHeader):
            self.state = ReplayState(event)
        elif self.state is not None:
            self.state.apply(event)  # type: ignore[arg-type]

    def __rich__(self) -> Group | Text:
        if self.state is None or self.state.step < 0:
            return Text("starting …")
        state, header = self.state, self.state.header
        used = round(30 * state.num_used_blocks / header.num_blocks)
        pool = Text(f"step {state.step:>3}   blocks ")
        pool.append("█" * used, style="blue").append("░" * (30 - used), style="dim")
        pool.append(f" {state.num_used_blocks}/{header.num_blocks}   running {len(state.running)}")
        pool.append(f"   waiting {len(state.waiting)}")
        table = Table(box=None, pad_edge=False)
        for column in ("request", "state", "tokens", "says"):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        for sequence in sorted((state.sequences | state.finished).values(), key=lambda item: item.seq):
            tail = sequence.text.replace("\n", " ")[-60:]
            table.add_row(
                sequence.request, _status(sequence, state), str(sequence.num_output_tokens), Text(tail)
            )
        return Group(pool, table)


def _status(sequence: SequenceState, state: ReplayState) -> Text:
    if sequence.finish_reason:
        return Text("done", style="green")
    if sequence.request in state.waiting:
        return Text("preempted", style="red") if sequence.num_preemptions else Text("waiting", style="dim")
    return Text("prefill", style="yellow") if sequence.is_prefilling else Text("decode", style="blue")
