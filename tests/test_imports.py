"""The rules of the house about who may import whom (CONTRIBUTING.md), read from the source itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TENSOR_LIBRARIES = {"torch", "numba", "numpy", "safetensors", "transformers"}
CLOCKS = {"time", "datetime"}

# Who stands on which floor; a room may import from its own floor's list only.
CONTROL_PLANE = {
    "minivllm/memory": {"minivllm.memory", "minivllm.trace", "minivllm.validation"},
    "minivllm/scheduling": {
        "minivllm.scheduling",
        "minivllm.memory",
        "minivllm.trace",
        "minivllm.scheduling.request",
        "minivllm.config",
        "minivllm.validation",
    },
    "minivllm/trace": {"minivllm.trace", "minivllm.validation"},
    "minivllm/decoding/beam_search.py": set(),
    "minivllm/scheduling/request.py": set(),
    "minivllm/config.py": {"minivllm.validation"},
    "minivllm/validation.py": set(),
}


def python_files(place: str) -> list[Path]:
    path = ROOT / place
    return [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Full names of the modules that a file imports when it runs (not those for type checkers only)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            names.add(node.module or "")
    return names


def test_there_are_files_to_check():
    for place in (*CONTROL_PLANE, "minivllm", "viz"):
        assert python_files(place), place


@pytest.mark.parametrize("place", CONTROL_PLANE)
def test_the_control_plane_is_plain_python(place):
    for path in python_files(place):
        top_level = {name.split(".")[0] for name in imports_of(path)}
        assert not top_level & TENSOR_LIBRARIES, (
            f"{path.relative_to(ROOT)} imports {top_level & TENSOR_LIBRARIES}"
        )


@pytest.mark.parametrize(
    "place", ["minivllm/memory", "minivllm/scheduling", "minivllm/scheduling/request.py"]
)
def test_whoever_decides_has_no_clock(place):
    for path in python_files(place):
        assert not imports_of(path) & CLOCKS, f"{path.relative_to(ROOT)} looks at a clock"


@pytest.mark.parametrize("place", CONTROL_PLANE)
def test_imports_point_downward(place):
    for path in python_files(place):
        for name in imports_of(path):
            if name.startswith("minivllm"):
                floor = ".".join(name.split(".")[:2])
                assert floor in CONTROL_PLANE[place], f"{path.relative_to(ROOT)} imports {name}"


def test_the_engine_never_imports_the_dashboard_or_the_lessons():
    for path in python_files("minivllm"):
        top_level = {name.split(".")[0] for name in imports_of(path)}
        forbidden = {"viz", "lessons", "streamlit", "matplotlib"}
        if any(path.is_relative_to(ROOT / room) for room in ("minivllm/lab/compare", "minivllm/lab/figures")):
            forbidden.remove("matplotlib")  # what is compared at once has no step cursor
        assert not top_level & forbidden, path.relative_to(ROOT)


def test_the_dashboard_knows_traces_and_nothing_else_of_the_engine():
    """Lessons, too: a page of theirs starts them, has them judged and shows what was found, and a second
    implementation of that would judge otherwise. They judge in a process of their own, without the engine."""
    for path in python_files("viz"):
        ours = {
            name
            for name in imports_of(path)
            if name.split(".")[0] in ("minivllm", "kernels_numba", "lessons")
        }
        assert all(name.startswith(("minivllm.trace", "lessons")) for name in ours), (
            f"{path.relative_to(ROOT)}: {ours}"
        )


def test_the_dashboard_runs_without_what_only_tests_and_judges_need():
    code = "import viz.views.lessons, viz.views.start, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"hypothesis", "pytest", "torch"} & set(done.stdout.split())


def test_kernels_know_arrays_and_not_requests():
    for path in python_files("kernels_numba"):
        assert not {name for name in imports_of(path) if name.split(".")[0] in ("minivllm", "viz")}


def test_no_module_is_longer_than_400_lines():
    for place in ("minivllm", "kernels_numba", "viz", "lessons", "tests"):
        for path in python_files(place):
            length = len(path.read_text(encoding="utf-8").splitlines())
            assert length <= 400, f"{path.relative_to(ROOT)} has {length} lines"
