"""Workloads: which requests arrive, when, and how long they are. No engine is known here.

Read in this order: `workload` (what a request is), `arrivals`, `lengths`, `prompts` and `mix` (when, how
long, which tokens), `open_workload`, `closed_loop`, `chats` (what makes the next request arrive), `jsonl` (a
file of one's own), `parse`.
"""

from minivllm.lab.workloads.arrivals import AllAtOnce, ArrivalProcess, Bursty, EvenlySpaced, Poisson
from minivllm.lab.workloads.chats import Chats
from minivllm.lab.workloads.closed_loop import ClosedLoop
from minivllm.lab.workloads.jsonl import FileWorkload, read_jsonl, write_jsonl
from minivllm.lab.workloads.mix import RequestMix
from minivllm.lab.workloads.open_workload import OpenWorkload
from minivllm.lab.workloads.parse import parse_workload
from minivllm.lab.workloads.prompts import RandomPrompts, SharedPrefixes
from minivllm.lab.workloads.workload import Workload, WorkloadRequest

__all__ = [
    "AllAtOnce",
    "ArrivalProcess",
    "Bursty",
    "Chats",
    "ClosedLoop",
    "EvenlySpaced",
    "FileWorkload",
    "OpenWorkload",
    "Poisson",
    "RandomPrompts",
    "RequestMix",
    "SharedPrefixes",
    "Workload",
    "WorkloadRequest",
    "parse_workload",
    "read_jsonl",
    "write_jsonl",
]
