"""Who takes part: starts the peers one after the other, and puts out those that fail, with the reason.

Read next: `child.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from minivllm.lab.bench.field.child import Child, PeerError
from minivllm.lab.bench.field.job import fingerprint, make_job, write_model
from minivllm.lab.bench.field.measures import Measure
from minivllm.lab.bench.field.result import Participant
from minivllm.lab.bench.field.roster import HERE, Peer, environment
from minivllm.lab.bench.field.settings import FieldSettings
from minivllm.lab.subjects.subject import Subject


@dataclass
class Contest:
    """The peers, and the processes of those that are in."""

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
    def out_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except PeerError as error:
            self.skip(name, str(error))


@contextmanager
def open_contest(
    subject: Subject,
    settings: FieldSettings,
    pythons: Mapping[str, Path | None],
    roster: Mapping[str, Peer],
    measures: Sequence[Measure],
) -> Iterator[Contest]:
    """The peers with the model loaded; afterwards their processes are gone, and so is what they wrote."""
    contest = Contest({name: Participant(name) for name in pythons})
    dtype = subject.executor.model_shape.dtype
    with TemporaryDirectory(prefix="minivllm-field-", ignore_cleanup_errors=True) as scratch:
        model = write_model(subject, Path(scratch) / "model")
        cache = Path(settings.cache or scratch).expanduser().absolute() / fingerprint(model)
        cache.mkdir(parents=True, exist_ok=True)
        job = Path(scratch) / "job.json"
        contents = make_job(subject, model, cache, settings.num_threads, measures)
        job.write_text(json.dumps(contents), encoding="utf-8")
        try:
            for name, python in pythons.items():
                peer = roster[name]
                if python is None:
                    reason = f"{peer.package} is not installed here; give --python {name}=… where it is"
                    contest.skip(name, reason, peer.install)
                elif dtype not in peer.dtypes:
                    contest.skip(name, f"it computes in {' and '.join(peer.dtypes)}, not in {dtype}")
                else:
                    _start(contest, name, peer, python, job, settings)
            yield contest
        finally:
            for child in contest.children.values():
                child.close()


def _start(contest: Contest, name: str, peer: Peer, python: Path, job: Path, settings: FieldSettings) -> None:
    variables = environment(python, peer, settings.num_threads)
    command = [python, HERE / "serve.py", peer.script, job]
    try:
        child = contest.children[name] = Child(command, variables, settings.timeout)
        facts = child.start()
        version, how = (str(facts.get(fact, "")) for fact in ("version", "how"))
        contest.peers[name] = replace(contest.peers[name], version=version, how=how)
    except PeerError as error:
        contest.skip(name, str(error), peer.install)
