"""Compiled code is found again as long as all that it depends on is as it was, and never if it is damaged."""

import errno
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numba
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels_numba import kept_code
from kernels_numba.cpu import FOLDER, cache, rows
from kernels_numba.kept_code import DamagedError, read_sealed, write_sealed
from minivllm.files import CannotWrite, check_new_folder, new_folder
from minivllm.user_caches import user_caches
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
    monkeypatch.setattr(kept_code, "SOURCES", folder)
    return folder


def test_a_change_in_any_file_is_another_folder(package, monkeypatch):
    before = kept_code.usual_folder()
    assert kept_code.usual_folder() == before
    (package / "b.py").write_text("x = 2\n")
    changed = kept_code.usual_folder()
    assert changed != before
    (package / "b.py").rename(package / "c.py")
    renamed = kept_code.usual_folder()
    assert renamed not in (before, changed)
    monkeypatch.setattr(kept_code, "SOURCES", package.rename(package.with_name("moved")))
    assert kept_code.usual_folder() not in (before, changed, renamed)


def test_another_compiler_or_processor_is_another_folder(package, monkeypatch):
    folders = {kept_code.usual_folder()}
    for name, value in (("NUMBA_CPU_NAME", "generic"), ("NUMBA_CPU_FEATURES", "-avx2")):
        kept_code._surroundings.cache_clear()
        monkeypatch.setenv(name, value)
        folders.add(kept_code.usual_folder())
    kept_code._surroundings.cache_clear()
    monkeypatch.setattr(kept_code.metadata, "version", lambda name: "0.0")
    folders.add(kept_code.usual_folder())
    kept_code._surroundings.cache_clear()
    assert len(folders) == 4


def test_the_folder_is_where_the_user_says(package, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "mine"))
    folder = kept_code.cache_folder()
    assert folder.is_dir() and folder.parent == tmp_path / "mine" / "minivllm"
    assert kept_code.cache_folder() == folder


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_without_a_wish_it_is_among_the_users_caches(package, tmp_path, monkeypatch, platform):
    monkeypatch.setattr(kept_code.sys, "platform", platform)
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert tmp_path in kept_code.cache_folder().parents


def test_a_folder_that_cannot_be_written_is_a_warning_and_works(package, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        folder = kept_code.cache_folder()
    assert folder.is_dir() and tmp_path not in folder.parents
    assert "set NUMBA_CACHE_DIR" in caplog.text
    folder.rmdir()


def test_a_user_without_a_home_has_a_folder_too(package, monkeypatch, caplog):
    """As in containers that run under any number: there is no HOME, and nobody of that number."""
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(number):
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    folder = kept_code.cache_folder()
    assert folder.is_dir() and "set NUMBA_CACHE_DIR" in caplog.text
    folder.rmdir()
    with pytest.raises(CannotWrite), new_folder(user_caches() / "minivllm", "cache"):
        pass
    with pytest.raises(ValueError, match=r"there is no folder"):
        check_new_folder("~/a/b", "out")


def test_the_setting_of_all_other_code_stays_as_it_was(tmp_path):
    before = numba.config.CACHE_DIR
    with pytest.raises(ZeroDivisionError), cache.kept_in(tmp_path):
        assert str(tmp_path) == numba.config.CACHE_DIR
        _ = 1 / 0
    assert before == numba.config.CACHE_DIR
    assert type(numba.njit(cache=True)(lambda x: x)._cache) is not cache.KernelCache


def test_the_kernels_are_kept_there():
    assert FOLDER in Path(rows.norm_rows.stats.cache_path).parents


# ---- damaged files -----------------------------------------------------------------------------------


@given(st.binary(max_size=50), st.data())
def test_a_sealed_file_is_what_was_written_or_damaged(tmp_path_factory, content, data):
    path = tmp_path_factory.getbasetemp() / "sealed"
    write_sealed(path, content)
    assert read_sealed(path) == content
    whole = path.read_bytes()
    other = data.draw(
        st.one_of(
            st.integers(0, len(whole) - 1).map(lambda size: whole[:size]),
            st.integers(0, len(whole) - 1).map(lambda i: whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :]),
            st.binary(max_size=100).filter(lambda other: other != whole),
        )
    )
    path.write_bytes(other)
    with pytest.raises(DamagedError):
        read_sealed(path)


