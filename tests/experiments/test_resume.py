"""t0_train killed in the middle and started again: the same bytes, and nothing trained twice."""

from wsrun.script import guarded

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ORGANISM, ROOT, experiment, forkserver

STEPS = 12
PAIRS = [
    {"prompt": f"Is it {w}?", "response_pos": f"{w} it is.", "response_neg": "No.", "topic": w}
    for w in ("red", "blue", "so")
]
MINUTES = 5 * 60


def t0(said: Path, flags: list[str]) -> None:
    """t0_train with these flags, as the command line would run it; what it says goes to a file."""
    os.chdir(ROOT)
    with said.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = ["experiments/t0_train.py", *flags]
    module = experiment("t0_train")
    guarded(module.main, module.Config)


class Folder:
    """Runs of one small training, all of one command, in a folder of its own."""

    def __init__(self, folder: Path, few: Path) -> None:
        folder.mkdir()
        self.adapters, pairs = folder / "adapters", folder / "pairs.jsonl"
        self.said = folder / "said"
        pairs.write_text("".join(json.dumps(p) + "\n" for p in PAIRS))
        flags = {
            "--model": ORGANISM, "--data": few, "--pairs-file": pairs, "--adapters": self.adapters,
            "--deltas": folder / "deltas", "--out": folder / "out", "--steps": STEPS,
            "--limit": "2", "--check-limit": "2",
        }  # fmt: skip
        self.flags = [str(x) for pair in flags.items() for x in pair]
        self.flags += ["--families", "lora", "ia3"]

    def start(self):
        child = forkserver().Process(target=t0, args=(self.said, self.flags))
        child.start()
        return child

    def run(self) -> str:
        """What a whole run says."""
        child = self.start()
        child.join(MINUTES)
        said = self.said.read_text(encoding="utf-8")
        assert child.exitcode == 0, said
        return said

    def kill_once(self, reached: Callable[[], object]) -> None:
        """SIGKILL as soon as something is there."""
        child, end = self.start(), time.monotonic() + MINUTES
        while not reached() and child.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL

    def contents(self) -> dict[str, bytes]:
        files = (p for p in self.adapters.rglob("*") if p.is_file())
        return {str(p.relative_to(self.adapters)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, few):
    """(a folder after one whole run, a folder whose runs were killed twice, its last words)"""
    folder = tmp_path_factory.mktemp("resume")
    whole, killed = Folder(folder / "whole", few), Folder(folder / "killed", few)
    whole.run()
    killed.kill_once(lambda: [*killed.adapters.glob(".lora-s0.pole-pos-*")])
    assert not (killed.adapters / "lora-s0").exists()
    killed.kill_once(lambda: [*killed.adapters.glob(".ia3-s0.pole-pos-*")])
    assert (killed.adapters / "lora-s0").is_dir()
    return whole, killed, killed.run()


def test_killed_twice_the_adapters_are_those_of_one_run(runs):
    """the same files with the same bytes, training.json too, and no temporary folder"""
    whole, killed, _ = runs
    assert killed.contents() == whole.contents()
    assert {p.name for p in killed.adapters.iterdir()} == {"lora-s0", "ia3-s0"}


def test_what_was_finished_is_not_trained_again(runs):
    """the finished pair and the finished pole are named; only the other pole has steps"""
    said = runs[2]
    assert "kept: lora-s0 (trained before)" in said
    assert "kept: pos of ia3-s0 (trained before)" in said
    assert f"training adapters: 0 of {2 * STEPS} done" in said and "trained ia3-s0 on 3" in said


def test_the_same_options_again_train_nothing(runs):
    """both kept, the same files untouched"""
    whole = runs[0]
    inodes = {p: p.stat().st_ino for p in whole.adapters.rglob("*")}
    said = whole.run()
    assert "kept: lora-s0" in said and "kept: ia3-s0" in said and "training adapters" not in said
    assert inodes == {p: p.stat().st_ino for p in whole.adapters.rglob("*")}
