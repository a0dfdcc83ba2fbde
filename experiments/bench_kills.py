"""Does a run that is killed again and again end in the same table, and score nothing twice?

Question:   T6, killed by SIGKILL at random moments and started again each time: are its tables
            those of a run that was never stopped, byte for byte, and is any finished result scored
            again?
Prediction: the same bytes; none.
Rule:       holds if the bytes agree and no finished result's file was ever written a second time.

    python experiments/bench_kills.py
    python experiments/bench_kills.py --kills 5

A run is killed some random time, up to a second, after it has finished a random number of results,
which may be none: the runs share out what there is to do. A finished result is one file; a second
writing would give it a new inode and time, which are compared after every kill. Each run is a
process of its own, the whole command line of T6.
"""

from wsrun.script import guarded

import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from wsrun.report.console import progress
from wsrun.report.tables import check_writable
from wsrun.study.profile import finish
from wsrun.study.shards import finished

NAME = "bench_kills"
SCRIPT = Path(__file__).parent / "t6_shared_svd.py"
TABLES = ("t6_shared_svd.parquet", "t6_shared_svd.rows.parquet")
Files = dict[str, tuple[int, int]]  # finished results: file -> (inode, time of writing)


@dataclass(frozen=True)
class Config:
    """Options of bench_kills."""

    kills: int = 20
    """how many runs are killed before the last one may end"""
    flags: tuple[str, ...] = ("--K", "32")
    """options of T6"""
    folder: Path = Path("artifacts/bench") / NAME
    """where T6 writes; emptied at the start and at the end"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""


def main(cfg: Config) -> None:
    """One run that is never stopped, then kills and restarts, then the comparison."""
    if cfg.kills < 1:
        raise ValueError(f"{NAME}: --kills must be at least 1, got {cfg.kills}")
    check_writable(cfg.out)
    shutil.rmtree(cfg.folder, ignore_errors=True)
    draw, lines = random.Random(0), []
    with progress("runs of T6", cfg.kills + 2) as step:
        began = time.monotonic()
        start(cfg, "whole").wait()
        seconds = time.monotonic() - began
        whole, total = take_tables(cfg), set(results(cfg, "whole"))
        step(f"whole run, {seconds:.0f} s")
        done: Files = {}
        for n in range(cfg.kills):
            share = (len(total) - len(done)) // (cfg.kills - n)
            run = start(cfg, "killed")
            after = kill(cfg, run, len(done) + draw.randint(0, 2 * share), draw.uniform(0, 1))
            done, facts = compare(cfg, done)
            lines.append({"after_s": after, "killed": run.returncode != 0, **facts})
            take_tables(cfg)
            step(f"{len(done)} of {len(total)} results finished")
        start(cfg, "killed").wait()
        done, facts = compare(cfg, done)
        lines.append({"after_s": None, "killed": False, **facts})
        same = take_tables(cfg) == whole and set(done) == total
        step("last run")
    shutil.rmtree(cfg.folder)
    again, hit = (sum(line[name] for line in lines) for name in ("written_again", "killed"))
    why = f"{hit} kills hit a running process, {again} finished results were written again, tables"
    why += " are the same bytes" if same else " DIFFER"
    title = f"T6, {seconds:.0f} s when not stopped"
    finish(cfg, NAME, title, lines, same and not again, why)


def start(cfg: Config, results: str) -> subprocess.Popen:
    """T6 as a process that keeps its finished results under `results`."""
    command = [sys.executable, SCRIPT, *cfg.flags, "--out", cfg.folder / "out"]
    command += ["--cache-dir", cfg.folder / results]
    quiet = subprocess.DEVNULL
    return subprocess.Popen([str(c) for c in command], stdout=quiet, stderr=quiet)


def kill(cfg: Config, run: subprocess.Popen, goal: int, wait: float) -> float:
    """Kill a run `wait` seconds after `goal` results are finished; returns the seconds it had."""
    began = time.monotonic()
    while run.poll() is None and finished(cfg.folder / "killed") < goal:
        time.sleep(0.05)
    time.sleep(wait)
    seconds = time.monotonic() - began
    run.kill()
    run.wait()
    return seconds


def compare(cfg: Config, before: Files) -> tuple[Files, dict[str, int]]:
    """The finished results now, and how many of those before are gone or were written anew."""
    now = results(cfg, "killed")
    again = sum(now.get(name) != mark for name, mark in before.items())
    return now, {"finished": len(now), "written_again": again}


def results(cfg: Config, name: str) -> Files:
    """The finished results of a folder."""
    files = (cfg.folder / name).rglob("*.safetensors")
    stats = {f.name: f.stat() for f in files if not f.name.startswith(".")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def take_tables(cfg: Config) -> list[bytes]:
    """The bytes of the tables, which are deleted; [] where a run has not come so far."""
    paths = [path for name in TABLES if (path := cfg.folder / "out" / name).is_file()]
    content = [p.read_bytes() for p in paths]
    for path in paths:
        path.unlink()
    return content


if __name__ == "__main__":
    guarded(main, Config)
