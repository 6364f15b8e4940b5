"""Room for actors in a Ray cluster: the one that is there, or one that lasts as long as it is needed.

    a program that has called `ray.init`, RAY_ADDRESS,
    or `ray start` on this machine                         used, and left as it is
    none of them                                           begun here, and ended with its last user

An actor is a process that Ray starts, on this machine or another, in a *bundle*: so many CPUs of one machine.
Bundles that belong together are a placement group: all of them are had, or none.

    PACK      on as few machines as possible: ranks, which talk in every layer
    SPREAD    on as many as possible: replicas, which never talk

Ray listens at all addresses of a machine. A cluster begun here asks whoever comes for a token, as those of
Ray 2.59 and later do (`~/.ray/auth_token`).

Ray is an extra, and imported by those alone who ask for it.

Source: Ray's documentation of placement groups; vLLM's `ray_executor_v2.py` for one bundle a rank.
Read next: `ray_ranks.py`; `minivllm/server/replica_actor.py`.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from minivllm.executor.executor import RankError
from minivllm.processes import ROOT
from minivllm.scratch import ScratchFolder

logger = logging.getLogger("minivllm")

EXTRA = "pip install 'minivllm[ray]'"
MOST_CPUS = 10_000
"""Of a cluster of our own: who shares cores with whom is decided by their threads."""
STORE_BYTES = 80 << 20
"""Of shared memory, near the least that Ray takes: nothing of ours travels through it."""
END_SECONDS = 5.0
"""For an actor to be gone, once it was killed."""


def check(setting: str, device: str) -> None:
    """Raise `ValueError` if this cannot be 'ray', before anything is started."""
    found = find_spec("ray")
    if found is None or found.origin is None:  # a folder of this name is no Ray
        raise ValueError(f"{setting} is 'ray', which is not installed: {EXTRA}")
    if device != "cpu":
        raise ValueError(f"{setting} must not be 'ray' on a GPU: actors compute on CPUs only, so far")
    if "://" in os.environ.get("RAY_ADDRESS", ""):
        raise ValueError(
            f"{setting} is 'ray', and RAY_ADDRESS is {os.environ['RAY_ADDRESS']!r}: it must be host:port, "
            "since an engine runs on a machine of the cluster, and not beside it as Ray's client"
        )


class Actor:
    """A process that Ray has started, and which does one thing."""

    def __init__(self, handle: Any, done: Any) -> None:
        self._handle, self._done = handle, done

    def ending(self, seconds: float = 0.0) -> str | None:
        """How it has ended; None if it works on."""
        ray = _ray()
        if not ray.is_initialized():
            return "the Ray cluster was left"
        if not ray.wait([self._done], timeout=seconds)[0]:
            return None
        try:
            ray.get(self._done)
        except ray.exceptions.RayActorError:
            return "its actor has died"
        except ray.exceptions.RayError as error:
            return str(error).strip().rpartition("\n")[2]
        return "it was done"

    def kill(self) -> None:
        """It is gone when this returns."""
        ray = _ray()
        if ray.is_initialized():  # or ray.kill would begin a cluster
            ray.kill(self._handle)
            self.ending(END_SECONDS)


class Bundles:
    """So many CPUs for each of some actors, for as long as they are needed.

    Args:
        size: how many bundles; `num_cpus` of each.
        strategy: "PACK" or "SPREAD".
        first_here: bundle 0 is on this machine, and for this process.
        seconds: longest to wait for them, where others have the CPUs.

    Raises:
        ValueError: there is no such cluster.
        RankError: it has no room.
    """

    def __init__(
        self, size: int, num_cpus: int, strategy: str, *, first_here: bool = False, seconds: float
    ) -> None:
        self._num_cpus = num_cpus
        self._actors: list[Actor] = []
        self._group: Any = None
        self._is_open = True
        _enter()
        try:
            bundles = [{"CPU": float(num_cpus)} for _ in range(size)]
            if first_here:
                bundles[0][f"node:{self.address}"] = 0.001  # a resource that only this machine has
            self._group = _ray().util.placement_group(bundles, strategy=strategy)
            _wait_for(self._group, size, num_cpus, seconds)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Of this machine, as the cluster knows it."""
        return str(_ray().util.get_node_ip_address())

    def machines(self) -> list[str]:
        """Of each bundle the machine; this one is called ""."""
        ray = _ray()
        with _noticing_loss():
            here = ray.get_runtime_context().get_node_id()
            places = ray.util.placement_group_table(self._group)["bundles_to_node_id"]
        return ["" if places[index] == here else places[index] for index in range(len(places))]

    def start(self, index: int, work: Callable[..., None], *args: Any, variables: Mapping[str, str]) -> Actor:
        """Have an actor in this bundle do this, and end. `variables` are of its environment."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
        # Our packages are found where they are here; on another machine they are installed.
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        options = {
            "num_cpus": self._num_cpus,
            "scheduling_strategy": where,
            "runtime_env": {"env_vars": {"PYTHONPATH": path, **variables}},
            "max_restarts": 0,
        }
        with _noticing_loss():
            handle = _ray().remote(_Worker).options(**options).remote()
            actor = Actor(handle, handle.do.remote(work, *args))
        self._actors.append(actor)
        return actor

    def close(self) -> None:
        """End all actors, give the CPUs back, and leave the cluster. A second time it does nothing."""
        if not self._is_open:
            return
        self._is_open = False
        actors, self._actors = self._actors, []
        for actor in actors:
            actor.kill()
        group, self._group = self._group, None
        ray = _ray()
        if group is not None and ray.is_initialized():
            ray.util.remove_placement_group(group)
        _leave()


class _Worker:
    """What runs in an actor."""

    def do(self, work: Callable[..., None], *args: Any) -> None:
        work(*args)


def _wait_for(group: Any, size: int, num_cpus: int, seconds: float) -> None:
    wanted = f"{size} bundles of {num_cpus} CPUs"
    if not group.wait(1):
        logger.warning("waiting for %s in the Ray cluster (%s)", wanted, _told_cpus())
        if not group.wait(seconds):
            raise RankError(f"the Ray cluster has no room for {wanted}: {_told_cpus()}")


@contextmanager
def _noticing_loss() -> Iterator[None]:
    """A cluster that does not answer any more, as a `RankError`."""
    try:
        yield
    except _ray().exceptions.RayError as error:
        raise RankError(f"the Ray cluster has ended, or does not answer: {error}") from None


def _told_cpus() -> str:
    ray = _ray()
    every, free = ray.cluster_resources().get("CPU", 0), ray.available_resources().get("CPU", 0)
    return f"{free:g} of its {every:g} CPUs are free"


# ── the cluster ───────────────────────────────────────────────────────────────────────────────────────────

_lock = threading.Lock()
_num_users = 0
"""Of the cluster that this process is in."""
_own_folder: ScratchFolder | None = None
"""Where the cluster that we have begun keeps its sockets; None if it is another's."""


