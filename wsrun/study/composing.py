"""Several weight changes at once: what each does alone, what they do together, what is between.

    together        W' = W + sum_i alpha_i dW_i
    interference    effect(together) - sum_i effect(alpha_i dW_i alone)

item by item, with the interval of any other paired difference. 0: the effects add up. A negative
interference on the data of one behaviour says that the other change takes some of it away.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from wscore import contrast, tensors_sha256
from wscore.delta import DeltaLike
from wsrun.adapters.written import read_deltas, weighted_sum
from wsrun.report.console import console, grid
from wsrun.report.effect_figures import effects_by_method
from wsrun.report.verdicts import RuleResult
from wsrun.report.wording import against_dW, difference_to_dW, with_interval
from wsrun.score.variants import Variant
from wsrun.steer.interventions import WeightDelta
from wsrun.study.options import Common, check_common
from wsrun.study.scoring import run_sweep
from wsrun.study.session import run_record, save_figure, write_tables
from wsrun.study.start import load_sessions, together

TOGETHER, SUM = "together", "sum of each"
CLAIM = "the changes interfere"
APART = {"beats": ("supported", "more than"), "loses to": ("supported", "less than")}
QUESTION = "Do the effects of several changes add up?"


@dataclass(frozen=True)
class ComposeOptions(Common):
    """Options of a composition."""

    deltas: tuple[tuple[Path, float], ...] = ()
    """files of dW, and how much of each"""
    sets: tuple[str, ...] = ()
    """further data sets, folders or NAME:PATH; --data comes first"""


def run_compose(cfg: ComposeOptions) -> None:
    """Score each change alone and all together on every data set; write and print one table."""
    cfg = replace(cfg, alphas=(1.0,))
    check_common(cfg, "compose", adapters=False)
    named, cfg = names_of(cfg.deltas), replace(cfg, families=())
    sessions = load_sessions(cfg, cfg.sets, "compose")
    model = sessions[0].model
    found = dict(zip(named, read_deltas([path for path, _ in cfg.deltas], model), strict=True))
    variants = changes({n: (named[n], d) for n, d in found.items()})
    parts = [run_sweep(cfg, "compose", s, variants) for s in sessions]
    rows = pl.concat(part for part in parts if part is not None)
    table = interference(rows, [*named], cfg.resamples)
    session, results = together(sessions), [*judged(table)]
    hashes = {name: tensors_sha256(d) for name, d in found.items()}
    record = run_record(cfg, session, {}, composed=named) | {"deltas": hashes}
    path = write_tables(cfg, "compose", rows, table, record, results)
    console.print(printed(table, [*named]))
    for r in results:
        console.print(f"{r.dataset}: {r.sentence}", highlight=False)
    save_figure(effects_by_method, drawn(table), path, QUESTION)


def names_of(deltas: Sequence[tuple[Path, float]]) -> dict[str, float]:
    """{name of a change: its alpha}: the stem of its file, or parent and stem where two are alike.

    Raises ValueError for fewer than two changes, alpha 0, and a file that is named twice.
    """
    if len(deltas) < 2:
        raise ValueError(f"compose: --delta is needed twice or more, got {len(deltas)}")
    for path, alpha in deltas:
        if alpha == 0:
            raise ValueError(f"compose: --delta {str(path)!r} has alpha 0, which adds nothing")
    for parts in (1, 2, 99):
        names = ["/".join(path.with_suffix("").parts[-parts:]) for path, _ in deltas]
        if len({*names}) == len(names):
            return dict(zip(names, (alpha for _, alpha in deltas), strict=True))
    raise ValueError("compose: --delta names one file twice; add up its alphas instead")


def changes(of: Mapping[str, tuple[float, DeltaLike]]) -> list[Variant]:
    """Each change alone at its alpha, and the sum of all."""
    alone = [Variant(name, WeightDelta(d), alphas=(alpha,)) for name, (alpha, d) in of.items()]
    return [*alone, Variant(TOGETHER, WeightDelta(weighted_sum(*of.values())), alphas=(1.0,))]


def interference(rows: pl.DataFrame, names: Sequence[str], resamples: int) -> pl.DataFrame:
    """Effects of each, of all together and their plain sum; diff: together minus that sum.

    The sum is made item by item: margin = base + sum_i (margin_i - base).
    """
    item = ["model", "behaviour", "dataset", "prompt_style", "item"]
    base = rows.filter(alpha=0.0).select(*item, base="margin")
    alone = rows.filter(pl.col("variant").is_in(list(names)))
    gains = (
        alone.join(base, on=item, nulls_equal=True)
        .group_by(item)
        .agg(gain=(pl.col("margin") - pl.col("base")).sum(), base=pl.col("base").first())
    )
    added = (
        rows.filter(variant=TOGETHER)
        .join(gains, on=item, how="left", nulls_equal=True, maintain_order="left")
        .with_columns(variant=pl.lit(SUM), margin=pl.col("base") + pl.col("gain"))
        .drop("base", "gain")
    )
    table = contrast(pl.concat([rows, added]), {"variant": SUM}, resamples=resamples)
    order = {name: i for i, name in enumerate((*names, SUM, TOGETHER))}
    place = pl.col("variant").replace_strict(order, return_dtype=pl.Int64)
    diffs = ("diff", "diff_lo", "diff_hi", "diff_p")
    is_all = pl.col("variant") == TOGETHER
    return table.sort("dataset", place).with_columns(pl.when(is_all).then(pl.col(*diffs)))


def judged(table: pl.DataFrame) -> Iterator[RuleResult]:
    """Per data set: supported where the interval of the interference excludes 0."""
    for r in table.filter(variant=TOGETHER).iter_rows(named=True):
        outcome, said = APART.get(against_dW(r), ("undetermined", "not shown to differ from"))
        sentence = f"together {said} their sum: interference {difference_to_dW(r)} nats"
        yield RuleResult(r["dataset"], CLAIM, None, outcome, sentence, TOGETHER)


def printed(table: pl.DataFrame, names: Sequence[str]):
    """The printed table: a line a data set, a column a change, all together, the interference."""
    cells = []
    for (dataset,), part in table.group_by("dataset", maintain_order=True):
        lines = {r["variant"]: r for r in part.iter_rows(named=True)}
        each = [with_interval(lines[n], "effect", "lo", "hi") for n in (*names, TOGETHER)]
        cells.append([dataset, *each, difference_to_dW(lines[TOGETHER])])
    return grid("effect in nats", ("data set", *names, TOGETHER, "interference"), cells)


def drawn(table: pl.DataFrame) -> pl.DataFrame:
    """The table as the figure reads it."""
    is_sum = pl.col("variant") == SUM
    role = pl.when(is_sum).then(pl.lit("control")).otherwise(pl.lit("scored"))
    return table.with_columns(role=role, method_name="variant")
