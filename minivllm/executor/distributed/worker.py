"""All ranks but the first: get a plan, carry it out, wait for the next.

    python -m minivllm.executor.distributed.worker ADDRESS PORT RANK SIZE

is what an engine starts (`launch.py`), and what an actor of Ray's runs (`ray_ranks.py`). Under `torchrun` a
rank gets here from the program itself, when that makes its engine. In each case a worker knows only what the
store and the plans say, and ends when rank 0 says so or is gone.

Read next: `rank_executor.py`.
"""

from __future__ import annotations

import sys

import msgspec
import torch

from minivllm.executor.distributed.groups import Control, GroupPeers, PeerLostError
from minivllm.executor.distributed.heartbeat import IDLE, Activity, Heart, silent_seconds
from minivllm.executor.distributed.meeting import Meeting, open_store, own_address
from minivllm.executor.distributed.messages import CacheSizes, RankSettings, decode_plan
from minivllm.executor.distributed.rank_executor import RankExecutor, load_rank
from minivllm.executor.distributed.telling import Teller
from minivllm.trace.rank_spans import RankSpans
from minivllm.validation import error_words


def serve_rank(
    meeting: Meeting, address: str, local_rank: int | None = None, *, watches_rank_0: bool = False
) -> None:
    """Be this rank until rank 0 ends.

    Args:
        address: of this machine, for the others.
        local_rank: its number among those of this machine, if that is not its rank.
        watches_rank_0: end once it is silent; nothing else would end this process then.
    """
    activity = Activity()
    with Heart(meeting, activity, watches_rank_0=watches_rank_0) as heart:
        _serve(meeting, address, local_rank, activity, heart)


def _serve(meeting: Meeting, address: str, local_rank: int | None, activity: Activity, heart: Heart) -> None:
    rank = meeting.rank
    meeting.note("here")
    settings = msgspec.json.decode(meeting.hear("settings"), type=RankSettings)
    torch.set_num_threads(settings.num_threads)
    device = device_of(settings.device, rank if local_rank is None else local_rank)
    try:
        control = Control(meeting.store, rank, meeting.size, address)
        seconds = settings.timeout_seconds
        peers = GroupPeers(meeting.store, settings.grid, rank, device, address, seconds)
        decoder = load_rank(settings, rank, device, peers)
        meeting.note("loaded", msgspec.json.encode((decoder.num_bytes, *decoder.step_bytes)).decode())
        sizes = msgspec.json.decode(meeting.hear("sizes"), type=CacheSizes)
        executor = RankExecutor(decoder, settings, sizes)
        executor.activity = peers.activity = activity
        activity.begin(IDLE)
        meeting.note("ready", str(executor.storage.num_bytes))
    except Exception as error:  # rank 0 tells it
        meeting.note("failed", error_words(error))
        sys.exit(1)
    heart.silent_seconds = silent_seconds(seconds)
    teller: Teller | None = None
    if settings.record_spans:
        executor.spans = peers.spans = RankSpans()
        teller = Teller(meeting, executor.spans)
    try:
        while message := control.next_message():
            executor.execute(decode_plan(message))
            if teller is not None:
                teller.tell()
        if teller is not None:
            teller.tell(is_last=True)
    except PeerLostError:  # it has something to say, and this one has nothing to add
        sys.exit(1)


def device_of(kind: str, local_rank: int) -> torch.device:
    return torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)


def main(address: str, port: str, rank: str, size: str) -> None:
    serve_rank(Meeting(open_store(address, int(port)), int(rank), int(size)), own_address(address))


if __name__ == "__main__":
    main(*sys.argv[1:])
