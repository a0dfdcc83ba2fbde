"""What the benchmark of methods shares: selection on validation items, comparison on test items.

A script scores its candidates on the validation split, picks one dose (or layer, or prompt) per
method there (`best`), scores the picked ones on the test split beside the base and dW, and writes
one line per method with its paired difference to dW (`compare`).
"""

from collections.abc import Mapping, Sequence

import polars as pl

from wscore import benjamini_hochberg, contrast, effect_table
from wscore.effect import SUMMARY_KEYS
from wsrun.items import Item, load_items
from wsrun.runs import Common, Loaded, load

MOST_FLAGGED = 0.1  # share of rows with little mass on Yes and No, above which a dose is no choice


def load_splits(cfg: Common) -> tuple[Loaded, Loaded]:
    """(validation, test): one model, the items of both splits, checked to be disjoint."""
    test = load(cfg)
    validation = load_items(cfg.data, "validation", cfg.dilemmas)
    check_disjoint(validation, test.items)
    return test._replace(items=validation), test


def check_disjoint(validation: Sequence[Item], test: Sequence[Item]) -> None:
    """Raises ValueError where a claim or dilemma stands in both splits."""
    known = {(i.dataset, i.cluster) for i in validation}
    if both := sorted({(i.dataset, i.cluster) for i in test} & known):
        raise ValueError(
            f"benchmark: {len(both)} clusters are in the validation and in the test split, such as "
            f"{both[0]}; what is selected on an item must not be reported on it"
        )


def best(
    rows: pl.DataFrame, by: Sequence[str] = ("method", "family"), most_flagged: float = MOST_FLAGGED
) -> pl.DataFrame:
    """Per group of `by`, the (variant, k, alpha) with the largest effect, the mean over data sets.

    `rows` are of validation items, seeds pooled. A candidate with more than `most_flagged` of its
    rows flagged does not count. One line a group: its keys, variant, k, alpha, and `validation`,
    that effect. Raises ValueError for a group whose candidates are all flagged.
    """
    found = (
        effect_table(rows, resamples=1)
        .group_by("method", "family", "variant", "k", "alpha")
        .agg(validation=pl.col("effect").mean(), flagged=pl.col("flagged_share").max())
    )
    good = found.filter(pl.col("flagged") <= most_flagged)
    lost = found.join(good, on=list(by), how="anti", nulls_equal=True)
    if len(lost):
        raise ValueError(
            f"benchmark: every candidate of {lost.select(by).row(0, named=True)} has more than "
            f"{most_flagged:.0%} of its rows flagged; give smaller doses"
        )
    order = good.sort("validation", "variant", "alpha", descending=[True, False, False])
    return order.group_by(by, maintain_order=True).first().sort(by)


def compare(
    rows: pl.DataFrame,
    reference: Mapping[str, object],
    by: Sequence[str] = SUMMARY_KEYS,
    resamples: int = 2000,
) -> pl.DataFrame:
    """The benchmark table: effects against the base, differences against the reference, q of both.

    `reference` names the line that the others are measured against, usually the selected dW. A
    method is beaten, or beats it, where [diff_lo, diff_hi] excludes 0.
    """
    table = benjamini_hochberg(contrast(rows, reference, by, resamples=resamples))
    apart = benjamini_hochberg(table.with_columns(p="diff_p").drop("q"))
    return table.with_columns(diff_q=apart["q"])
