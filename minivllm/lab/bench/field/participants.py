"""The peers that take part: each process is started, and one that fails is skipped, with the reason.

Read next: `child.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from minivllm.lab.bench.field.child import Child, PeerError
from minivllm.lab.bench.field.job import fingerprint, make_job, write_model
from minivllm.lab.bench.field.measures import Measure
from minivllm.lab.bench.field.result import Participant
from minivllm.lab.bench.field.roster import HERE, Peer, environment
from minivllm.lab.bench.field.settings import FieldSettings
from minivllm.lab.subjects.subject import Subject
from minivllm.scratch import ScratchFolder


@dataclass
class Participants:
    """All peers, and the processes of those that compute."""

    peers: dict[str, Participant]
    children: dict[str, Child] = field(default_factory=dict)

    @property
    def running(self) -> list[str]:
        return list(self.children)

    def skip(self, name: str, reason: str, install: str = "") -> None:
        """Leave this peer out from here on, and end its process: one that hangs uses the others' cores."""
        self.peers[name] = replace(self.peers[name], skipped=reason, install=install)
        child = self.children.pop(name, None)
        if child is not None:
            child.close()

    @contextmanager
    def skip_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except PeerError as error:
            self.skip(name, str(error))


@contextmanager
def start_peers(
    subject: Subject,
    settings: FieldSettings,
    pythons: Mapping[str, Path | None],
    roster: Mapping[str, Peer],
    measures: Sequence[Measure],
) -> Iterator[Participants]:
    """The peers with the model loaded; afterwards their processes are gone, and so is what they wrote."""
    participants = Participants({name: Participant(name) for name in pythons})
    device = subject.executor.device.type
    dtype = subject.executor.model_shape.dtype
    with ScratchFolder("field") as scratch:
        model = write_model(subject, scratch / "model")
        cache = Path(os.path.expanduser(settings.cache or scratch)).absolute() / fingerprint(model)
        cache.mkdir(parents=True, exist_ok=True)
        job = scratch / "job.json"
        contents = make_job(subject, model, cache, settings, measures)
        job.write_text(json.dumps(contents), encoding="utf-8")
        try:
            for name, python in pythons.items():
                peer = roster[name]
                if python is None:
                    reason = f"{peer.package} is not installed here; give --python {name}=… where it is"
                    participants.skip(name, reason, peer.install)
                elif dtype not in peer.dtypes:
                    participants.skip(name, f"it computes in {' and '.join(peer.dtypes)}, not in {dtype}")
                elif settings.weights not in (None, *peer.weights):
                    participants.skip(name, f"its script does not round weights to {settings.weights}")
                elif device not in peer.devices:
                    participants.skip(name, _other_device(peer, device))
                else:
                    variables = environment(python, peer, settings.num_threads, device)
                    command = [python, HERE / "serve.py", peer.script, job]
                    _start(participants, name, peer, command, variables, settings.timeout)
            yield participants
        finally:
            for child in participants.children.values():
                child.close()


def _start(
    participants: Participants,
    name: str,
    peer: Peer,
    command: Sequence[str | Path],
    variables: Mapping[str, str],
    timeout: float,
) -> None:
    """Start one process, and wait until it says what it is."""
    try:
        child = participants.children[name] = Child(command, variables, timeout)
        facts = child.start()
    except PeerError as error:
        participants.skip(name, str(error), peer.install)
        return
    size = facts.get("batch_size") if facts.get("is_padded") else None
    participants.peers[name] = replace(
        participants.peers[name],
        version=str(facts.get("version", "")),
        how=str(facts.get("how", "")),
        padded_batch_size=size if isinstance(size, int) else None,
    )


def _other_device(peer: Peer, device: str) -> str:
    return (
        f"it computes on {' and '.join(peer.devices)}, and the model is on {device}: "
        "hide the GPU with CUDA_VISIBLE_DEVICES="
    )