def _enter() -> None:
    """Be in a cluster. Raises `ValueError` if there should be one, and it does not answer."""
    global _num_users, _own_folder
    ray = _ray()
    with _lock, _signals_kept():
        if not ray.is_initialized():
            quiet = {"log_to_driver": False, "configure_logging": False}
            # Below it lie sockets, whose names may have 107 characters.
            folder = ScratchFolder("ray", where="/tmp")
            try:
                ray.init(
                    num_cpus=MOST_CPUS,  # refused where there is a cluster already
                    object_store_memory=STORE_BYTES,
                    include_dashboard=False,
                    _temp_dir=str(folder.path),
                    _system_config={"prestart_worker_first_driver": False},  # ours need their own variables
                    **quiet,
                )
                _own_folder = folder
            except ValueError:
                folder.remove()
                _join(quiet)
        _num_users += 1


def _join(quiet: dict[str, Any]) -> None:
    try:
        _ray().init(**quiet)
    except (ConnectionError, RuntimeError) as error:
        named = os.environ.get("RAY_ADDRESS") or "that `ray start` has begun"
        raise ValueError(f"the Ray cluster {named} does not answer: {error}") from None


def _leave() -> None:
    """The last who leaves a cluster of our own ends it."""
    global _num_users, _own_folder
    with _lock:
        _num_users -= 1
        if _num_users or _own_folder is None:
            return
        _ray().shutdown()
        _own_folder.remove()
        _own_folder = None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself; how a program of ours ends is not its business."""
    is_main = threading.current_thread() is threading.main_thread()
    kept = signal.getsignal(signal.SIGTERM) if is_main else None
    try:
        yield
    finally:
        if kept is not None:
            with suppress(TypeError):  # a handler that is not Python's
                signal.signal(signal.SIGTERM, kept)


def _ray() -> Any:
    import ray

    return ray
