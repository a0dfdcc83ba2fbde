"""What a method adds to the one that it builds on: paired differences to a line of its own."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial

import polars as pl

from wscore import add, contrast, scale
from wsrun.report.verdicts import RuleResult
from wsrun.report.wording import against_dW, with_interval
from wsrun.score.variants import Variant
from wsrun.steer.interventions import WeightDelta
from wsrun.study.rule import BEATS, outcome
from wsrun.study.session import Pairs

OVER = ("over_diff", "over_lo", "over_hi")


def finetuned_candidates(pairs: Pairs, alphas: Sequence[float]) -> Iterator[Variant]:
    """theta_ft = W0 + tau_neg of the first pair, and theta_ft + k dW of every other pair.

    With one pair alone, dW is its own.
    """
    (first, pair), *others = pairs.items()
    yield Variant("finetuned", WeightDelta(pair.neg), (1.0,), family=first[0], seed=first[1])
    for (family, seed), other in others or [(first, pair)]:
        for k in alphas:
            change = partial(lambda dW, k: add(pair.neg, scale(k, dW)), other.dW, k)
            name = f"finetuned+dW@{family}, k {k:g}"
            yield Variant(name, WeightDelta(change), family=family, seed=seed, alphas=(1.0,))


def add_over(
    rows: pl.DataFrame, table: pl.DataFrame, over: Mapping[str, str], resamples: int
) -> pl.DataFrame:
    """Columns over, over_diff, over_lo, over_hi: a line against the line that it builds on.

    over: {variant: the variant it builds on}.
    """
    over_lines = [pl.DataFrame(schema=dict.fromkeys(("dataset", "variant", "over"), pl.String()))]
    over_lines[0] = over_lines[0].with_columns(pl.lit(0.0).alias(c) for c in OVER)
    for name, reference in over.items():
        both = rows.filter(pl.col("variant").is_in(["base", name, reference]))
        line = contrast(both, {"variant": reference}, resamples=resamples).filter(variant=name)
        diff = dict(zip(OVER, ("diff", "diff_lo", "diff_hi"), strict=True))
        over_lines.append(line.select("dataset", "variant", over=pl.lit(reference), **diff))
    return table.join(
        pl.concat(over_lines), on=("dataset", "variant"), how="left", maintain_order="left"
    )


def increments(table: pl.DataFrame, negative_methods: Collection[str]) -> list[RuleResult]:
    """Whether a line beats the one it builds on; towards the other pole, lower is better."""
    results = []
    for r in table.filter(pl.col("over").is_not_null()).iter_rows(named=True):
        ends, pole = (r["over_lo"], r["over_hi"]), ""
        if r["method_name"] in negative_methods:
            ends, pole = [None if e is None else -e for e in reversed(ends)], " to the other pole"
        diff = {"diff_lo": ends[0], "diff_hi": ends[1]}
        setting = f"{r['variant'].partition('@')[2]}, alpha {r['alpha']:g}"
        sentence = (
            f"{r['method_name']} ({setting}) {against_dW(diff)} {r['over']}{pole}: "
            f"{with_interval(r, *OVER)} nats"
        )
        claim = f"{r['method_name']} beats {r['over']}{pole}"
        results.append(
            RuleResult(r["dataset"], claim, None, outcome(diff, BEATS), sentence, r["variant"])
        )
    return results
