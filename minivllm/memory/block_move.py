"""A block move: the control plane's only instruction about data, executed before anything of its step.

Everything else that the memory does is a change of ownership. Only three operations move bytes:

    copy       device block ──► device block      copy-on-write: a writer gets a block of its own
    swap_out   device block ──► host block        a request is preempted
    swap_in    host block   ──► device block      and resumed

Read next: `kv_cache_manager.py`, which gives these orders; `minivllm/executor/block_mover.py` obeys.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class BlockMove(msgspec.Struct, frozen=True, gc=False):
    """Copy one block's keys and values, of all layers, from `source` to `target`."""

    kind: Literal["copy", "swap_out", "swap_in"]
    source: int
    target: int
