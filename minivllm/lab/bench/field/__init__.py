"""The field: the same requests through ours and through every peer that can be installed here.

`peers.py` compares with one library in the same process. Most engines cannot share a process, nor even an
environment, so here each of them lives in its own, and the sides still take turns:

    this process                        a process for each peer, under a Python of its own
    ┌────────────────┐   {"go": …}      ┌──────────────┐
    │ minivllm       │ ───────────────► │ serve.py     │   idle until told to go
    │ who is next    │ ◄─────────────── │ vllm_peer.py │   seconds, token ids
    └────────────────┘   one line each  └──────────────┘

    minivllm bench field --model small --dtype float32 \\
        --python openvino=/envs/openvino/bin/python --python vllm=/envs/vllm/bin/python

    roster.py     the peers: their scripts, what they need, how to install them
    measures.py   what is measured: 64 requests at once, one stream, one long prompt
    job.py        what a peer is given: the model in the measured type, the requests
    child.py      the line to one process, and everything that can go wrong with it
    serve.py      the other end of that line, which imports nothing of ours
    *_peer.py     a page each: how that library is asked for exact lengths, greedily
    compare.py    rounds and ratios
    result.py     tables

A peer that is missing, crashes, hangs or gives other numbers of tokens than were asked for is a row that
says so; the others go on. Read next: `compare.py`.
"""

from __future__ import annotations

from minivllm.lab.bench.field.compare import run
from minivllm.lab.bench.field.settings import FieldSettings

__all__ = ["FieldSettings", "run"]
