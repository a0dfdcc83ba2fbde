"""What an effect table leaves out: spread over seeds and families, many tests, rates."""

import polars as pl
from scipy.stats import binomtest, false_discovery_control

from wscore.stats.effects import effect_table
from wscore.stats.pairing import paired
from wscore.stats.schema import KEYS, SUMMARY_KEYS

ACROSS = [c for c in SUMMARY_KEYS if c != "family"]
SHARED = [c for c in SUMMARY_KEYS if c not in ("variant", "k")]  # by a line and its full line
DRAW = "#[0-9]+$"  # ends the variant of a null draw


def seed_spread(rows: pl.DataFrame, *, full: str | None = None) -> pl.DataFrame:
    """seed_sd = sd over seeds of the effect; family_sd, family_gap = sd, max - min over families.

    One line per SUMMARY_KEYS, from raw rows as for `paired`; families are compared on equal other
    keys, each by the mean over its seeds. The sd have ddof 1; what needs two seeds or two families
    is null for one. `full` adds the same three of the ratio retained = effect(variant, seed) /
    effect(full, seed), null where the interval of the effect(full) pooled over seeds covers 0.
    """
    gains = paired(rows).sort(*KEYS, "item")  # sums in one order: the same bits in every run
    each = gains.group_by(KEYS, maintain_order=True).agg(effect=pl.col("gain").mean())
    measures = {"effect": ""}
    if full is not None:
        each, measures = _with_ratio(each, rows, full), measures | {"retained": "retained_"}
    over_seeds = each.group_by(SUMMARY_KEYS, maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("seeds"),
        *(pl.col(c).std().alias(f"{name}seed_sd") for c, name in measures.items()),
        pl.col(*measures).mean(),
    )
    lines = over_seeds.with_columns(
        spread for c, name in measures.items() for spread in _over_families(pl.col(c), name)
    )
    columns = [m + of for m in measures.values() for of in ("seed_sd", "family_sd", "family_gap")]
    return lines.sort(SUMMARY_KEYS).select(*SUMMARY_KEYS, "seeds", *columns)


def _over_families(x: pl.Expr, name: str) -> list[pl.Expr]:
    """sd, and max - min, of x over the families of each line; null for fewer than two."""
    gap = pl.when(x.count() > 1).then(x.max() - x.min())
    spreads = {"family_sd": x.std(), "family_gap": gap}
    return [spread.over(ACROSS).alias(f"{name}{of}") for of, spread in spreads.items()]


def _with_ratio(each: pl.DataFrame, rows: pl.DataFrame, full: str) -> pl.DataFrame:
    """Each seed's effect with retained, its ratio to the effect of `full` at that seed."""
    wholes = each.filter(pl.col("variant") == full).select(*SHARED, "seed", whole="effect")
    with_whole = each.join(
        wholes, on=[*SHARED, "seed"], how="left", nulls_equal=True, maintain_order="left"
    )
    wrong = with_whole.filter(pl.col("whole").is_null() | pl.struct(KEYS).is_duplicated())
    if len(wrong):
        line = ", ".join(f"{c}={wrong[c][0]}" for c in KEYS if wrong[c][0] is not None)
        number = "none" if wrong["whole"][0] is None else "several"
        raise ValueError(
            f"seed_spread: needs one {full!r} line on the seed of {line}, found {number}; "
            "score it there, or filter these rows out"
        )
    pooled = effect_table(rows.filter((pl.col("alpha") == 0) | (pl.col("variant") == full)))
    clear = pooled.filter((pl.col("lo") > 0) | (pl.col("hi") < 0)).select(*SHARED, clear=True)
    ratio = pl.when("clear").then(pl.col("effect") / pl.col("whole"))
    return with_whole.join(
        clear, on=SHARED, how="left", nulls_equal=True, maintain_order="left"
    ).with_columns(retained=ratio)


def benjamini_hochberg(table: pl.DataFrame) -> pl.DataFrame:
    """q of the i-th smallest of m p values = min over j >= i of p_j m / j: a new column.

    Calling significant what has q <= x keeps the expected share of false ones among them below x
    (Benjamini & Hochberg 1995, J. R. Stat. Soc. B 57:289). The lines of the table that carry a p
    are the tests, but for null draws ("spectrum_null#00"); those and the others get null.
    """
    if lacking := [c for c in ("variant", "p") if c not in table.columns]:
        raise ValueError(f"benjamini_hochberg: lacks the columns {lacking}; pass an effect_table")
    lines = table.drop("q", strict=False).with_row_index("line")
    is_draw = pl.col("variant").str.contains(DRAW).fill_null(False)
    tests = lines.filter(pl.col("p").is_not_null() & ~is_draw)
    values = false_discovery_control(tests["p"].to_numpy()) if len(tests) else []
    q = tests.select("line", q=pl.Series(values, dtype=pl.Float64))
    return lines.join(q, on="line", how="left", maintain_order="left").drop("line")


def wilson(rate: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """An interval for the rate of hits among n trials, where `rate` n of them hit.

    (p + z^2/2n -+ z sqrt(p (1-p)/n + z^2/4n^2)) / (1 + z^2/n), z the normal quantile of
    (1 + level)/2. Wilson 1927, J. Am. Stat. Assoc. 22:209.
    """
    interval = binomtest(round(rate * n), n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)
