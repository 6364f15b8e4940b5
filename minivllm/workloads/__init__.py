"""Workloads: what requests arrive, when, and how long they are.

Read in this order: `workload` (what a request is), `arrivals`, `lengths`, `prompts` and `mix` (when, how
long, which tokens), `open_workload`, `closed_loop`, `chats` (who sends the next), `jsonl` (a file of one's
own), `parse`.
"""

from minivllm.workloads.arrivals import AllAtOnce, ArrivalProcess, Bursty, EvenlySpaced, Poisson
from minivllm.workloads.chats import Chats
from minivllm.workloads.closed_loop import ClosedLoop
from minivllm.workloads.jsonl import FileWorkload, read_jsonl, write_jsonl
from minivllm.workloads.mix import RequestMix
from minivllm.workloads.open_workload import OpenWorkload
from minivllm.workloads.parse import parse_workload
from minivllm.workloads.prompts import RandomPrompts, SharedPrefixes
from minivllm.workloads.workload import Workload, WorkloadRequest

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
