"""The demo: a scenario of requests, one small KV cache, and every event of the run written down.

The default scenario has twelve requests of very different lengths that arrive over time at an engine whose
pool is too small for all of them at once. So one run shows what this project is about: the scheduler admits
requests at any step (continuous batching), a long prompt is computed in chunks beside the decodes of others
(chunked prefill), and when no block is free the scheduler preempts the request that arrived last, which
starts again later with the same text in the end (preemption). The other scenario is about sharing
(`demo_scenarios.py`).

The live view below is drawn from the events, as every picture in this project is.

Read next: `minivllm/llm.py` for how to use the engine, `viz/` for the dashboard that opens afterwards.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from minivllm.console.demo_scenarios import DEMO_SCENARIOS, DemoScenario
from minivllm.engine.create_engine import create_engine
from minivllm.engine.engine import Engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.files import CannotWrite
from minivllm.model.tiny import MODEL_PATH
from minivllm.outputs import RequestOutput
from minivllm.sampling_params import RequestOutputKind
from minivllm.terminal import Console
from minivllm.trace.events import Event, TraceHeader
from minivllm.trace.reader import read_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.replay import ReplayState, SequenceState
from minivllm.trace.summary import summarize
from minivllm.validation import check_choice


def run_demo(out: Path, console: Console, scenario: str = "paging") -> Path:
    """Play a scenario, print texts and numbers, and return the path of the trace in the folder `out`.

    Raises:
        ValueError: there is no such scenario, or the folder cannot be written to.
        CannotWrite: all texts are printed, but the trace ended before the run did.
    """
    chosen = DEMO_SCENARIOS[check_choice("scenario", scenario, tuple(DEMO_SCENARIOS))]
    path = out / chosen.file_name
    view = LiveView()
    console.print("Loading the shipped model …")
    with Recorder(path) as recorder:
        engine = create_engine(EngineArgs(MODEL_PATH, trace=recorder, **chosen.limits), sinks=(view,))
        with Live(view, console=console, refresh_per_second=12, transient=True):
            outputs = play(engine, chosen)
    for number, arrival in enumerate(chosen.arrivals):
        _print_texts(console, number, arrival.text, outputs[str(number)])
    console.print()
    if recorder.problem:
        raise CannotWrite(recorder.problem)
    for line in summarize(read_trace(path)).lines():
        console.print(line)
    console.print(Text.assemble("\nEvery step of it is in ", (str(path), "bold"), "."))
    return path


def play(engine: Engine, scenario: DemoScenario) -> dict[str, RequestOutput]:
    """Queue each request at its step, and step until all are done."""
    outputs: dict[str, RequestOutput] = {}
    step = 0
    while len(outputs) < len(scenario.arrivals):
        for number, arrival in enumerate(scenario.arrivals):
            if arrival.step == step:
                assert engine.tokenizer is not None
                tokens = engine.tokenizer.encode(arrival.text)
                params = arrival.params(output_kind=RequestOutputKind.FINAL_ONLY)
                engine.add_request(str(number), tokens, params, prompt=arrival.text)
        outputs |= {output.request_id: output for output in engine.step()}
        step += 1
    return outputs


def _print_texts(console: Console, number: int, prompt: str, output: RequestOutput) -> None:
    shown = prompt if len(prompt) < 90 else f"{prompt[:40]} … {prompt[-46:]}"
    console.print(Text(f"\n[{number}] {shown}", style="bold"))
    preempted = output.metrics.num_preemptions if output.metrics else 0
    notes = [f"preempted {preempted}×"] if preempted else []
    if output.num_cached_tokens:
        notes.append(f"{output.num_cached_tokens} prompt tokens from the prefix cache")
    for completion in output.outputs:
        console.print(Text(completion.text.strip(), style="green"))
        facts = [f"{len(completion.token_ids)} tokens", f"ended by {completion.finish_reason}", *notes]
        if completion.score is not None:
            facts.insert(0, f"score {completion.score:.3f}")
        console.print(Text(f"({', '.join(facts)})", style="dim"))


class LiveView:
    """What is happening right now, as a table in the terminal, rebuilt from the events alone."""

    def __init__(self) -> None:
        self.state: ReplayState | None = None
        self._began = perf_counter()

    def emit(self, event: Event) -> None:
        """Take one event, as a sink does."""
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
