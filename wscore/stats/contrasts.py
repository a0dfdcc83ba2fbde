"""Paired differences between two ways of steering, under the very resamples of their effects."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from wscore.stats.bootstrap import SAW, interval, p_value
from wscore.stats.effects import CELL, SUMMARY_KEYS, measure


def contrast(
    rows: pl.DataFrame,
    reference: Mapping[str, object],
    by: Sequence[str] = SUMMARY_KEYS,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pl.DataFrame:
    """diff = effect(line) - effect(reference), both over the same items and the same resamples.

    The effect table of `rows`, and beside it diff, diff_lo, diff_hi (the `level` interval) and
    diff_p (two-sided, of diff = 0). `reference` names one line of each (model, behaviour, dataset,
    prompt_style) by some keys, as {"variant": "full", "family": "lora", "alpha": 1.0}. Clusters are
    drawn together for both sides; seeds too where both have the same ones, else independently.
    Raises ValueError where the reference names no line or several.
    """
    table, samples = measure(rows, by, resamples, seed, level)
    of = _reference(table, reference)
    effect, apart = table["effect"].to_numpy(), samples - samples[:, :, of]
    own = table.select("clusters", seeds=_fewer(table["seeds"].to_numpy(), of)).with_columns(
        effect=pl.Series(effect - effect[of])
    )
    lo, hi = interval(apart, own, level)
    found = dict(diff=own["effect"], diff_lo=lo, diff_hi=hi, diff_p=p_value(apart, own))
    return table.drop("line", *SAW).with_columns(**found)


def _reference(table: pl.DataFrame, reference: Mapping[str, object]) -> np.ndarray:
    """For each line, the index of the line it is compared with."""
    cell = [c for c in CELL if c in table.columns]
    numbered = table.with_row_index("of")
    if lacking := [c for c in reference if c not in table.columns]:
        raise ValueError(f"contrast: reference names {lacking}, which are no keys of the table")
    same = [pl.col(c).eq_missing(pl.lit(v)) for c, v in reference.items()]
    chosen = numbered.filter(*same).select(*cell, "of")
    found = numbered.select(*cell, line="of").join(
        chosen, on=cell, how="left", nulls_equal=True, maintain_order="left"
    )
    if found["of"].null_count() or len(found) != len(table):
        number = "none" if found["of"].null_count() else "several"
        raise ValueError(
            f"contrast: {dict(reference)} must name one line of each data set, found {number};"
            " add keys, or score it there"
        )
    return found["of"].to_numpy()


def _fewer(seeds: np.ndarray, of: np.ndarray) -> pl.Series:
    """The seeds of a difference: the fewer of both sides', but a side with one does not count."""
    pair = np.stack([seeds, seeds[of]])
    return pl.Series(np.where(pair.min(0) > 1, pair.min(0), pair.max(0)))
