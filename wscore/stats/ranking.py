"""Do families differ, or only their seeds? Ranks over seeds, and contrasts of two families.

One seed is one draw of the training data and of the training: families that share a seed share its
pairs, so seeds are drawn together for all of them, as clusters are.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import polars as pl

from wscore.stats.contrasts import contrast
from wscore.stats.effects import measure
from wscore.stats.pairing import paired
from wscore.stats.schema import CELL, KEYS, SUMMARY_KEYS, complete
from wscore.stats.spread import benjamini_hochberg

FIELD = [c for c in SUMMARY_KEYS if c not in ("family", "alpha")]  # who competes with whom


def kendall(a: Sequence | np.ndarray, b: Sequence | np.ndarray) -> float:
    """tau = mean over pairs i < j of sign(a_i - a_j) sign(b_i - b_j): 1 same order, -1 reversed.

    Ties count 0 (tau-a; Kendall 1938, Biometrika 30:81). Raises ValueError below two values.
    """
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape or x.size < 2:
        raise ValueError(f"kendall: needs two values or more a side, got {x.size} and {y.size}")
    above = np.triu_indices(x.size, 1)
    same = np.sign(np.subtract.outer(x, x)) * np.sign(np.subtract.outer(y, y))
    return float(same[above].mean())


def sign_agreement(effects: Sequence | np.ndarray) -> float | None:
    """Share of effects, one a seed, with the sign of their mean; None where the mean is 0."""
    sign = np.sign(np.mean(effects))
    return float((np.sign(effects) == sign).mean()) if sign else None


def ranking(
    rows: pl.DataFrame, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> pl.DataFrame:
    """How sure the place of each family is: one line per SUMMARY_KEYS, seeds pooled.

    sign_agreement = that of the seeds' effects; rank = 1 for the largest effect among the
    families of one variant, each at its own dose; p_best = share of resamples (clusters and seeds
    drawn) in which it is the largest; tau = mean `kendall` between the rankings of two seeds, over
    all pairs of seeds. rank, p_best and tau are null for one family, tau for one seed too. `rows`
    are raw, as for `paired`; raises ValueError where a family has several doses of one variant.
    """
    table, samples = measure(rows, SUMMARY_KEYS, resamples, seed, level)
    several = table.filter(table.select(*FIELD, "family").is_duplicated())
    if len(several):
        raise ValueError(
            f"ranking: {several.select('variant', 'family').row(0)} has the doses "
            f"{several['alpha'].unique().sort().to_list()}; give each family one dose of a variant"
        )
    table = table.join(_of_seeds(rows, SUMMARY_KEYS), on=SUMMARY_KEYS, nulls_equal=True)
    groups = table.sort("line").group_by(FIELD, maintain_order=True)
    places = pl.concat(_places(part, samples[0]) for _, part in groups)
    return places.sort("line").select(*SUMMARY_KEYS, "sign_agreement", "rank", "p_best", "tau")


def _of_seeds(rows: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """of_seed: the effects of each line of `by`, one a seed, in the order of the seeds."""
    gains = paired(rows).sort(*KEYS, "item")  # sums in one order: the same bits in every run
    each = gains.group_by(*by, "seed", maintain_order=True).agg(effect=pl.col("gain").mean())
    return each.group_by(by, maintain_order=True).agg(of_seed="effect")


def _places(part: pl.DataFrame, samples: np.ndarray) -> pl.DataFrame:
    """The lines of one variant with sign_agreement, rank, p_best and tau."""
    of_seed = part["of_seed"].to_list()
    effect, drawn = part["effect"].to_numpy(), samples[:, part["line"].to_numpy()]
    alone = len(part) < 2
    rank = (-effect).argsort(kind="stable").argsort() + 1
    p_best = np.bincount(drawn.argmax(1), minlength=len(part)) / len(drawn)
    taus = [] if alone else [kendall(a, b) for a, b in combinations(zip(*of_seed, strict=True), 2)]
    return part.with_columns(
        sign_agreement=pl.Series([sign_agreement(x) for x in of_seed], dtype=pl.Float64),
        rank=pl.lit(None, pl.Int64) if alone else pl.Series(rank, dtype=pl.Int64),
        p_best=pl.lit(None, pl.Float64) if alone else pl.Series(p_best),
        tau=pl.lit(float(np.mean(taus)) if taus else None, pl.Float64),
    )


def pairwise_contrasts(
    rows: pl.DataFrame, variant: str, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> pl.DataFrame:
    """Every pair of families of one variant: family, the one with the larger effect, and other.

    diff = effect(family) - effect(other) with its interval and p as in `contrast`, seeds pooled;
    sign_agreement = that of the seeds' own differences. The family beats the other where
    [diff_lo, diff_hi] excludes 0, all of two or more seeds agree in sign, and diff_p < 1 - level.
    The last is asked because resamples of three seeds end at the outermost of them: where seeds
    differ more than clusters do, the first two alone call one in four pairs of equal families
    different, p one in twenty. Else the two are not shown to differ, which is not to say that they
    are equal. diff_q is the Benjamini-Hochberg value among the pairs of a table.
    Raises ValueError for fewer than two families, and where their seeds differ.
    """
    rows = complete(rows).filter((pl.col("alpha") == 0) | (pl.col("variant") == variant))
    treated = rows.filter(pl.col("alpha") != 0)
    seeds = {f: sorted(p["seed"].unique()) for (f,), p in treated.group_by("family")}
    if len(seeds) < 2 or len({tuple(s) for s in seeds.values()}) > 1:
        raise ValueError(
            f"pairwise_contrasts: {variant!r} needs two families or more of the same seeds, found "
            f"{dict(sorted(seeds.items()))}; score each family on every seed"
        )
    by = [*CELL, "variant", "family"]
    each = _of_seeds(rows, by)
    contrasts = []
    for other in sorted(seeds):
        reference = {"variant": variant, "family": other}
        lines = contrast(rows, reference, by, resamples=resamples, seed=seed, level=level)
        theirs = each.filter(family=other).select(*CELL, other="family", of_other="of_seed")
        contrasts.append(
            lines.join(each, on=by, nulls_equal=True).join(theirs, on=CELL, nulls_equal=True)
        )
    larger = (pl.col("diff") > 0) | ((pl.col("diff") == 0) & (pl.col("family") < pl.col("other")))
    pairs = benjamini_hochberg(pl.concat(contrasts).filter(larger).with_columns(p="diff_p"))
    agree = [sign_agreement(np.subtract(*x)) for x in pairs.select("of_seed", "of_other").rows()]
    pairs = pairs.with_columns(sign_agreement=pl.Series(agree, dtype=pl.Float64)).rename(
        {"q": "diff_q"}
    )
    beats = (
        (pl.col("diff_lo") > 0) & (pl.col("sign_agreement") == 1) & (pl.col("diff_p") < 1 - level)
    )
    order = [False] * len(CELL) + [True, False, False]
    return pairs.sort(*CELL, "diff", "family", "other", descending=order).select(
        *by, "other", "seeds", "diff", "diff_lo", "diff_hi", "diff_p", "diff_q", "sign_agreement",
        beats=(beats & (pl.col("seeds") > 1)).fill_null(False),
    )  # fmt: skip
