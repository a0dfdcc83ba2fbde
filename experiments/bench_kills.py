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

import random
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from wsrun.report.console import console, grid, guarded, progress
from wsrun.report.tables import check_writable, plain, provenance, write_table
from wsrun.study.shards import finished

NAME = "bench_kills"
SCRIPT = Path(__file__).parent / "t6_shared_svd.py"
TABLES = ("t6_shared_svd.parquet", "t6_shared_svd.rows.parquet")
Seen = dict[str, tuple[int, int]]  # file -> (inode, time of writing)


@dataclass(frozen=True)
class Config:
    """Options of bench_kills."""

    kills: int = 20
    """how many runs are killed before the last one may end"""
    flags: tuple[str, ...] = ("--K", "32")
    """options of T6"""
    seed: int = 0
    """seed of the moments"""
    folder: Path = Path("artifacts/bench") / NAME
    """where T6 writes; emptied at the start and at the end"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""


def main(cfg: Config) -> None:
    """One run that is never stopped, then kills and restarts, then the comparison."""
    if cfg.kills < 1:
        raise ValueError(f"{NAME}: --kills {cfg.kills} asked; it must be 1 or more")
    check_writable(cfg.out)
    shutil.rmtree(cfg.folder, ignore_errors=True)
    draw, lines = random.Random(cfg.seed), []
    with progress("runs of T6", cfg.kills + 2) as step:
        began = time.monotonic()
        start(cfg, "whole").wait()
        seconds = time.monotonic() - began
        whole, all_parts = take(cfg), set(seen(cfg, "whole"))
        step(f"whole run, {seconds:.0f} s")
        kept: Seen = {}
        for n in range(cfg.kills):
            share = (len(all_parts) - len(kept)) // (cfg.kills - n)
            line, kept = killed(cfg, draw, len(kept) + draw.randint(0, 2 * share), kept)
            lines.append(line)
            step(f"{len(kept)} of {len(all_parts)} results finished")
            take(cfg)
        start(cfg, "parts").wait()
        last, end = take(cfg), seen(cfg, "parts")
        lines.append(
            {"seconds": None, "ended": True, "finished": len(end), "again": written(kept, end)}
        )
        step("last run")
    shutil.rmtree(cfg.folder)
    table = pl.DataFrame(lines, infer_schema_length=None)
    path = write_table(table, cfg.out / f"{NAME}.parquet", provenance(plain(asdict(cfg))))
    heads = ("killed after s", "ended before", "results finished", "written again")
    console.print(grid(f"T6, {seconds:.0f} s when not stopped", heads, table.iter_rows()))
    same, again = last == whole and set(end) == all_parts, table["again"].sum()
    console.print(
        f"{(~table['ended']).sum()} kills hit a running process; tables are "
        f"{'the same bytes' if same else 'DIFFERENT'}; {again} finished results written again: the "
        f"rule {'holds' if same and not again else 'does not hold'}"
    )
    console.print(f"table {path}")


def start(cfg: Config, parts: str) -> subprocess.Popen:
    """T6 as a process, its results under `parts`."""
    command = [sys.executable, SCRIPT, *cfg.flags, "--out", cfg.folder / "out"]
    command += ["--parts", cfg.folder / parts]
    quiet = subprocess.DEVNULL
    return subprocess.Popen([str(c) for c in command], stdout=quiet, stderr=quiet)


def killed(cfg: Config, draw: random.Random, goal: int, kept: Seen) -> tuple[dict, Seen]:
    """A run killed once `goal` results are finished: what is noted of it, and the results now."""
    began, run = time.monotonic(), start(cfg, "parts")
    while run.poll() is None and finished(cfg.folder / "parts") < goal:
        time.sleep(0.05)
    time.sleep(draw.uniform(0, 1))
    seconds = time.monotonic() - began
    run.kill()
    ended, now = run.wait() == 0, seen(cfg, "parts")
    again = written(kept, now)
    return {"seconds": seconds, "ended": ended, "finished": len(now), "again": again}, now


def written(before: Seen, now: Seen) -> int:
    """How many of the files known before are gone or were written anew."""
    return sum(now.get(name) != mark for name, mark in before.items())


def seen(cfg: Config, parts: str) -> Seen:
    """The finished results of a folder."""
    files = (cfg.folder / parts).rglob("*.safetensors")
    found = {f.name: f.stat() for f in files if not f.name.startswith(".")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def take(cfg: Config) -> list[bytes]:
    """The bytes of the tables, which are deleted; [] where a run has not come so far."""
    paths = [cfg.folder / "out" / name for name in TABLES]
    found = [p.read_bytes() for p in paths if p.is_file()]
    for path in paths:
        path.unlink(missing_ok=True)
    return found


if __name__ == "__main__":
    guarded(main, Config)
