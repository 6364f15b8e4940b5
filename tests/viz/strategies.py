"""Random valid traces, for properties."""

from hypothesis import strategies as st

from minivllm.trace.reader import Trace, make_trace
from tests.viz import sharing_factory, static_factory, trace_factory

workloads = st.builds(
    trace_factory.Workload,
    num_requests=st.integers(1, 12),
    num_blocks=st.integers(4, 80),
    block_size=st.sampled_from([1, 4, 16]),
    max_num_seqs=st.integers(1, 6),
    budget=st.integers(1, 64),
    prompt=st.just((1, 60)),
    output=st.just((1, 25)),
    arrival_gap=st.sampled_from([0.0, 2.0, 8.0]),
    seed=st.integers(0, 10_000),
    abort_share=st.sampled_from([0.0, 0.1]),
    num_refused=st.integers(0, 2),
    cut_short=st.booleans(),
    names=st.sampled_from(["req-{}", "{}", "</script>{}", "请求 {}"]),
)

# Small runs share little, so these are never small: several requests come at once, and their memory is short.
sharing_workloads = st.builds(
    sharing_factory.Sharing,
    num_requests=st.sampled_from([9, 6, 3, 1]),
    num_blocks=st.sampled_from([24, 28, 40]),
    num_host_blocks=st.sampled_from([40, 12, 0]),
    block_size=st.sampled_from([4, 2, 1]),
    kinds=st.sampled_from([("plain", "samples", "beams"), ("plain",), ("samples",), ("beams",)]),
    width=st.integers(2, 3),
    output=st.sampled_from([(12, 20), (2, 20), (1, 4)]),
    prefix_cache=st.sampled_from(["radix", "hash", None]),
    swap=st.sampled_from([True, False]),
    salts=st.sampled_from([(None,), (None, "blue")]),
    num_prefixes=st.integers(1, 3),
    fail_share=st.sampled_from([0.0, 0.1]),
    abort_share=st.sampled_from([0.0, 0.05]),
    arrival_gap=st.integers(0, 2),
    seed=st.integers(0, 10_000),
)

sharing_traces = st.builds(sharing_factory.make, sharing_workloads)
"""Traces with forks, copies, beams, a prefix cache and swapping."""


@st.composite
def _cut(draw: st.DrawFn) -> Trace:
    trace = draw(sharing_traces)
    length = draw(st.integers(1, len(trace.events)))
    return make_trace(trace.header, trace.events[:length])


cut_traces = _cut()
"""The same, cut off after any event: the last step may lack its end, or hold only a failed attempt."""

plain_traces = st.builds(trace_factory.make, workloads)
"""Traces without sharing, with refusals, chunked prefills and ends in the middle of a step."""

static_traces = st.builds(static_factory.make, workloads)
"""Traces of static batching, with padding and parked requests."""

traces = st.one_of(plain_traces, sharing_traces, static_traces)
