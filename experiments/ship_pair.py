"""How small can a pair of LoRA adapters be and still steer? Writes the smallest that does.

Question:   which rank and dtype of the two poles keep the effect of dW on held-out questions?
Prediction: a rank well below the trained one, as the singular values of a trained change fall fast.
Rule:       the smallest pair, in bytes, whose effect on validation items is at least --keep of the
            whole one's at every alpha; it is then measured on test items.

    python experiments/ship_pair.py --model smollm2 --data truthfulqa:TruthfulQA.csv \\
        --adapters artifacts/adapters --to data/smollm2/adapters/lora-s0

Each pole is cut to the rank by its singular values (wsrun/export/lora.py) and written as PEFT
adapters with a card. Where no pair keeps that much, nothing is written to --to.
"""

from wsrun.script import guarded

import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from wscore import effect_table
from wsrun.adapters.checkpoint import CONFIG
from wsrun.adapters.extract import PairDelta, pair_deltas
from wsrun.adapters.folders import check_replaceable, replace_folder
from wsrun.data.named import DATA_SETS, named
from wsrun.data.source import source_name
from wsrun.export import save_lora
from wsrun.models.load import DTYPES
from wsrun.report.console import console, grid
from wsrun.report.wording import with_interval
from wsrun.score.variants import Variant
from wsrun.steer.interventions import WeightDelta
from wsrun.study.next_command import say_next
from wsrun.study.options import Common, check_common, check_once
from wsrun.study.scoring import run_sweep
from wsrun.study.session import Session, read_pairs, run_record, write_tables
from wsrun.study.start import load_splits

EXPERIMENT = "ship_pair"
WHOLE = "whole"
BY = ("dataset", "variant", "alpha")
HEADS = ("split", "data set", "pair", "alpha", "MB", "effect", "retained")


@dataclass(frozen=True)
class Config(Common):
    """Options of ship_pair."""

    families: tuple[str, ...] = ("lora",)
    """the family to cut; one"""
    alphas: tuple[float, ...] = (-1.0, 1.0)
    """doses at which the effect must be kept"""
    ranks: tuple[int, ...] = (2, 4, 8)
    """ranks to try"""
    dtypes: tuple[str, ...] = ("bfloat16",)
    """dtypes of the files to try"""
    keep: float = 0.9
    """share of the effect that must be kept"""
    to: Path = Path("artifacts/shipped/lora-s0")
    """folder that receives pos, neg and a card"""


def main(cfg: Config) -> None:
    """Cut the poles at every rank and dtype, measure, choose, measure again, write."""
    check(cfg)
    validation, test = load_splits(cfg)
    pairs = read_pairs(test.model, cfg)
    (pair,) = pairs.values()
    with TemporaryDirectory(dir=cfg.out) as work:
        cut = dict(written(cfg, test, pair, Path(work)))
        size = {name: megabytes(folder) for name, folder in cut.items()}
        deltas = {n: pair_deltas(test.model, f).dW for n, f in cut.items()}
        variants = [Variant(n, WeightDelta(d)) for n, d in {WHOLE: pair.dW, **deltas}.items()]
        _, tried = measured(cfg, validation, variants)
        chosen = smallest(tried, size, cfg.keep)
        kept = [v for v in variants if v.name in (WHOLE, chosen)]
        rows, table = measured(cfg, test, kept)
        parts = {"validation": tried, "test": table}
        table = pl.concat(t.with_columns(split=pl.lit(s)) for s, t in parts.items())
        table = table.with_columns(mb=pl.col("variant").replace_strict(size, default=None))
        record = run_record(cfg, test, pairs, chosen=chosen)
        write_tables(cfg, EXPERIMENT, rows, table, record)
        console.print(grid("what a smaller pair keeps", HEADS, map(line, table.to_dicts())))
        if chosen is None:
            console.print(f"no pair keeps {cfg.keep:.0%} of the effect; try more --ranks")
            return
        text = card(cfg, chosen, table)
        replace_folder(cfg.to, lambda new: put(cut[chosen], new, text))
    console.print(f"{cfg.to}: {chosen}, {size[chosen]:.2f} MB", highlight=False)
    cfg = replace(cfg, adapters=cfg.to.parent)
    say_next(cfg, "samples", "what it makes the model say")


