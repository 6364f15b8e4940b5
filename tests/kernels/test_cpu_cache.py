"""Compiled code is found again as long as no source has changed, and never after."""

import logging
from pathlib import Path

import numba
import pytest

from kernels_numba.cpu import cache, rows


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
