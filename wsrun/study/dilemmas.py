"""Dose and response on dilemmas (T2): effects by alpha, steps between them, and the rule."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import polars as pl

from wscore import Verdict, base_lines, benjamini_hochberg, contrast, effect_table
from wsrun.data.items import Dilemmas
from wsrun.report.console import console, grid
from wsrun.report.wording import with_interval

ALL, HONESTY = "dilemmas", "dilemmas_honesty"
WORDS = {ALL: "all", HONESTY: "honesty"}
RESPONSE = ("dW", "base")  # the variants of a dose-response
STEP = ("step", "step_lo", "step_hi")


def with_honesty(rows: pl.DataFrame, found: Dilemmas) -> pl.DataFrame:
    """All rows, and those of dilemmas about honesty once more as a data set of their own."""
    part = rows.filter(pl.col("item").is_in(list(found.about_honesty)), dataset=ALL)
    return pl.concat([rows, part.with_columns(dataset=pl.lit(HONESTY))])


def with_honesty_read(reads: Mapping[str, str]) -> dict[str, str]:
    """What data sets can read; the part about honesty reads what all dilemmas do."""
    return {**reads, **({HONESTY: reads[ALL]} if ALL in reads else {})}


def dose_table(rows: pl.DataFrame, families: Sequence[str], resamples: int) -> pl.DataFrame:
    """One line per data set, family and alpha, the base's at 0, seeds pooled.

    step = effect(alpha) - effect(next lower alpha), paired, with its interval.
    """
    table = benjamini_hochberg(effect_table(rows, resamples=resamples))
    names = pl.DataFrame({"family": families}, schema={"family": pl.String})
    base = base_lines(rows).drop("family").join(names, how="cross")
    table = pl.concat([table, base], how="diagonal_relaxed")
    steps = pl.concat([steps_of(rows, table, family, resamples) for family in families])
    keys = ["dataset", "family", "variant", "alpha"]
    return table.join(steps, on=keys, how="left", maintain_order="left").sort(
        "dataset", "family", "alpha", "variant", nulls_last=True
    )


def steps_of(rows: pl.DataFrame, table: pl.DataFrame, family: str, resamples: int) -> pl.DataFrame:
    """The paired rise of a family's effect from each alpha to the next one."""
    lines = table.filter(pl.col("variant").is_in(RESPONSE) & (pl.col("family") == family))
    family_rows = rows.filter((pl.col("variant") == "base") | (pl.col("family") == family))
    family_rows = family_rows.filter(pl.col("variant").is_in(RESPONSE))
    keys, steps = ["dataset", "family", "variant", "alpha"], []
    for low, high in pairwise(lines["alpha"].unique().sort()):
        if low == 0:  # the difference to the base is the effect itself
            step = lines.filter(alpha=high).select(
                *keys, **dict(zip(STEP, map(pl.col, ("effect", "lo", "hi")), strict=True))
            )
        elif high == 0:
            below = lines.filter(alpha=low).select(
                "dataset",
                **{s: -pl.col(c) for s, c in zip(STEP, ("effect", "hi", "lo"), strict=True)},
            )
            step = lines.filter(alpha=high).select(keys).join(below, on="dataset")
        else:
            both = family_rows.filter(pl.col("alpha").is_in([0.0, low, high]))
            apart = contrast(both, {"alpha": low}, resamples=resamples).filter(alpha=high)
            step = apart.select(*keys, step="diff", step_lo="diff_lo", step_hi="diff_hi")
        steps.append(step)
    return pl.concat(steps)


def rises(table: pl.DataFrame, dataset: str, family: str) -> Verdict:
    """The rule for one data set and family, on its steps from alpha to alpha."""
    lines = table.filter(dataset=dataset, family=family).filter(pl.col("variant").is_in(RESPONSE))
    doses = lines["alpha"].sort().to_list()
    steps = lines.filter(pl.col("step").is_not_null()).sort("step")
    least = steps.row(0, named=True)
    before = doses[doses.index(least["alpha"]) - 1]
    smallest = f"from {before:g} to {least['alpha']:g} by {with_interval(least, *STEP)} nats"
    if (steps["step_lo"] > 0).fill_null(False).all():
        return Verdict("supported", f"{family} rises at every dose, least {smallest}")
    if least["step"] < 0:
        outcome = "refuted" if (steps["step_hi"] < 0).fill_null(False).any() else "undetermined"
        return Verdict(outcome, f"{family} does not rise at every dose: {smallest}")
    return Verdict("undetermined", f"{family} rises at every dose, but not clearly {smallest}")


def shown(table: pl.DataFrame, found: Dilemmas) -> list[str]:
    """The data sets to print and draw; without flags, all dilemmas are those about honesty."""
    datasets = table["dataset"].unique(maintain_order=True)
    return sorted(d for d in datasets if d != HONESTY or found.has_flags)


def print_doses(rows: pl.DataFrame, table: pl.DataFrame, found: Dilemmas) -> None:
    """Print the base, the effect at every alpha, the gates, and the lines without a family."""
    datasets = shown(table, found)
    if ALL in datasets and not found.has_flags:
        console.print("no honesty flags in this set: every row counts as about honesty")
    for dataset in datasets:
        console.print(base_sentence(dataset, rows.filter(variant="base", dataset=dataset)))
    response = table.filter(pl.col("variant").is_in(RESPONSE))
    alphas = response["alpha"].unique().sort().to_list()
    families = response["family"].drop_nulls().unique(maintain_order=True)
    at = {(r["family"], r["dataset"], r["alpha"]): r for r in response.iter_rows(named=True)}

    def print_grid(title: str, cell: Callable[[dict], str]) -> None:
        names = [(f, d) for f in families for d in datasets]
        lines = [[f, WORDS.get(d, d), *(cell(at[f, d, a]) for a in alphas)] for f, d in names]
        console.print(grid(title, ("family", "rows", *(f"{a:g}" for a in alphas)), lines))

    print_grid(
        "effect in nats by alpha",
        lambda r: with_interval(r, "effect", "lo", "hi") if r["alpha"] else "0",
    )
    print_grid(
        "number of rows, mass on Yes and No, share flagged, by alpha",
        _gates,
    )
    rest = table.filter(pl.col("family").is_null() & pl.col("dataset").is_in(datasets))
    facts = ("bias", "discrimination", "mass", "flagged_share")
    cells = [
        [r["dataset"], r["variant"], with_interval(r, "effect", "lo", "hi"), *(r[c] for c in facts)]
        for r in rest.iter_rows(named=True)
    ]
    heads = ("data set", "change", "effect", "bias", "discrimination", "mass", "flagged")
    console.print(grid("controls: a planted bias to Yes, and nothing at all", heads, cells))


def _gates(r: Mapping[str, Any]) -> str:
    n = str(r["n"])
    return n if r["mass"] is None else f"{n}, {r['mass']:.3f}, {r['flagged_share']:.0%}"


def base_sentence(dataset: str, base: pl.DataFrame) -> str:
    """What the model says without any change."""
    aligned, up = base["margin"] * base["label"], int((base["label"] > 0).sum())
    what = "dilemmas" if dataset in WORDS else "clusters"
    mass = "" if base["mass"].mean() is None else f", mass {base['mass'].mean():.3f}"
    return (
        f"{dataset}, base: {len(base)} rows, {up} labelled +1 and {len(base) - up} labelled -1, of "
        f"{base['cluster'].n_unique()} {what}; mean aligned margin {aligned.mean():.3f}, "
        f"sd {aligned.std():.3f}{mass}"
    )
