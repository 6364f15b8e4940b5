"""Compiled code is found again as long as no source has changed, and never after."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from kernels_numba.cpu import cache, rows
from tests import patience

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two files."""
    folder = tmp_path / "package"
    folder.mkdir()
    for name in ("a.py", "b.py"):
        (folder / name).write_text("x = 1\n")
    monkeypatch.setattr(cache, "__file__", str(folder / "cache.py"))
    return folder


def test_a_change_in_any_file_is_another_folder(package):
    before = cache.source_hash()
    assert cache.source_hash() == before
    (package / "b.py").write_text("x = 2\n")
    changed = cache.source_hash()
    assert changed != before
    (package / "b.py").rename(package / "c.py")
    assert cache.source_hash() not in (before, changed)


def test_the_folder_is_where_the_user_says(package, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "mine"))
    folder = cache.cache_folder()
    assert folder.is_dir() and folder.parent == tmp_path / "mine" / "minivllm"
    assert cache.cache_folder() == folder


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_without_a_wish_it_is_among_the_users_caches(package, tmp_path, monkeypatch, platform):
    monkeypatch.setattr(cache.sys, "platform", platform)
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert tmp_path in cache.cache_folder().parents


def test_a_folder_that_cannot_be_written_is_a_warning_and_works(package, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        folder = cache.cache_folder()
    assert folder.is_dir() and tmp_path not in folder.parents
    assert "set NUMBA_CACHE_DIR" in caplog.text
    folder.rmdir()


def test_the_setting_of_all_other_code_stays_as_it_was(tmp_path):
    before = numba.config.CACHE_DIR
    with pytest.raises(ZeroDivisionError), cache.kept_in(tmp_path):
        assert str(tmp_path) == numba.config.CACHE_DIR
        _ = 1 / 0
    assert before == numba.config.CACHE_DIR


def test_the_kernels_are_kept_there():
    assert cache.source_hash() in rows.norm_rows.stats.cache_path


PROGRAM = """
import numba, sys
from pathlib import Path
from kernels_numba.cpu.cache import kept_in

with kept_in(Path(sys.argv[1])):
    @numba.njit(cache=True)
    def twice(x):
        return 2 * x

    @numba.njit(cache=True)
    def quadruple(x):
        return twice(twice(x))

print("ready", flush=True)
sys.stdin.readline()
assert quadruple(3) == 12
print(sum(quadruple.stats.cache_misses.values()), flush=True)
"""


def test_of_several_processes_that_need_the_same_code_one_compiles_it(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "kept")]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT)
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    misses = [int(process.communicate(timeout=patience.SECONDS)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(misses) == [0, 0, 1]
