"""How far did a fine-tune move along a behaviour direction, and can one tell that it did?

Question:   from weights alone, does the cosine between the update tau of a fine-tune and a
            behaviour direction w, dW of other seeds, say that the fine-tune moved towards the
            behaviour, and stay silent on an update that did not?
Prediction: tau_pos lies along w and tau_neg against it in every pair of families; a planted update,
            random + 0.3 w, is found; random updates are not.
Rule:       an update is detected where its cosine lies outside the range of those of the same
            update with the control directions: |cos| above all of them, rank p <= 0.05 two-sided.
            Towards or away by the sign. Over many random updates 1 in 21 is found by chance.

    python experiments/t14_monitor.py
    python experiments/t14_monitor.py --direction-seeds 1 --families lora oft

The monitoring of Fierro & Roger 2025 (arXiv 2511.05408). Control directions are random ones with
w's own singular values (20 draws), and w with its layers rotated, so that none stays where it was;
none of them is of another behaviour. Updates are tau_pos and tau_neg of every family at --seed;
drift, their mean, which is what both poles learned; random, an update with tau_pos's singular
values in random directions; planted, random + 0.3 w of equal norms. w is the sum of a family's dW
over --direction-seeds, each at norm 1. Families adapt different tensors (IA3 only k, v and down),
so a cosine is taken over the tensors that both change: `common` is their share of |tau|^2. along =
<tau, w>/|w|^2 over them is the dose of w in the update, w at the norm of its first seed's dW.
Layers have lines of their own.
"""

from wsrun.script import guarded

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from wscore import tensors_sha256
from wsrun.adapters.configs import DEFAULT_FAMILIES, check_family
from wsrun.models.load import limit_threads, load_model
from wsrun.report.console import console, progress
from wsrun.report.tables import check_writable, provenance, write_table
from wsrun.report.verdicts import verdict_table
from wsrun.study.monitor import (
    cosine_figure,
    cosine_grids,
    cosines,
    detection_rates,
    detections,
    direction,
    updates,
)
from wsrun.study.next_command import say_next
from wsrun.study.options import Common, check_once
from wsrun.study.session import Pairs, read_pairs, save_figure

EXPERIMENT = "t14_monitor"


@dataclass(frozen=True)
class Config:
    """Options of T14."""

    families: tuple[str, ...] = DEFAULT_FAMILIES
    """adapter families, of updates and of directions"""
    seed: int = 0
    """whose adapters are the fine-tunes"""
    direction_seeds: tuple[int, ...] = (1, 2)
    """whose dW are the behaviour directions; never that of the fine-tunes"""
    draws: int = 20
    """random control directions for every direction"""
    planted: float = 0.3
    """how much of the direction is planted, in units of the random update's norm"""
    model: str = "data/organism"
    """model folder or hub name"""
    adapters: Path = Path("data/organism/adapters")
    """folder with <family>-s<seed>/pos and /neg, trained on that model"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""
    dtype: str = "float32"
    """dtype of the model"""
    device: str = "cpu"
    """device of the model"""


def main(cfg: Config) -> None:
    """Read adapters, take every cosine, write one table, print what was detected."""
    check(cfg)
    model, _ = load_model(cfg.model, cfg.dtype, cfg.device)
    limit_threads(model)
    seeds = (cfg.seed, *cfg.direction_seeds)
    common = Common(families=cfg.families, seeds=seeds, adapters=cfg.adapters)
    pairs = read_pairs(model, common)
    with progress("cosines", len(cfg.families) ** 2) as step:
        lines = list(measure(cfg, pairs, step))
    table = pl.DataFrame(lines, infer_schema_length=None).with_columns(
        pl.lit(EXPERIMENT).alias("experiment"), pl.lit(cfg.model).alias("model")
    )
    base = tensors_sha256(dict(model.named_parameters()))
    deltas = {f"{f}-s{s}": tensors_sha256(p.dW) for (f, s), p in pairs.items()}
    record = provenance(asdict(cfg), base=base, deltas=deltas)
    path = write_table(table, cfg.out / f"{EXPERIMENT}.parquet", record)
    verdicts = verdict_table(detections(table))
    write_table(verdicts, cfg.out / f"{EXPERIMENT}.verdicts.parquet", record)
    console.print(f"table {path}")
    save_figure(cosine_figure, table, path)
    for printed in cosine_grids(table, cfg.families):
        console.print(printed)
    for sentence in detection_rates(table):
        console.print(sentence)
    say_next(cfg, "report", "one page over all tables")


def check(cfg: Config) -> None:
    """Refuse options that cannot work before anything is loaded."""
    for family in cfg.families:
        check_family(family)
    check_once("t14", {"families": cfg.families, "direction-seeds": cfg.direction_seeds})
    if cfg.seed in cfg.direction_seeds:
        raise ValueError(
            f"t14: seed {cfg.seed} is among --direction-seeds; a direction must not be made of the "
            "fine-tune it is to find"
        )
    if cfg.draws < 20:
        raise ValueError(f"t14: --draws must be at least 20 for p <= 0.05, got {cfg.draws}")
    if not cfg.planted > 0:
        raise ValueError(f"t14: --planted must be above 0, got {cfg.planted:g}")
    check_writable(cfg.out)


def measure(cfg: Config, pairs: Pairs, step: Callable[[str], None]) -> Iterator[Mapping]:
    """One line for every family, direction, update, and layer (None: all of them)."""
    for j, of in enumerate(cfg.families):
        family_direction = direction([pairs[of, s].dW for s in cfg.direction_seeds], cfg.draws)
        for i, family in enumerate(cfg.families):
            pair = pairs[family, cfg.seed]
            tags = {"family": family, "direction": of, "seed": cfg.seed}
            # random updates are drawn anew for each direction
            for name, tau in updates(pair, family_direction.w, cfg.planted, i + 100 * j).items():
                for line in cosines(tau, family_direction):
                    yield tags | {"update": name} | line
            step(f"{family} along {of}")


if __name__ == "__main__":
    guarded(main, Config)
