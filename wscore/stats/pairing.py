"""Rows at alpha beside their own alpha = 0 rows, item by item; what does not pair raises."""

import polars as pl

from wscore.stats.schema import CELL, KEYS, complete


def paired(rows: pl.DataFrame) -> pl.DataFrame:
    """shift = margin(alpha) - margin(0), aligned = label * margin, gain = label * shift.

    `rows` are raw: the alpha = 0 rows of each (model, behaviour, dataset, prompt_style) once, and
    every variant at alpha != 0 on exactly those items; anything else raises.
    """
    reference, treated = split(rows)
    for (problem,), bad in differing_items(reference, treated).group_by("problem"):
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


def split(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The alpha = 0 rows and the others, once every value and every reference is in order."""
    rows = complete(rows)
    wrong = {
        "without dataset, item or cluster": pl.col("dataset", "item", "cluster").is_null(),
        "with alpha or margin null or not finite": ~pl.col("alpha", "margin")
        .is_finite()
        .fill_null(False),
        "with a label other than +1 or -1": ~pl.col("label").is_in([1, -1]).fill_null(False),
    }
    for problem, where in wrong.items():
        _refuse(
            rows.filter(pl.any_horizontal(where)), problem, "repair the rows where they are made"
        )
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


def differing_items(reference: pl.DataFrame, treated: pl.DataFrame) -> pl.DataFrame:
    """One line per (group, item) by which a group's ids differ from its reference, with why."""
    expected = (
        treated.select(KEYS)
        .unique()
        .join(reference.select(*CELL, "item", asked=1), on=CELL, nulls_equal=True)
    )
    counts = treated.group_by(*KEYS, "item").agg(found=pl.len().cast(pl.Int32))
    both = expected.join(counts, on=[*KEYS, "item"], how="full", coalesce=True, nulls_equal=True)
    why = (
        pl.when(pl.col("found").is_null())
        .then(pl.lit("missing"))
        .when(pl.col("asked").is_null())
        .then(pl.lit("extra"))
        .otherwise(pl.lit("duplicate"))
    )
    return both.filter(pl.col("asked").ne_missing(pl.col("found"))).with_columns(problem=why)


def _refuse(bad: pl.DataFrame, problem: str, todo: str) -> None:
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
        f"paired: {name} has {len(group)} item(s) {problem}: {ids} "
        f"({bad.select(KEYS).n_unique()} such group(s)); {todo}"
    )
