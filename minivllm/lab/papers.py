"""What the papers measured, as data, each figure with its place.

"vLLM paper" is Kwon et al., "Efficient Memory Management for Large Language Model Serving with
PagedAttention" (SOSP 2023). Its Orca baselines are the authors' own, with a buddy allocator.

Read next: `compare/differences.py`.
"""

from __future__ import annotations

KV_BYTES_PER_TOKEN = 2 * 40 * 5120 * 2
"""OPT-13B in 16 bits: keys and values · layers · hidden size · bytes = 800 KiB."""
KV_BYTES = 12 << 30
"""What an A100 with 40 GB has left beside the weights (table 1); 15,728 tokens, in the paper 15.7 K."""
NUM_SLOTS = KV_BYTES // KV_BYTES_PER_TOKEN
MAX_MODEL_LEN = 2048
HEAD_DIM = 128
"""Numbers of a key or value of OPT-13B, for each of its 40 heads and 40 layers."""

EFFECTIVE = {"contiguous": 0.204, "buddy": 0.268, "oracle": 0.382, "paged": 0.963}
"""Figure 2: share of the KV memory that holds token states, a mean over the runs of section 6.2."""
RESERVED = {"contiguous": 0.133, "buddy": 0.179, "oracle": 0.252}
INTERNAL = {"contiguous": 0.573, "buddy": 0.136}
EXTERNAL = {"contiguous": 0.089, "buddy": 0.416, "oracle": 0.366}
"""The rest of figure 2: reservation, internal fragmentation, external fragmentation and others."""

REQUESTS_AT_ONCE = {
    "sharegpt": {"contiguous": 7.00, "buddy": 9.81, "oracle": 13.62, "paged": 30.42},
    "alpaca": {"contiguous": 7.00, "buddy": 43.24, "oracle": 72.75, "paged": 132.44},
}
"""Figure 13: mean number of batched requests of OPT-13B (2 and 30 requests per second)."""

SAVED = {
    ("alpaca", "parallel"): {2: 0.0609, 4: 0.0853, 6: 0.0979},
    ("sharegpt", "parallel"): {2: 0.162, 6: 0.305},
    ("alpaca", "beam"): {2: 0.3756, 4: 0.5313, 6: 0.5516},
    ("sharegpt", "beam"): {2: 0.443, 6: 0.663},
}
"""Figure 15 and section 6.3: blocks saved by sharing, by the number of sequences per request."""
