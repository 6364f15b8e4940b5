"""From a name to a policy: one of the built-in ones, or a learner's own.

    "tail"    "tail(tokens_left=8)"    "my_file:MyPolicy"    "path/to/my_file.py:MyPolicy(patience=2)"

Read next: `minivllm/scheduling/policies.py`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from minivllm.scheduling import policies
from minivllm.scheduling.policy import SchedulingPolicy
from minivllm.scheduling.static_batching import StaticBatching
from minivllm.validation import error_words

POLICIES: dict[str, type[SchedulingPolicy]] = {
    "fcfs": policies.FirstComeFirstServed,
    "priority": policies.Priority,
    "shortest-remaining": policies.ShortestRemaining,
    "shortest-remaining-oracle": policies.ShortestRemainingOracle,
    "tail": policies.Tail,
    "waiting-served-ratio": policies.WaitingServedRatio,
    "prefill-first": policies.PrefillFirst,
    "decode-first": policies.DecodeFirst,
    "chunked": policies.Chunked,
    "static": StaticBatching,
}
"""The only list of policies: help texts, messages, comparisons and tests read it."""


def make_policy(spec: str) -> SchedulingPolicy:
    """The policy that `spec` names, with its settings.

    Raises:
        ValueError: there is no such policy, it is not one, or it refuses its settings; with what is allowed.
    """
    if not isinstance(spec, str):
        raise ValueError(f"scheduling_policy must be a name, got {spec!r}")
    name, settings = split_spec(spec)
    policy_class = POLICIES[name] if name in POLICIES else _load(spec, name)
    try:
        inspect.signature(policy_class).bind(**settings)
    except TypeError as error:
        known = ", ".join(inspect.signature(policy_class).parameters) or "no settings"
        raise ValueError(f"scheduling_policy {spec!r}: {error}; {name} knows {known}") from error
    try:
        return policy_class(**settings)
    except Exception as error:
        raise ValueError(f"scheduling_policy {spec!r}: {error}") from error


def split_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """`name(key=value, …)` in parts."""
    name, bracket, rest = spec.strip().partition("(")
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("positional settings")
        settings = {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"scheduling_policy must be a name, or a name with settings like 'tail(tokens_left=5)', "
            f"got {spec!r}"
        ) from error
    return name.strip(), settings


def _load(spec: str, name: str) -> type[SchedulingPolicy]:
    """A policy in a module or a file outside this package."""
    place, colon, class_name = name.rpartition(":")
    if not colon or not place or not class_name:
        raise ValueError(
            f"scheduling_policy must be one of {', '.join(map(repr, POLICIES))}, or 'module:Class' for one "
            f"of your own, got {spec!r}"
        )
    if not place.endswith(".py") and not all(part.isidentifier() for part in place.split(".")):
        raise ValueError(
            f"scheduling_policy {spec!r}: {place!r} must be the name of a module, or a path that ends in .py"
        )
    try:
        module = _module(place)
    except FileNotFoundError as error:
        raise ValueError(f"scheduling_policy {spec!r}: there is no file {place!r}") from error
    except ModuleNotFoundError as error:
        raise ValueError(
            f"scheduling_policy {spec!r}: there is no module {error.name!r} here or among what is installed"
        ) from error
    except Exception as error:
        raise ValueError(
            f"scheduling_policy {spec!r}: {place} cannot be imported: {error_words(error)}"
        ) from error
    policy_class = getattr(module, class_name, None)
    if policy_class is None:
        raise ValueError(f"scheduling_policy {spec!r}: {place} has no class {class_name!r}")
    if not isinstance(policy_class, type) or not issubclass(policy_class, SchedulingPolicy):
        raise ValueError(
            f"scheduling_policy {spec!r}: {class_name} must be a subclass of SchedulingPolicy "
            "(minivllm.scheduling.policy)"
        )
    return policy_class


def _module(place: str) -> ModuleType:
    """Import `place`: a path that ends in .py, or a module's name; the current folder counts too."""
    if not place.endswith(".py"):
        # A console command starts with its own folder on the path, and not with the one that it is called in.
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(place)
    path = Path(place)
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None or not path.is_file():
        raise FileNotFoundError(place)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[path.stem] = module
    module_spec.loader.exec_module(module)
    return module
