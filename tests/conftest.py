"""Settings for all tests: few threads, and how much of them runs (`profiles.py`)."""

import gc
import os
import shutil
import sys
import tempfile

# Set before torch or numba start their pools: oversubscribed OpenMP threads stall small machines for seconds.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MINIVLLM_WAIT_FOR_COMPILER", "1")  # the same runner in every run, compiled or not

import pytest

from tests import bounds, left_behind, patience, profiles

profiles.register()


# A hundred programs are started, which find each other's bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_collectstart():
    gc.disable()  # what is imported is no garbage


def pytest_collection_finish():
    gc.freeze()  # and no collection need ever look at it: a full one would take half a second
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder(tmp_path_factory):
    """What tests, and all that they start, take for the folder of temporary files.

    A browser or a server that is killed leaves what it had there. It goes with this process, and if that is
    killed, together with whatever it had started.
    """
    folder = tmp_path_factory.mktemp("t", numbered=False)  # below it lie sockets, whose names must be short
    command = [sys.executable, "-I", "-S", left_behind.__file__, str(os.getpid()), str(folder)]
    with pytest.MonkeyPatch.context() as patch, patience.running(command, start_new_session=True):
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def here(monkeypatch, capsys, tmp_path):
    """Run the command line in this process, which is quicker than another: exit code, output, errors."""

    def run(*arguments):
        from minivllm.console import cli

        monkeypatch.setattr(sys, "argv", ["minivllm", *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code or 0
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def few_stories(monkeypatch):
    """A judge that tells few small stories of each property, for what is not about these; at night, all.

    Always the same ones, so that no luck decides what they catch. It looks for a shorter story than the first
    that failed, but not for long.
    """
    if not profiles.is_night():
        monkeypatch.setattr("lessons.runner.SHARE", 0.1)
        monkeypatch.setattr("lessons.runner.new_seed", lambda: 1)
        monkeypatch.setattr("lessons.runner.SHRINK_SECONDS", 1.0)


@pytest.fixture
def one_try(monkeypatch):
    """What a machine can do at most is measured once each, where no number counts."""
    monkeypatch.setattr("minivllm.lab.bench.limits.MOST_SECONDS", 0.0)


def pytest_xdist_auto_num_workers(config):
    """One more than there are cores: some tests wait for a browser or a child, and leave theirs to others."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else None


def pytest_configure(config):
    config.pluginmanager.register(bounds)


FIRST = [
    "executor/test_compiled_runner.py", "server/test_soak.py", "lessons/test_every_lesson.py",
    "viz/test_axe.py", "viz/test_browser.py",
    "viz/test_lessons_browser.py", "kernels/test_cpu_prefill.py", "console/test_cli.py",
    "viz/test_story_figures.py", "server/test_serve.py", "lab/compare/test_attention.py",
    "viz/test_live_browser.py", "kernels/test_paged_kernels.py", "executor/test_choose_runner.py",
    "kernels/test_flash_kernels.py", "viz/test_compare_page.py", "kernels/test_cpu_decode.py",
    "kernels/test_planted_faults.py", "viz/test_kernel_pages.py", "executor/test_graph_runner.py",
    "lab/bench/serve/test_command.py", "viz/test_story_browser.py", "executor/test_kernel_backend.py",
    "lab/figures/test_figures.py", "kernels/test_tensor_core.py", "executor/test_quantized_runner.py",
    "lab/bench/test_step_profile.py", "lab/bench/test_measurements.py", "lab/bench/test_field.py",
    "lessons/test_runner.py", "engine/test_batch_invariance.py", "lessons/test_hard_to_fool.py",
]  # fmt: skip
"""Files that take long, so that at the end no process is left with one; among them, wherever there are others
in between, those that wait for kernels to be compiled, which one process does at a time.
Two that mostly wait come early, too, while others have enough to do: the soak takes as long anywhere."""


def pytest_collection_modifyitems(config, items):
    place = {f"tests/{name}": number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.nodeid.split("::")[0], len(place)))
    # A hundred times as many examples may take more than the five minutes that a hanging test is given.
    if profiles.is_night():
        for item in items:
            item.add_marker(pytest.mark.timeout(7200), append=False)
