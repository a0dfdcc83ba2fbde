"""Runs of one script that are killed, or two at once, and what is left of them on disk."""

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wsrun.adapters.checkpoint import CONFIG, WEIGHTS

Marks = dict[str, tuple[int, int]]  # finished results: file -> (inode, time of writing)


class Runs:
    """The runs of one script, one after another in one folder, so that all have one command.

    flags: its options, {0} for the folder, the last one of them for that of its finished results.
    trains: it has few results and trains anew, so a kill waits for a moment and not for a result.
    """

    def __init__(
        self, script: Path, flags: str, folder: Path, trains: bool, step: Callable[[str], Any]
    ) -> None:
        self.path, self.script, self.flags, self.trains = script, script.stem, flags, trains
        self.folder, self.step = folder, step
        self.again = self.half = 0

    def measure(self, kills: int, draw: random.Random) -> dict[str, Any]:
        """What came of all runs, as a line of the table."""
        began = time.monotonic()
        whole = self.last_run()
        seconds, total, hit = time.monotonic() - began, len(self.marks()), 0
        shutil.rmtree(self.folder)
        for n in range(kills):
            done, run = self.marks(), self.start()
            goal = len(done) + draw.randint(0, 2 * (total - len(done)) // (kills - n))
            moment = draw.uniform(0, seconds if self.trains else 1)
            self.wait(run, 0 if self.trains else goal, moment)
            run.kill()
            hit += run.wait() < 0
            self.compare(done)
            self.step(f"{self.script}: {len(self.marks())} of {total} results finished")
        killed = self.last_run()
        shutil.rmtree(self.folder)
        for run in [self.start(), self.start()]:
            self.wait(run, total + 1, 0)
            self.step(f"{self.script}, two at once")
        two = self.contents()
        return {
            "seconds": round(seconds, 1), "kills": kills, "hit": hit, "results": total,
            "written_again": self.again, "half_pairs": self.half,
            "killed_same": killed == whole, "two_at_once_same": two == whole == self.last_run(),
        }  # fmt: skip

    def last_run(self) -> dict[str, bytes]:
        """What is there after a run that is not stopped."""
        done, run = self.marks(), self.start()
        self.wait(run, sys.maxsize, 0)
        if run.returncode:
            raise ValueError(f"{self.script} ended with exit code {run.returncode}")
        self.compare(done)
        self.step(f"{self.script}, whole run")
        return self.contents()

    def start(self) -> subprocess.Popen:
        """The script as a process of its own."""
        flags, quiet = self.flags.format(self.folder).split(), subprocess.DEVNULL
        command = [sys.executable, self.path, "--out", self.folder / "out"]
        command += [*flags, self.folder / "kept"]
        return subprocess.Popen([str(c) for c in command], stdout=quiet, stderr=quiet)

    def wait(self, run: subprocess.Popen, goal: int, seconds: float) -> None:
        """Wait until so many results are finished and some seconds more, or the run has ended."""
        while run.poll() is None and len(self.marks()) < goal:
            self.half += sum(not whole(pair) for pair in self.pairs())
            time.sleep(0.05)
        end = time.monotonic() + seconds
        while run.poll() is None and time.monotonic() < end:
            self.half += sum(not whole(pair) for pair in self.pairs())
            time.sleep(0.02)

    def compare(self, before: Marks) -> None:
        """Count which of the results before are gone or were written anew, and half pairs."""
        now = self.marks()
        self.again += sum(now.get(name) != mark for name, mark in before.items())
        self.half += sum(not whole(pair) for pair in self.pairs())

    def pairs(self) -> Iterator[Path]:
        return (self.folder / "adapters").glob("[!.]*")

    def marks(self) -> Marks:
        """The finished results."""
        files = (p for p in (self.folder / "kept").rglob("[!.]*") if p.is_file())
        stats = {p.name: p.stat() for p in files}
        return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}

    def contents(self) -> dict[str, bytes]:
        """Every file that the script writes beside its finished results, figures too."""
        files = (p for d in ("out", "adapters", "deltas") for p in (self.folder / d).rglob("[!.]*"))
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in files if p.is_file()}


def whole(pair: Path) -> bool:
    """Whether both poles of a pair have their two files."""
    return all(
        (pair / side / name).is_file() for side in ("pos", "neg") for name in (CONFIG, WEIGHTS)
    )
