"""Random valid traces, for properties."""

from hypothesis import strategies as st

from tests.viz import trace_factory

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

traces = st.builds(trace_factory.make, workloads)
