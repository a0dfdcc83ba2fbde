"""Rows to effects with intervals; polars in and polars out.

gain = label * (margin(alpha) - margin(0)), paired by item; effect = mean gain. The interval is an
expanded percentile bootstrap over clusters, crossed with seeds where there are several;
experiments/bench_coverage.py measures how often it covers. Reading order: pairing -> effect_table,
retained, null_percentile -> verdicts.
"""

import re
from collections.abc import Sequence

import numpy as np
import polars as pl

from wscore.stats.bootstrap import CLUSTER_IDS, bootstrap, interval, p_value
from wscore.stats.pairing import differing_items, paired, split
from wscore.stats.schema import KEYS, NOISE, SUMMARY_KEYS


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
    differing = differing_items(*split(rows)).group_by(by).agg(row_diff=pl.col("item").n_unique())
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
    keys = [c for c in (*KEYS, *CLUSTER_IDS) if c in lines.columns and c not in ("variant", "k")]
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
        for c, s in zip(("seed", "unit"), CLUSTER_IDS, strict=True)
    )
    return p, lines.join(p.group_by("line").agg(ids), on="line", maintain_order="left")


def _ratios(table: pl.DataFrame, samples: np.ndarray, full: str, level: float) -> list[pl.Series]:
    """The columns of `retained`: each line over the line of `full` on the same seeds and items."""
    if "variant" not in table.columns:
        raise ValueError(f"retained: by cannot tell {full!r} from the others; add 'variant' to by")
    fulls = table.filter(pl.col("variant") == full).rename({"line": "of"})
    matched = _match(table, fulls, "of")
    wrong = matched.filter(pl.col("of").is_null() | pl.col("line").is_duplicated())
    if len(wrong):
        line = ", ".join(f"{c}={wrong[c][0]}" for c in KEYS if c in wrong.columns)
        number = "none" if wrong["of"][0] is None else "several"
        raise ValueError(
            f"retained: needs one {full!r} line on the seeds and clusters of {line}, "
            f"found {number}; score it there, or filter these rows out"
        )
    of, effect = matched["of"].to_numpy(), table["effect"].to_numpy()
    clear = ((table["lo"] > 0) | (table["hi"] < 0)).fill_null(False).to_numpy()[of]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, ratios = (x / np.where(clear, x[..., of], np.nan) for x in (effect, samples))
    columns = [pl.Series(ratio).fill_nan(None), *interval(ratios, table, level)]
    names = ("retained", "retained_lo", "retained_hi")
    return [column.alias(name) for column, name in zip(columns, names, strict=True)]
