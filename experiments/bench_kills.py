"""Do runs that are killed again and again, or two at once, end as one that was left alone?

Question:   T6, t0_train and T3, killed by SIGKILL at random moments and started again each time,
            and two of each at once on one folder: are tables, adapters and deltas those of a run
            that was never stopped, byte for byte, is any finished result written again, and is half
            a pair of adapters ever in place?
Prediction: the same bytes; none; never.
Rule:       holds if so for every script.

    python experiments/bench_kills.py --kills 40
    python experiments/bench_kills.py --kills 5 --scripts t6_shared_svd

The kills are dealt out over the scripts. A run is killed a random time, up to a second, after it
has finished a random number of results; one of t0_train, which trains anew, at a random moment. A
finished result is one file; a second writing would give it a new inode and time, which are compared
after every kill. Each run is a process of its own, with a small setting of the script's options.
"""

from wsrun.script import guarded

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsrun.adapters.extract import CONFIG, WEIGHTS
from wsrun.report.console import progress
from wsrun.report.tables import check_writable
from wsrun.study.profile import finish

NAME = "bench_kills"
FEW = "--dilemmas 4 --resamples 50"
SCRIPTS = {
    "t6_shared_svd": f"--families lora oft --K 32 --nulls 2 {FEW} --cache-dir",
    "t0_train": "--families lora --steps 20 --adapters {0}/adapters --deltas {0}/deltas "
    "--pairs-cache",
    "t3_prompts": f"--families lora --n-random 2 {FEW} --cache-dir",
}
"""options of each script, the last one of them is the folder of its finished results"""
Marks = dict[str, tuple[int, int]]  # finished results: file -> (inode, time of writing)


@dataclass(frozen=True)
class Config:
    """Options of bench_kills."""

    kills: int = 40
    """how many runs are killed, of all scripts together"""
    scripts: tuple[str, ...] = tuple(SCRIPTS)
    """which scripts"""
    folder: Path = Path("artifacts/bench") / NAME
    """where the scripts write; emptied at the start and at the end"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""


def main(cfg: Config) -> None:
    """For each script a run that is never stopped, kills and restarts, then two at once."""
    if cfg.kills < len(cfg.scripts) or not set(cfg.scripts) <= set(SCRIPTS):
        raise ValueError(
            f"{NAME}: --kills needs one a script, --scripts are of {', '.join(SCRIPTS)}"
        )
    check_writable(cfg.out)
    shutil.rmtree(cfg.folder, ignore_errors=True)
    draw, lines = random.Random(0), []
    with progress("runs", cfg.kills + 4 * len(cfg.scripts)) as step:
        for n, script in enumerate(cfg.scripts):
            kills = cfg.kills // len(cfg.scripts) + (n < cfg.kills % len(cfg.scripts))
            lines.append({"script": script, **Runs(cfg, script, step).measure(kills, draw)})
    shutil.rmtree(cfg.folder, ignore_errors=True)
    hit, again, half = (sum(x[k] for x in lines) for k in ("hit", "written_again", "half_pairs"))
    same = all(line["killed_same"] and line["two_at_once_same"] for line in lines)
    why = f"{hit} kills hit a running process, {again} finished results were written again, {half} "
    why += f"half pairs were seen, tables and adapters {'are the same bytes' if same else 'DIFFER'}"
    finish(cfg, NAME, "runs that were killed", lines, same and not again and not half, why)


class Runs:
    """The runs of one script, one after another in one folder, so that all have one command."""

    def __init__(self, cfg: Config, script: str, step: Any) -> None:
        self.folder, self.script, self.step = cfg.folder / script, script, step
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
            trains = self.script == "t0_train"
            self.wait(run, 0 if trains else goal, draw.uniform(0, seconds if trains else 1))
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
            raise ValueError(f"{NAME}: {self.script} ended with exit code {run.returncode}")
        self.compare(done)
        self.step(f"{self.script}, whole run")
        return self.contents()

    def start(self) -> subprocess.Popen:
        path, quiet = Path(__file__).parent / f"{self.script}.py", subprocess.DEVNULL
        flags = SCRIPTS[self.script].format(self.folder).split()
        command = [sys.executable, path, "--out", self.folder / "out", *flags, self.folder / "kept"]
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


if __name__ == "__main__":
    guarded(main, Config)
