"""Traces of runs that ranks have computed: a toy engine's steps, and times that are made up, and fit."""

from random import Random

from msgspec.structs import replace

from minivllm.executor.distributed.rank_shapes import rank_shape
from minivllm.model.config import ModelConfig
from minivllm.model.parallel.layout import share_of
from minivllm.trace.events import RanksTimed, RankTime, StepFinished, TraceEnded
from minivllm.trace.rank_spans import ALL_GATHER, RECEIVE, SEND
from minivllm.trace.reader import make_trace
from tests.viz import trace_factory
from tests.viz.trace_factory import Workload

SMALL = Workload(num_requests=3, num_blocks=24, prompt=(4, 20), output=(3, 6), seed=2)


def config_of(**changes):
    raw = {"architectures": ["LlamaForCausalLM"], "vocab_size": 4099, "hidden_size": 48,
           "intermediate_size": 81, "num_hidden_layers": 5, "num_attention_heads": 6,
           "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}  # fmt: skip
    return ModelConfig.from_dict(raw | changes)


def shapes_of(grid, config=None, num_parts=2):
    """Who owns what, from the layout itself."""
    config = config or config_of()
    shares = [share_of(config, grid, rank, num_parts) for rank in range(grid.size)]
    return tuple(
        rank_shape(rank, share, 10**6 * (rank + 1), 3 * 10**6, tied=False)
        for rank, share in enumerate(shares)
    )


def with_ranks(grid, load=SMALL, seed=0, config=None, num_parts=2):
    """A trace whose steps ranks have carried out; a few are told late, and the last after the last step."""
    trace, random = trace_factory.make(load), Random(seed)
    events, begin, waiting = [], 0.0, []
    for event in trace.events:
        if isinstance(event, TraceEnded):
            events += waiting
        events.append(event)
        if isinstance(event, StepFinished):
            end = max(event.time, begin + 1e-3)
            waiting.append(RanksTimed(event.step, tuple(_times(grid, begin, end, random))))
            begin = end
            if random.random() < 0.5:
                events += waiting
                waiting = []
    header = replace(trace.header, ranks=shapes_of(grid, config, num_parts))
    return make_trace(header, events)


def _times(grid, begin, end, random):
    for rank in range(grid.size):
        what = [ALL_GATHER] * 3 if grid.tensor > 1 else [SEND if grid.place(rank).pipeline == 0 else RECEIVE]
        moments = sorted(round(random.uniform(begin, end), 6) for _ in range(2 * len(what)))
        talks = zip(what, moments[::2], moments[1::2], strict=True)
        yield RankTime(rank, begin, end, tuple(talks))
