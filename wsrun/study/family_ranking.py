"""Families over seeds (T4): effects, ranking, pairwise contrasts, and the rules on them."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from wscore import (
    base_lines,
    benjamini_hochberg,
    effect_table,
    pairwise_contrasts,
    ranking,
    seed_spread,
)
from wscore.stats.schema import KEYS, SUMMARY_KEYS
from wsrun.report.console import console, grid, strong
from wsrun.report.verdicts import RuleResult
from wsrun.report.wording import difference_to_dW, with_interval
from wsrun.score.names import method_name

ONE, OWN = "dW@one dose", "dW@own dose"
ROLES = {ONE: "fixed", OWN: "selected"}
HEADS = (
    "family", "alpha", "effect", "seeds", "sd", "sign agreement", "rank", "p best", "each seed",
)  # fmt: skip


def seeds_table(rows: pl.DataFrame, resamples: int) -> pl.DataFrame:
    """One line per dataset, family and variant, seeds pooled, and one per seed (role "seed")."""
    families = rows.filter((pl.col("alpha") == 0) | pl.col("variant").is_in(list(ROLES)))
    pooled = benjamini_hochberg(effect_table(rows, resamples=resamples))
    added_columns = (
        seed_spread(rows).select(*SUMMARY_KEYS, "seed_sd"),
        ranking(families, resamples=resamples),
    )
    for part in added_columns:
        pooled = pooled.join(
            part, on=SUMMARY_KEYS, how="left", nulls_equal=True, maintain_order="left"
        )
    role = pl.col("variant").replace_strict(ROLES, default="control")
    each = effect_table(families, KEYS, resamples=resamples)
    return pl.concat(
        [
            pooled.with_columns(role=role),
            base_lines(rows).with_columns(role=pl.lit("control")),
            each.with_columns(role=pl.lit("seed")),
        ],
        how="diagonal_relaxed",
    ).with_columns(method_name=pl.col("variant").map_elements(method_name, pl.String))


def compare_families(rows: pl.DataFrame, resamples: int) -> pl.DataFrame:
    """Every pair of families, at one dose and at their own."""
    return pl.concat(pairwise_contrasts(rows, name, resamples=resamples) for name in ROLES)


def verdicts(table: pl.DataFrame, contrasts: pl.DataFrame) -> list[RuleResult]:
    """The rule on the ranking, per data set and coefficient, and on the effect of each family."""
    results = []
    for (dataset, name), part in contrasts.group_by("dataset", "variant", maintain_order=True):
        order = table.filter(dataset=dataset, variant=name, role=ROLES[name]).sort("rank")
        decided, tau = int(part["beats"].sum()), order["tau"][0]
        sentence = (
            f"{' > '.join(order['family'])}; {decided} of {len(part)} pairs told apart; "
            f"{order['family'][0]} is first in {order['p_best'][0]:.0%} of resamples; "
            f"tau between seeds {tau:+.2f}"
        )
        outcome = "supported" if decided == len(part) else "undetermined"
        claim = f"the ranking holds, {name}"
        results.append(RuleResult(str(dataset), claim, None, outcome, sentence))
        for r in order.iter_rows(named=True):
            outcome = "supported" if holds(r) else "undetermined"
            sentence = f"{with_interval(r, 'effect', 'lo', 'hi')} nats"
            claim = f"the effect holds, {name}"
            results.append(RuleResult(str(dataset), claim, r["family"], outcome, sentence))
    return results


def pair_sentence(line: Mapping[str, Any]) -> str:
    """The rule for one pair of families, with its numbers."""
    verb = "beats" if line["beats"] else "is not shown to differ from"
    agree = 0 if line["sign_agreement"] is None else round(line["sign_agreement"] * line["seeds"])
    return (
        f"{line['family']} {verb} {line['other']}: {difference_to_dW(line)} nats, "
        f"p = {line['diff_p']:.2g}, {agree} of {line['seeds']} seeds"
    )


def holds(line: Mapping[str, Any]) -> bool:
    """The rule for one effect."""
    clear = line["lo"] is not None and (line["lo"] > 0 or line["hi"] < 0)
    return clear and line["sign_agreement"] == 1


def print_families(table: pl.DataFrame, contrasts: pl.DataFrame, results: list[RuleResult]) -> None:
    """Print every family per data set and coefficient, the sentences of the rules, controls."""
    ranks = [v for v in results if v.family is None]
    for (dataset, name), v in zip(
        contrasts.select("dataset", "variant").unique(maintain_order=True).rows(),
        ranks,
        strict=True,
    ):
        part = table.filter(dataset=dataset, variant=name)
        pooled, each = part.filter(role=ROLES[name]), part.filter(role="seed").sort("seed")
        lines = [
            [
                r["family"],
                r["alpha"],
                with_interval(r, "effect", "lo", "hi"),
                *(r[c] for c in ("seeds", "seed_sd", "sign_agreement", "rank", "p_best")),
                " ".join(f"{x:+.2f}" for x in each.filter(family=r["family"])["effect"]),
            ]
            for r in pooled.sort("rank").iter_rows(named=True)
        ]
        console.print(grid(f"{dataset}: {name}, effect in nats over items and seeds", HEADS, lines))
        kept = sum(map(holds, pooled.iter_rows(named=True)))
        console.print(f"{dataset}, {name}: the effect of {kept} of {len(pooled)} families holds")
        for line in contrasts.filter(dataset=dataset, variant=name).iter_rows(named=True):
            console.print(f"  {pair_sentence(line)}", highlight=False)
        console.print(f"{v.claim}, {dataset}:", strong(f"{v.outcome}:"), f"{v.sentence}\n")
    for r in table.filter(role="control").iter_rows(named=True):
        effect, of = (
            with_interval(r, "effect", "lo", "hi"),
            f" of {r['family']}" if r["family"] else "",
        )
        console.print(f"control, {r['dataset']}: {r['variant']}{of} {effect} nats")
