"""Whether the rows of two scripts are the same measurement: of items, of the base, of a line."""

from collections.abc import Mapping

import polars as pl

from wscore.effect import CELL

LINE = ("method", "family", "variant", "k", "alpha")
ITEM = (*CELL, "item")
AGREE = 1e-3  # nats: margins further apart are not one measurement


def check_base(first: str, rows: pl.DataFrame, name: str, new: pl.DataFrame) -> None:
    """Refuse other items, or another base, in the data sets that both tables have."""
    base, other = (
        x.filter(alpha=0).select(*ITEM, "label", "cluster", "margin") for x in (rows, new)
    )
    both = set(base["dataset"]) & set(other["dataset"])
    base, other = (x.filter(pl.col("dataset").is_in(both)) for x in (base, other))
    pair = base.join(other, on=[*ITEM, "label", "cluster"], how="inner", nulls_equal=True)
    if not len(base) == len(other) == len(pair):
        sizes = f"{len(base)} and {len(other)}, {len(pair)} of them in both"
        raise ValueError(
            f"report: {first} and {name} do not hold the same items ({sizes}); a benchmark needs "
            "identical rows, so run both with the same --data and --dilemmas"
        )
    if (gap := _gap(pair)) > AGREE:
        raise ValueError(
            f"report: {first} and {name} differ by up to {gap:.3g} nats in the base's margins; "
            "run both again on the same model"
        )


def check_lines(owners: Mapping, rows: pl.DataFrame, name: str, new: pl.DataFrame) -> None:
    """Refuse a line that two tables hold with different margins."""
    shared = _shared(rows, new)
    off = shared.filter((pl.col("margin") - pl.col("margin_right")).abs() > AGREE)
    if len(off):
        line = off.select(LINE).row(0)
        said = " ".join(str(x) for x in line if x is not None)
        raise ValueError(
            f"report: {owners[line]} and {name} both hold the line {said!r}, with margins up to "
            f"{_gap(off):.3g} nats apart; run both again on the same adapters"
        )


def renamed(
    short: str, rows: pl.DataFrame, new: pl.DataFrame, lines: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A control that shares its name, but not its margins, with another script's gets its own."""
    shared = _shared(rows, new)
    off = shared.filter((pl.col("margin") - pl.col("margin_right")).abs() > AGREE).select(LINE)
    clash = off.unique().join(lines.filter(role="control"), on=LINE, how="semi", nulls_equal=True)
    apart = clash.with_columns(other=pl.col("variant") + f" ({short})")

    def own(frame: pl.DataFrame) -> pl.DataFrame:
        found = frame.join(apart, on=LINE, how="left", nulls_equal=True, maintain_order="left")
        return found.with_columns(variant=pl.coalesce("other", "variant")).drop("other")

    named = own(lines).with_columns(
        way=pl.when(role="control")
        .then(pl.col("variant").str.split("@").list.first())
        .otherwise("way")
    )
    return own(new), named


def known(
    rows: pl.DataFrame, lines: pl.DataFrame, new: pl.DataFrame, more: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A way that another script chose under another name of its setting gets the name it has."""
    same = ["way", "method", "family", "k", "alpha"]
    pairs = lines.select(*same, to="variant").unique(maintain_order=True)
    pairs = pairs.join(more.select(*same, "variant").unique(), on=same, nulls_equal=True)
    for pair in pairs.filter(pl.col("to") != pl.col("variant")).iter_rows(named=True):
        of = [pl.col(c).eq_missing(pl.lit(pair[c])) for c in same[1:]]
        here = rows.filter(*of, pl.col("variant") == pair["to"])
        there = new.filter(*of, pl.col("variant") == pair["variant"])
        both = here.join(there, on=[*ITEM, "seed"], nulls_equal=True)
        if len(here) == len(there) == len(both) and _gap(both) <= AGREE:
            name = pl.when(*of, pl.col("variant") == pair["variant"]).then(pl.lit(pair["to"]))
            renamed = {"variant": name.otherwise("variant")}
            new, more = new.with_columns(**renamed), more.with_columns(**renamed)
    return new, more


def _shared(rows: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """The steered rows that both hold."""
    key = [*ITEM, *LINE, "seed"]
    steered = [x.filter(pl.col("alpha") != 0).select(*key, "margin") for x in (rows, new)]
    return steered[0].join(steered[1], on=key, how="inner", nulls_equal=True)


def _gap(pair: pl.DataFrame) -> float:
    return float((pair["margin"] - pair["margin_right"]).abs().max() or 0)  # type: ignore[arg-type]