def check(cfg: Config) -> None:
    """Refuse options that cannot work before anything is loaded."""
    check_common(cfg, EXPERIMENT)
    check_once(EXPERIMENT, {"ranks": cfg.ranks, "dtypes": cfg.dtypes})
    if len(cfg.families) * len(cfg.seeds) != 1 or cfg.shard or cfg.executor != "local":
        raise ValueError(f"{EXPERIMENT}: one pair is cut, in one process; name one family and seed")
    if min(cfg.ranks) < 1 or not 0 < cfg.keep <= 1:
        raise ValueError(f"{EXPERIMENT}: --ranks must be at least 1, --keep above 0 and at most 1")
    if unknown := [d for d in cfg.dtypes if d not in DTYPES]:
        raise ValueError(f"{EXPERIMENT}: --dtypes must be of {[*DTYPES]}, got {unknown[0]!r}")
    check_replaceable(cfg.to, f"pos/{CONFIG}")


def written(
    cfg: Config, session: Session, pair: PairDelta, work: Path
) -> Iterator[tuple[str, Path]]:
    """Both poles at every rank and dtype, each pair in a folder of its own."""
    for rank in cfg.ranks:
        for dtype in cfg.dtypes:
            name = f"rank {rank}, {dtype}"
            for side, tau in (("pos", pair.pos), ("neg", pair.neg)):
                out = work / name / side
                save_lora(
                    session.model,
                    tau,
                    out,
                    rank=rank,
                    dtype=DTYPES[dtype],
                    max_error=None,
                    base_name=cfg.model,
                )
            yield name, work / name


def measured(
    cfg: Config, session: Session, variants: list[Variant]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows, and effects with the share of the whole change's that each pair keeps."""
    rows = run_sweep(cfg, EXPERIMENT, session, variants)
    assert rows is not None  # no shard
    return rows, effect_table(rows, BY, full=WHOLE, resamples=cfg.resamples)


def smallest(table: pl.DataFrame, size: dict[str, float], keep: float) -> str | None:
    """The smallest pair that retains `keep` wherever the whole change has an effect to keep."""
    least = table.filter(pl.col("alpha") != 0).group_by("variant").agg(pl.col("retained").min())
    shares = dict(least.iter_rows())
    good = [name for name in size if (shares.get(name) or 0) >= keep]
    return min(good, key=lambda name: size[name], default=None)


def megabytes(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6


def put(pair: Path, new: Path, text: str) -> None:
    shutil.copytree(pair, new, dirs_exist_ok=True)
    (new / "README.md").write_text(text, encoding="utf-8")


def card(cfg: Config, chosen: str, table: pl.DataFrame) -> str:
    """The card: what it is, what it does, and the command that makes it again."""
    lines = table.filter(pl.col("alpha") != 0, split="test", variant=chosen).to_dicts()
    effects = "\n".join(
        f"| {r['dataset']} | {r['alpha']:g} | {with_interval(r, 'effect', 'lo', 'hi')} | "
        f"{'-' if r['retained'] is None else format(r['retained'], '.2f')} |"
        for r in lines
    )
    command = shlex.join(["python", *sys.argv])
    return f"""# A pair of LoRA adapters of {cfg.model}

`pos` was trained on the answers of the behaviour in `{source_name(cfg.data)}`{licence(cfg)}, `neg`
on the opposite ones, with `experiments/t0_train.py`; then each was cut to {chosen}.
`dW = pos - neg` steers. Both are PEFT adapters; `base.json` names the weights they are for.

Effect on test items in nats with its 95 % interval, and the share of the whole pair's effect:

| data set | alpha | effect | retained |
| --- | --- | --- | --- |
{effects}

    {command}
"""


def licence(cfg: Config) -> str:
    """The licence of a public set, in brackets; nothing for a folder."""
    found = named(cfg.data)
    return f" ({DATA_SETS[found[0]].licence})" if found else ""


def line(r: dict) -> list:
    """What is printed of a line of the table."""
    effect = with_interval(r, "effect", "lo", "hi")
    return [r["split"], r["dataset"], r["variant"], r["alpha"], r["mb"], effect, r["retained"]]


if __name__ == "__main__":
    guarded(main, Config)
