"""Rows to effects with intervals, effects to verdicts; polars in and polars out.

gain = label * (margin(alpha) - margin(0)), paired by item; effect = mean gain. The interval is an
expanded percentile bootstrap over clusters, crossed with seeds where there are several;
experiments/bench_coverage.py measures how often it covers. Reading order: paired -> effect_table,
retained, null_percentile -> verdict.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import polars as pl

from wscore.stats.bootstrap import SAW, bootstrap, interval, p_value

CELL = ("model", "behaviour", "dataset", "prompt_style")  # scored once at alpha = 0
SUMMARY_KEYS = ("experiment", *CELL, "method", "family", "variant", "k", "alpha")
KEYS = (*SUMMARY_KEYS, "seed")
TYPES = pl.Schema(
    {
        "family": pl.String,
        "k": pl.Int64,
        "alpha": pl.Float64,
        "seed": pl.Int64,
        "margin": pl.Float64,
    }
)  # also for columns null throughout, or of whole numbers
NOISE = ("noise",)  # where the rows say what their dtype leaves open, the effect table does too
COLUMNS = (*KEYS, "item", "cluster", "label", "margin", "mass", "flagged")


def paired(rows: pl.DataFrame) -> pl.DataFrame:
    """shift = margin(alpha) - margin(0), aligned = label * margin, gain = label * shift.

    `rows` are raw: the alpha = 0 rows of each (model, behaviour, dataset, prompt_style) once, and
    every variant at alpha != 0 on exactly those items; anything else raises.
    """
    reference, treated = _split(rows)
    for (problem,), bad in _differences(reference, treated).group_by("problem"):
        _refuse(bad, problem, "score every variant once on exactly the items of its alpha = 0 rows")
    base = reference.select(
        *CELL, "item", margin0="margin", mass0="mass", label0="label", cluster0="cluster"
    )
    out = treated.join(base, on=[*CELL, "item"], nulls_equal=True, maintain_order="left")
    for column in ("label", "cluster"):
        _refuse(
            out.filter(pl.col(column) != pl.col(f"{column}0")),
            f"with another {column} than at alpha = 0",
            "score both on one item set",
        )
    return (
        out.drop("label0", "cluster0")
        .with_columns(shift=pl.col("margin") - pl.col("margin0"))
        .with_columns(
            aligned=pl.col("label") * pl.col("margin"), gain=pl.col("label") * pl.col("shift")
        )
    )


def _split(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The alpha = 0 rows and the others, once every value and every reference is in order."""
    if lacking := [c for c in COLUMNS if c not in rows.columns]:
        raise ValueError(f"paired: needs the row schema, lacks the columns {lacking}; add them")
    rows = rows.cast(TYPES)
    wrong = {
        "without dataset, item or cluster": pl.col("dataset", "item", "cluster").is_null(),
        "with alpha or margin null or not finite": ~pl.col("alpha", "margin")
        .is_finite()
        .fill_null(False),
        "with a label other than +1 or -1": ~pl.col("label").is_in([1, -1]).fill_null(False),
    }
    for found, where in wrong.items():
        _refuse(rows.filter(pl.any_horizontal(where)), found, "repair the rows where they are made")
    reference, treated = rows.filter(pl.col("alpha") == 0), rows.filter(pl.col("alpha") != 0)
    if treated.is_empty():
        raise ValueError("paired: needs rows at alpha != 0, found none; score a steered variant")
    _refuse(
        reference.filter(pl.struct(*CELL, "item").is_duplicated()),
        "doubled at alpha = 0",
        "score the base once per dataset, and pair one experiment at a time",
    )
    _refuse(
        treated.join(reference, on=CELL, how="anti", nulls_equal=True),
        "without any alpha = 0 rows",
        "score the base on the same items",
    )
    return reference, treated


def _differences(reference: pl.DataFrame, treated: pl.DataFrame) -> pl.DataFrame:
    """One line per (group, item) by which a group's ids differ from its reference, with why."""
    asked = (
        treated.select(KEYS)
        .unique()
        .join(reference.select(*CELL, "item", asked=1), on=CELL, nulls_equal=True)
    )
    found = treated.group_by(*KEYS, "item").agg(found=pl.len().cast(pl.Int32))
    both = asked.join(found, on=[*KEYS, "item"], how="full", coalesce=True, nulls_equal=True)
    why = (
        pl.when(pl.col("found").is_null())
        .then(pl.lit("missing"))
        .when(pl.col("asked").is_null())
        .then(pl.lit("extra"))
        .otherwise(pl.lit("duplicate"))
    )
    return both.filter(pl.col("asked").ne_missing(pl.col("found"))).with_columns(problem=why)


