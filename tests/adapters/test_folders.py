"""Folders of adapters: whole or not at all, whoever is killed or works there at the same time."""

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from wsrun.adapters import folders
from wsrun.adapters.folders import read_folder, replace_folder, settle

SIDES = "pos", "neg"
FORK = multiprocessing.get_context("fork")
SWAPS = [True, False]  # whether the file system can swap two names


def pair(text: str):
    """A writer of both poles, each of two files that say `text`."""

    def write(new: Path) -> None:
        for side in SIDES:
            (new / side).mkdir()
            for name in ("config", "model"):
                (new / side / name).write_text(text)

    return write


def said(folder: Path) -> set[str]:
    """What the files of both poles say, each read by its path."""
    return {(folder / s / n).read_text() for s in SIDES for n in ("config", "model")}


def visible(parent: Path) -> list[str]:
    return sorted(p.name for p in parent.iterdir())


def no_swap(monkeypatch):
    monkeypatch.setattr(folders, "_swap", lambda a, b: False)


@pytest.fixture(params=SWAPS, ids=["swap", "no swap"])
def swap(request, monkeypatch):
    if not request.param:
        no_swap(monkeypatch)
    return request.param


def in_child(job) -> int:
    """Run job() in a child process; returns how it ended."""
    child = FORK.Process(target=job)
    child.start()
    child.join(300)
    assert child.exitcode is not None
    return child.exitcode


def test_a_folder_is_replaced_and_nothing_is_left(tmp_path, swap):
    """old, then new; nothing beside it; a folder that cannot be written leaves the old one"""
    path = tmp_path / "lora-s0"
    for text in ("old", "new"):
        assert replace_folder(path, pair(text)) == path and said(path) == {text}
    assert visible(tmp_path) == ["lora-s0"]

    def broken(new: Path) -> None:
        pair("broken")(new)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_folder(path, broken)
    assert said(path) == {"new"} and visible(tmp_path) == ["lora-s0"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="file' cannot be written"):
        replace_folder(tmp_path / "file", pair("new"))
    assert visible(tmp_path) == ["file", "lora-s0"]


STEPS = {  # where a process is killed that replaces a folder: whether names can be swapped there
    "sync": (True, False),
    "rename 0": (True, False),  # of the new one, in vain: the old one is there
    "swap": (True,),
    "rename 1": (False,),  # of the old one, aside
    "rename 2": (False,),  # of the new one: nothing is in place
    "rename 3": (False,),  # of the one aside, to be removed
    "rmtree": (True, False),
}


def kill_at(step: str, patch: pytest.MonkeyPatch) -> None:
    """Let this process be killed as it comes to a step."""
    renames, real = [], Path.rename

    def die(*args, **more):
        os.kill(os.getpid(), signal.SIGKILL)

    def rename(self, target):
        if step == f"rename {len(renames)}":
            die()
        renames.append(self)
        return real(self, target)

    patch.setattr(Path, "rename", rename)
    if step in ("sync", "swap", "rmtree"):
        owner, name = (shutil, step) if step == "rmtree" else (folders, step.replace("sw", "_sw"))
        patch.setattr(owner, name, die)


@pytest.mark.parametrize("step, swaps", [(s, x) for s, found in STEPS.items() for x in found])
def test_a_kill_at_any_step_loses_nothing(tmp_path, monkeypatch, step, swaps):
    """after the kill a reader finds the old pair or the new one, whole; the next writer cleans"""
    path = tmp_path / "lora-s0"
    replace_folder(path, pair("old"))
    if not swaps:
        no_swap(monkeypatch)

    def job():
        kill_at(step, monkeypatch)  # of the child alone
        replace_folder(path, pair("new"))

    assert in_child(job) == -signal.SIGKILL
    assert read_folder(path, said) == ({"new"} if step in ("rename 3", "rmtree") else {"old"})
    replace_folder(path, pair("newer"))
    assert said(path) == {"newer"} and visible(tmp_path) == ["lora-s0"]


def test_a_half_written_folder_is_never_in_place(tmp_path, swap):
    """killed while it writes the first pair ever: there is none"""
    path = tmp_path / "lora-s0"

    def half(new: Path) -> None:
        (new / "neg").mkdir()
        os._exit(1)

    assert in_child(lambda: replace_folder(path, half)) == 1
    assert not path.exists() and len(visible(tmp_path)) == 1
    settle(path)
    assert visible(tmp_path) == []


def test_a_living_writers_folder_is_left_alone(tmp_path):
    """another process at work: its folder stays; one of another machine stays for a week"""
    path, go = tmp_path / "lora-s0", FORK.Event()

    def slow(new: Path) -> None:
        pair("slow")(new)
        go.wait(300)

    child = FORK.Process(target=lambda: replace_folder(path, slow))
    child.start()
    while not list(tmp_path.glob(".*")):
        time.sleep(0.01)
    replace_folder(path, pair("quick"))
    assert said(path) == {"quick"} and len(visible(tmp_path)) == 2
    go.set()
    child.join(300)
    assert child.exitcode == 0 and said(path) == {"slow"} and visible(tmp_path) == ["lora-s0"]
    other = tmp_path / ".lora-s0.1-elsewhere-1-ab.partial"
    other.mkdir()
    settle(path)
    assert other.exists()
    os.utime(other, (0, 0))
    settle(path)
    assert not other.exists()


def test_two_writers_and_a_reader(tmp_path, swap):
    """two processes replace one folder 60 times each: what is read is one state, never half"""
    path = tmp_path / "lora-s0"
    replace_folder(path, pair("first"))

    def many(name: str) -> None:
        for n in range(60):
            replace_folder(path, pair(f"{name} {n}"))

    children = [FORK.Process(target=many, args=(name,)) for name in "ab"]
    for child in children:
        child.start()
    reads = []
    while any(child.is_alive() for child in children):
        try:
            reads.append(read_folder(path, said))
        except ValueError as error:
            assert "replaced again and again" in str(error)
    assert [child.exitcode for child in children] == [0, 0]
    reads.append(read_folder(path, said))  # a slow machine may have read none in the meantime
    assert all(len(texts) == 1 for texts in reads)
    assert said(path) in ({"a 59"}, {"b 59"}) and visible(tmp_path) == ["lora-s0"]


def test_a_reader_whose_folder_is_renamed_aside_meanwhile(tmp_path, monkeypatch):
    """a writer that has the old folder aside as the reader looks: read as soon as one is back"""
    path, real, moved = tmp_path / "lora-s0", folders.settle, []
    replace_folder(path, pair("old"))

    def writer(at: Path) -> None:
        real(at)
        if len(moved) < 2:  # again before the reader comes to it
            moved.append(at.rename(folders._beside(at, folders.ASIDE)))

    writer(path)
    monkeypatch.setattr(folders, "settle", writer)
    assert read_folder(path, said) == {"old"} and len(moved) == 2


def test_what_a_reader_raises_of_a_folder_that_stands_still(tmp_path):
    """a missing folder, and one that cannot be read, raise what the reader raises, at once"""
    calls = []

    def read(folder: Path) -> None:
        calls.append(folder)
        raise ValueError("no pair")

    with pytest.raises(ValueError, match="no pair"):
        read_folder(tmp_path / "none", read)
    assert len(calls) == 1
