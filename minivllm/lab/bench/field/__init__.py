"""The field: the same requests through ours and through every other engine that can be installed here.

Most engines cannot share a process, nor even an environment. So each peer runs in a process of its own, under
a Python of its own, and the sides compute in turns:

    this process                        a process for each peer, under a Python of its own
    ┌────────────────┐   {"go": …}      ┌──────────────┐
    │ minivllm       │ ───────────────► │ serve.py     │   idle until told to go
    │ order of turns │ ◄─────────────── │ vllm_peer.py │   seconds, token ids
    └────────────────┘   one line each  └──────────────┘

    minivllm bench field --model small --dtype float32 \\
        --python openvino=/envs/openvino/bin/python --python vllm=/envs/vllm/bin/python

A peer that is installed beside minivllm, as transformers often is, needs no `--python`:

    minivllm bench field --model small --peer transformers --measure batch

    roster.py         the peers: their scripts, what they need, how to install them
    measures.py       what is measured: 64 requests at once, one stream, one long prompt
    job.py            what a peer is given: the model in the measured type, the requests
    participants.py   the processes that take part, and the reason of each that does not
    child.py          the connection to one process, and everything that can go wrong with it
    serve.py          the other end of that connection, which imports nothing of ours
    *_peer.py         a page each: how that library is asked for exact lengths, greedily
    compare.py        rounds and ratios
    result.py         tables

A peer that is missing, crashes, hangs or gives other numbers of tokens than were asked for is a row that
says so; the others go on. Read next: `compare.py`.
"""

from __future__ import annotations

from minivllm.lab.bench.field.compare import run
from minivllm.lab.bench.field.settings import FieldSettings

__all__ = ["FieldSettings", "run"]
