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
has finished a random number of results; one of t0_train, which keeps finished poles, at a random
moment. A finished result is one file; a second writing would give it a new inode and time, which
are compared after every kill. Each run is a process of its own, with a small setting of the
script's options.
"""

from wsrun.script import guarded

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from wsrun.report.console import progress
from wsrun.report.tables import check_writable
from wsrun.study.kills import Runs
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
    with progress("runs", cfg.kills + 5 * len(cfg.scripts)) as step:
        for n, script in enumerate(cfg.scripts):
            kills = cfg.kills // len(cfg.scripts) + (n < cfg.kills % len(cfg.scripts))
            path, trains = Path(__file__).parent / f"{script}.py", script == "t0_train"
            runs = Runs(path, SCRIPTS[script], cfg.folder / script, trains, step)
            lines.append({"script": script, **runs.measure(kills, draw)})
    shutil.rmtree(cfg.folder, ignore_errors=True)
    hit, again, half = (sum(x[k] for x in lines) for k in ("hit", "written_again", "half_pairs"))
    same = all(line["killed_same"] and line["two_at_once_same"] for line in lines)
    why = f"{hit} kills hit a running process, {again} finished results were written again, {half} "
    why += f"half pairs were seen, tables and adapters {'are the same bytes' if same else 'DIFFER'}"
    finish(cfg, NAME, "runs that were killed", lines, same and not again and not half, why)


if __name__ == "__main__":
    guarded(main, Config)