def _refuse(bad: pl.DataFrame, found: str, todo: str) -> None:
    """Raise one sentence naming the first group of `bad` and a few of its ids, if there is one."""
    if bad.is_empty():
        return
    bad = bad.select(*KEYS, "item").unique().sort(*KEYS, "item")
    group = bad.join(bad.head(1), on=KEYS, how="semi", nulls_equal=True)
    name = ", ".join(
        f"{c}={v}" for c, v in group.select(KEYS).row(0, named=True).items() if v is not None
    )
    ids = ", ".join(map(repr, group["item"].head(3))) + ", ..." * (len(group) > 3)
    raise ValueError(
        f"paired: {name} has {len(group)} item(s) {found}: {ids} "
        f"({bad.select(KEYS).n_unique()} such group(s)); {todo}"
    )


def effect_table(
    rows: pl.DataFrame,
    by: Sequence[str] = SUMMARY_KEYS,
    *,
    full: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pl.DataFrame:
    """effect = mean gain = discrimination + bias * mean(label), one line per group of `by`.

    With m+ and m- the mean shift of the items labelled +1 and -1: bias = (m+ + m-)/2,
    discrimination = (m+ - m-)/2, both null where one label is absent; with balanced labels
    effect = discrimination. `rows` are raw, as for `paired`. Keys left out of `by` are pooled, the
    seed by resampling it. [lo, hi] is the `level` interval (see bootstrap.py on few clusters and
    few seeds) and p the two-sided p of effect = 0 that belongs to it; all three are null with a
    single cluster, whose spread is unknown. `full` adds the columns of `retained`. Lines are sorted
    by `by`.
    """
    table, samples = measure(rows, by, resamples, seed, level)
    ratios = [] if full is None else _ratios(table, samples, full, level)
    return table.select(
        *by,
        "n",
        "clusters",
        "seeds",
        "effect",
        "lo",
        "hi",
        "p",
        "bias",
        "discrimination",
        *ratios,
        "mass",
        "flagged_share",
        *(c for c in NOISE if c in table.columns),
        "row_diff",
    )


def measure(
    rows: pl.DataFrame, by: Sequence[str], resamples: int, seed: int, level: float
) -> tuple[pl.DataFrame, np.ndarray]:
    """The lines of `effect_table` with what they saw, and the resamples of their effects."""
    p, lines = _lines(rows, by)
    samples = bootstrap(p, lines, resamples, seed)
    up, down = (pl.col("shift").filter(pl.col("label") == sign).mean() for sign in (1, -1))
    stats = p.group_by("line").agg(
        n=pl.struct("dataset", "item").n_unique(),
        clusters=pl.col("unit").n_unique(),
        seeds=pl.col("seed").n_unique(),
        effect=pl.col("gain").mean(),
        bias=(up + down) / 2,
        discrimination=(up - down) / 2,
        mass=pl.col("mass").mean(),
        flagged_share=pl.col("flagged").mean(),
        **{c: pl.col(c).max() for c in NOISE if c in p.columns},
    )
    differing = _differences(*_split(rows)).group_by(by).agg(row_diff=pl.col("item").n_unique())
    table = (
        lines.join(stats, on="line", maintain_order="left")
        .join(differing, on=by, how="left", nulls_equal=True, maintain_order="left")
        .with_columns(pl.col("row_diff").fill_null(0))
        .with_columns(pl.col("n", "clusters", "seeds", "row_diff").cast(pl.Int64))
    )
    lo, hi = interval(samples, table, level)
    return table.with_columns(lo=lo, hi=hi, p=p_value(samples, table)), samples


def retained(
    rows: pl.DataFrame,
    full: str,
    *,
    by: Sequence[str] = SUMMARY_KEYS,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pl.DataFrame:
    """retained = effect(variant) / effect(full), both under the same resamples.

    `full` is matched on every key of `by` but variant and k. All three columns are null where the
    interval of effect(full) covers 0, or is null itself. Elsewhere up to (1 - level)/2 of the
    resamples may still put effect(full) on the other side of 0; they stay in, so an interval next
    to that border comes out wide rather than short.
    """
    table = effect_table(rows, by, full=full, resamples=resamples, seed=seed, level=level)
    return table.select(*by, "retained", "retained_lo", "retained_hi")


def null_percentile(table: pl.DataFrame, null: str = "spectrum_null") -> pl.DataFrame:
    """null_percentile = 100 * (#{draws < effect} + #{draws == effect} / 2) / #draws.

    Draws are the lines "{null}#00", "{null}#01", ... with the same keys but variant and k; a draw
    that carries a k serves only lines of that k. Null without draws, and for the draws themselves.
    """
    table = table.drop("null_percentile", strict=False)
    k = pl.col("k") if "k" in table.columns else pl.lit(None, pl.Int64)
    lines = table.with_columns(line=pl.int_range(pl.len()), of_k=k)
    is_draw = pl.col("variant").str.contains(f"^{re.escape(null)}#[0-9]+$")
    draws = lines.filter(is_draw).rename({"of_k": "draw_k", "effect": "draw"})
    below, tied = pl.col("draw") < pl.col("effect"), pl.col("draw") == pl.col("effect")
    serves = ~is_draw & (pl.col("draw_k").is_null() | (pl.col("draw_k") == pl.col("of_k")))
    share = 100 * (below.mean() + tied.mean() / 2)
    ranks = _match(lines, draws, "draw", "draw_k").filter(serves & pl.col("draw").is_not_null())
    return lines.join(
        ranks.group_by("line").agg(null_percentile=share),
        on="line",
        how="left",
        maintain_order="left",
    ).drop("line", "of_k")


def _match(lines: pl.DataFrame, partners: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """Every line beside each partner that agrees on all keys but variant and k, or beside nulls."""
    keys = [c for c in (*KEYS, *SAW) if c in lines.columns and c not in ("variant", "k")]
    return lines.with_columns(one=1).join(
        partners.select(*keys, *columns, one=1),
        on=["one", *keys],
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )


def _lines(rows: pl.DataFrame, by: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The paired rows, and the groups of `by`: numbered, with the seeds and clusters they saw."""
    if not by or not set(by) <= set(KEYS):
        raise ValueError(f"effect_table: by takes one or more of {list(KEYS)}, got {list(by)}")
    p = paired(rows).sort(*KEYS, "item")
    lines = p.select(by).unique().sort(by).with_row_index("line")
    p = p.join(lines, on=by, nulls_equal=True, maintain_order="left").with_columns(
        unit=pl.concat_str("dataset", "cluster", separator="/"),
        seed=pl.col("seed").cast(pl.String).fill_null("-"),
    )
    ids = (
        pl.col(c).unique().sort().str.join("\n").alias(s)
        for c, s in zip(("seed", "unit"), SAW, strict=True)
    )
    return p, lines.join(p.group_by("line").agg(ids), on="line", maintain_order="left")


def _ratios(table: pl.DataFrame, samples: np.ndarray, full: str, level: float) -> list[pl.Series]:
    """The columns of `retained`: each line over the line of `full` on the same seeds and items."""
    if "variant" not in table.columns:
        raise ValueError(f"retained: by cannot tell {full!r} from the others; add 'variant' to by")
    fulls = table.filter(pl.col("variant") == full).rename({"line": "of"})
    found = _match(table, fulls, "of")
    wrong = found.filter(pl.col("of").is_null() | pl.col("line").is_duplicated())
    if len(wrong):
        line = ", ".join(f"{c}={wrong[c][0]}" for c in KEYS if c in wrong.columns)
        number = "none" if wrong["of"][0] is None else "several"
        raise ValueError(
            f"retained: needs one {full!r} line on the seeds and clusters of {line}, "
            f"found {number}; score it there, or filter these rows out"
        )
    of, effect = found["of"].to_numpy(), table["effect"].to_numpy()
    clear = ((table["lo"] > 0) | (table["hi"] < 0)).fill_null(False).to_numpy()[of]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, ratios = (x / np.where(clear, x[..., of], np.nan) for x in (effect, samples))
    columns = [pl.Series(ratio).fill_nan(None), *interval(ratios, table, level)]
    names = ("retained", "retained_lo", "retained_hi")
    return [column.alias(name) for column, name in zip(columns, names, strict=True)]


Outcome = Literal["supported", "refuted", "undetermined"]


class Verdict(NamedTuple):
    """What a rule says of a table: the outcome, the claim in a sentence, and the part it names."""

    outcome: Outcome
    sentence: str
    part: str | None = None


@runtime_checkable
class Rule(Protocol):
    """A claim with its thresholds as fields, written before the run; one `decide` per claim."""

    def decide(self, table: pl.DataFrame) -> Verdict: ...


def verdict(table: pl.DataFrame, rule: Rule) -> Verdict:
    """supported | refuted | undetermined: `rule` read off the lines of an `effect_table`."""
    return rule.decide(table)
