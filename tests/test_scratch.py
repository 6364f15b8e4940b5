"""Folders for a while are gone when nobody holds them, however the owner ended; nothing else is touched."""

import os
import signal
import subprocess
import sys

import pytest

from minivllm import scratch
from minivllm.scratch import ScratchFolder
from tests import patience

OWNER = """
import sys
from minivllm.scratch import ScratchFolder

folder = ScratchFolder("test", sys.argv[1])
(folder.path / "some").write_text("thing")
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path):
    """Another process that has made a folder, and goes on."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with patience.running([sys.executable, "-c", OWNER, str(tmp_path)], **pipes) as process:
        with patience.speaking(process):
            process.folder = process.stdout.readline().rstrip()
        yield process


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_it_is_gone_with_its_block_and_not_before(tmp_path):
    with pytest.raises(ZeroDivisionError), ScratchFolder("test", tmp_path) as path:
        assert scratch.NAME.fullmatch(path.name)
        (path / "sub").mkdir()
        with ScratchFolder("other", tmp_path) as other:
            assert names(tmp_path) == {path.name, other.name}
        assert names(tmp_path) == {path.name}
        raise ZeroDivisionError
    assert not names(tmp_path)


def test_it_is_gone_with_its_process(owner, tmp_path):
    assert names(tmp_path) == {os.path.basename(owner.folder)}
    owner.communicate(timeout=patience.SECONDS)
    assert not names(tmp_path)


def test_the_folder_of_a_killed_process_goes_with_the_next_one_made_and_that_of_a_living_one_stays(
    owner, tmp_path
):
    for _ in range(3):
        with ScratchFolder("test", tmp_path):
            assert os.listdir(owner.folder) == ["some"]
    owner.send_signal(signal.SIGKILL)
    owner.wait(patience.SECONDS)
    assert os.listdir(owner.folder) == ["some"]
    with ScratchFolder("test", tmp_path) as path:
        assert names(tmp_path) == {path.name}


def test_nothing_else_is_touched(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    others = [
        "minivllm-out",
        "minivllm-bench-abc",
        "my-minivllm-bench-abc.scratch",
        "minivllm-a-b.scratch.kept",
    ]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / "minivllm-link-abc.scratch").symlink_to(elsewhere, target_is_directory=True)
    (tmp_path / "minivllm-file-abc.scratch").write_text("no folder")
    (tmp_path / "minivllm-old-abc.scratch").mkdir()
    before = names(tmp_path)
    with ScratchFolder("test", tmp_path):
        pass
    assert names(tmp_path) == before - {"minivllm-old-abc.scratch"}


def test_a_folder_that_is_taken_for_abandoned_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    made, mkdtemp = [], scratch.mkdtemp

    def and_removed_at_once(*arguments):
        made.append(mkdtemp(*arguments))
        if len(made) == 1:
            scratch.remove_abandoned(tmp_path)
        return made[-1]

    monkeypatch.setattr(scratch, "mkdtemp", and_removed_at_once)
    with ScratchFolder("test", tmp_path) as path:
        assert len(made) == 2 and names(tmp_path) == {path.name}


def test_without_locks_nothing_is_removed_but_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "fcntl", None)
    (tmp_path / "minivllm-old-abc.scratch").mkdir()
    with ScratchFolder("test", tmp_path) as path:
        assert path.is_dir()
    assert names(tmp_path) == {"minivllm-old-abc.scratch"}