def test_a_file_appears_when_it_is_whole(tmp_path, monkeypatch):
    """Whatever ends a process while it writes: the file is the old one, or the new one."""
    path = tmp_path / "file"
    write_sealed(path, b"old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_sealed(path, b"new")
    assert read_sealed(path) == b"old"


def twice_kept_in(folder):
    """A function whose compiled code is kept there; each call gives one that knows of none yet."""
    with cache.kept_in(folder):

        @numba.njit(cache=True)
        def twice(x):
            return 2 * x

    return twice


def num_compiled(function):
    return sum(function.stats.cache_misses.values())


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A folder with the code of `twice`, for whole numbers and for others."""
    folder = tmp_path_factory.mktemp("compiled")
    twice = twice_kept_in(folder)
    assert (twice(3), twice(1.5)) == (6, 3.0) and num_compiled(twice) == 2
    return folder


@pytest.fixture
def kept(compiled, tmp_path):
    kept_code.say_damaged.cache_clear()
    return Path(shutil.copytree(compiled, tmp_path / "kept"))


def test_compiled_code_is_found_again(kept, caplog):
    twice = twice_kept_in(kept)
    assert (twice(3), twice(1.5), num_compiled(twice)) == (6, 3.0, 0)
    assert not caplog.records


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(bytes(range(256)) * 40)


def wrong_pickle(path):
    path.write_bytes(pickle.dumps({"a": 1}))


def wrong_but_sealed(path):
    write_sealed(path, pickle.dumps(("a", 1)))


def sealed_without_meaning(path):
    write_sealed(path, b"no pickle")


def a_folder(path):
    path.unlink()
    path.mkdir()
    (path / "something").write_text("")


DAMAGES = (cut, empty, garbage, wrong_pickle, wrong_but_sealed, sealed_without_meaning, a_folder)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffixes", [(".nbi",), (".nbc",), (".nbi", ".nbc", ".lock")])
def test_damaged_code_is_compiled_anew_with_one_line(kept, caplog, damage, suffixes):
    for suffix in suffixes:
        for path in kept.rglob(f"*{suffix}"):
            damage(path)
    with caplog.at_level(logging.WARNING):
        twice = twice_kept_in(kept)
        assert (twice(3), num_compiled(twice)) == (6, 1)
    assert len([line for line in caplog.messages if "is damaged: it is compiled anew" in line]) <= 1
    assert len(caplog.messages) == (damage is not wrong_but_sealed)
    again = twice_kept_in(kept)
    assert (again(3), num_compiled(again)) == (6, 0)


def test_code_for_other_types_is_never_taken(kept):
    """Where two processes have chosen the same name for a file: it has the last one's code."""
    first, second = sorted(kept.rglob("*.nbc"))
    shutil.copy(second, first)
    twice = twice_kept_in(kept)
    assert (twice(3), twice(1.5), num_compiled(twice)) == (6, 3.0, 1)


def test_code_that_cannot_be_kept_is_compiled_and_used(tmp_path, monkeypatch, caplog):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "write_sealed", full)
    with caplog.at_level(logging.WARNING):
        twice = twice_kept_in(tmp_path)
        assert (twice(3), twice(1.5)) == (6, 3.0)
    assert len(caplog.messages) == 1 and "cannot be kept" in caplog.text and "No space left" in caplog.text


def test_a_process_that_waits_for_another_says_so(tmp_path, monkeypatch, caplog):
    asked = []

    def busy(_, how):
        asked.append(how)
        if how & cache.fcntl.LOCK_NB:
            raise BlockingIOError

    monkeypatch.setattr(cache.fcntl, "flock", busy)
    with caplog.at_level(logging.WARNING), cache.compiling_alone(tmp_path):
        pass
    assert len(asked) == 2 and caplog.messages == [
        "another process is compiling the same code; this one waits for it"
    ]


# ---- kinds -------------------------------------------------------------------------------------------


def test_a_kind_is_complete_as_long_as_its_files_are_there_and_undamaged(kept, caplog):
    files = list(kept.rglob("*.nb?"))
    assert not kept_code.is_complete(kept, "float32-step")
    kept_code.mark_complete(kept, "float32-step", files)
    assert kept_code.complete_kinds(kept) == ["float32-step"] and not caplog.records
    cut(files[0])
    assert kept_code.complete_kinds(kept) == [] and "is damaged" in caplog.text
    files[0].unlink()
    assert not kept_code.is_complete(kept, "float32-step")
    for stamp in (b"", b"{", json.dumps(["../x"]).encode()):
        (kept / "float32-step.complete").write_bytes(stamp)
        assert not kept_code.is_complete(kept, "float32-step")


def test_what_is_prepared_is_known_with_its_files(kept, tmp_path):
    files = cache.prepare(twice_kept_in(kept), 3)
    assert {path.suffix for path in files} == {".nbi", ".nbc"} and all(path.is_file() for path in files)
    twice = twice_kept_in(kept)
    twice._cache.disable()
    assert [path.name for path in cache.prepare(twice, 3j)] == ["not kept"]


# ---- several processes -------------------------------------------------------------------------------


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
    with ExitStack() as stack:
        processes = [stack.enter_context(patience.running(command, **pipes)) for _ in range(3)]
        for process in processes:
            with patience.speaking(process):
                assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        misses = [int(process.communicate(timeout=patience.SECONDS)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(misses) == [0, 0, 1]
