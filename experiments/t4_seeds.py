"""Do the effects of dW, and the ranking of adapter families, hold across seeds?

Question:   a seed draws the pairs of answers, the initial adapters and the order of examples. Is
            the effect of a family its own or a seed's, and which family is better than which?
Prediction: every effect holds; of the families some pairs can be told apart, not all of them.
Rule:       an effect holds where its interval, over items and seeds, excludes 0 and all seeds agree
            in sign. Family A beats B where the interval of the paired difference, over items and
            seeds, excludes 0, all seeds agree in sign, and p < 0.05; else the two are not shown to
            differ. The ranking holds (supported) where every pair of families is told apart, else
            undetermined.

    python experiments/t4_seeds.py
    python experiments/t4_seeds.py --families lora dora pissa delora oft boft ia3

Families are compared in two ways: all at one dose (--dose), and each at its own, the one of
--alphas with the largest effect on validation items. p is asked because resamples of three seeds
end at the outermost seed: where seeds differ more than items do, an interval alone that agrees in
sign calls one in four pairs of equal families different (tests/test_seeds.py measures it).
`first` is the share of resamples in which a family is the first, `tau` the mean rank correlation
(Kendall) of two seeds. `random` has a family's own singular values in random directions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite

import polars as pl

from wscore import (
    benjamini_hochberg,
    duels,
    effect_table,
    ranking,
    scale,
    seed_spread,
)
from wscore.effect import KEYS, SUMMARY_KEYS
from wsrun.report import curves
from wsrun.report.console import console, grid, guarded
from wsrun.report.standings import span
from wsrun.report.tables import write_table
from wsrun.score.names import way
from wsrun.score.sweep import Variant
from wsrun.study.benchmark import Options, check, choose, load_splits
from wsrun.study.controls import base_lines, faint, idle, random_changes
from wsrun.study.next_command import say_next
from wsrun.study.session import Loaded, Pairs, draw, read_pairs, record, run, share, write

EXPERIMENT = "t4_seeds"
ONE, OWN = "dW@one dose", "dW@own dose"
ROLES = {ONE: "fixed", OWN: "selected"}


@dataclass(frozen=True)
class Config(Options):
    """Options of T4."""

    families: tuple[str, ...] = ("lora", "pissa", "delora")
    """adapter families to rank"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """seeds of data and training; two or more"""
    dose: float = 1.0
    """the one dose at which all families are compared"""


def main(cfg: Config) -> None:
    """Choose a dose per family, score every family and seed, write tables, print who beats whom."""
    check(cfg, "t4")
    check_own(cfg)
    share(cfg)
    validation, test = load_splits(cfg)
    pairs = read_pairs(test.model, cfg)
    doses = own_doses(cfg, validation, pairs)
    if doses is None:  # a shard
        return
    variants = [*tried(cfg, pairs, doses)]
    rows = run(cfg, EXPERIMENT, test, variants, len(variants))
    assert rows is not None
    table, fights = summarise(cfg, rows), compare_families(cfg, rows)
    said = [(*key, *found) for key, found in verdicts(table, fights).items()]
    made = record(cfg, test, pairs, doses=doses, verdicts=said)
    path = write(cfg, EXPERIMENT, rows, table, made)
    console.print(
        f"pairs of families {write_table(fights, path.with_suffix('.pairs.parquet'), made)}"
    )
    report(cfg, table, fights, said)
    question = f"Does the effect of dW hold across seeds? (alpha {cfg.dose:g})"
    draw(curves.by_seed, table.filter(variant=ONE), path, question)
    say_next(cfg, "t5_replicate", "the benchmark on any model")


def check_own(cfg: Config) -> None:
    """Refuse options of this script that cannot work."""
    for name, values in (("--families", cfg.families), ("--seeds", cfg.seeds)):
        if len(values) < 2:
            found = " ".join(map(str, values))
            raise ValueError(f"t4: {name} {found} asked; two or more can be compared")
    if not (isfinite(cfg.dose) and cfg.dose > 0):
        raise ValueError(f"t4: --dose {cfg.dose:g} asked; it must be above 0")


def own_doses(cfg: Config, validation: Loaded, pairs: Pairs) -> dict[str, float] | None:
    """{family: its dose with the largest effect on validation items, seeds pooled}."""
    candidates = [
        Variant(f"{family}@own dose", pair.dW, family=family, seed=seed, alphas=cfg.alphas)
        for (family, seed), pair in pairs.items()
    ]
    chosen = choose(cfg, EXPERIMENT, validation, candidates, against=())
    if chosen is None:
        return None
    if lost := [f for f in cfg.families if f not in chosen]:
        raise ValueError(
            f"t4: no alpha brings dW of {', '.join(lost)} to {cfg.match}; leave these --families "
            "out, or ask for another --match"
        )
    return {name: (c.variant.alphas or cfg.alphas)[0] for name, c in chosen.items()}


def tried(cfg: Config, pairs: Pairs, doses: Mapping[str, float]) -> Iterator[Variant]:
    """Every family and seed at both doses and at zero times dW, and random changes, faint too."""
    for (family, seed), pair in pairs.items():
        of = partial(Variant, family=family, seed=seed)
        yield of(ONE, pair.dW, alphas=(cfg.dose,))
        yield of(OWN, pair.dW, alphas=(doses[family],))
        yield of("zero", scale(0.0, pair.dW), alphas=(cfg.dose,))
    for family in cfg.families:
        dW = pairs[family, cfg.seeds[0]].dW
        drawn = random_changes(Variant("dW", dW, family=family, alphas=(cfg.dose,)), cfg.randoms)
        yield from (*drawn, *faint(drawn))


def summarise(cfg: Config, rows: pl.DataFrame) -> pl.DataFrame:
    """One line per dataset, family and variant, seeds pooled, and one per seed (role "seed")."""
    families = rows.filter((pl.col("alpha") == 0) | pl.col("variant").is_in(list(ROLES)))
    pooled = benjamini_hochberg(effect_table(rows, resamples=cfg.resamples))
    more = (
        seed_spread(rows).select(*SUMMARY_KEYS, "seed_sd"),
        ranking(families, resamples=cfg.resamples),
    )
    for part in more:
        pooled = pooled.join(
            part, on=SUMMARY_KEYS, how="left", nulls_equal=True, maintain_order="left"
        )
    role = pl.col("variant").replace_strict(ROLES, default="control")
    each = effect_table(families, KEYS, resamples=cfg.resamples)
    return pl.concat(
        [
            pooled.with_columns(role=role),
            base_lines(rows).with_columns(role=pl.lit("control")),
            each.with_columns(role=pl.lit("seed")),
        ],
        how="diagonal_relaxed",
    ).with_columns(way=pl.col("variant").map_elements(way, pl.String))


def compare_families(cfg: Config, rows: pl.DataFrame) -> pl.DataFrame:
    """Every pair of families, at one dose and at their own."""
    return pl.concat(duels(rows, name, resamples=cfg.resamples) for name in ROLES)


def verdicts(table: pl.DataFrame, fights: pl.DataFrame) -> dict[tuple[str, str], tuple[str, str]]:
    """{(dataset, variant): (outcome, sentence)} of the rule on the ranking."""
    found = {}
    for (dataset, name), part in fights.group_by("dataset", "variant", maintain_order=True):
        order = table.filter(dataset=dataset, variant=name, role=ROLES[name]).sort("rank")
        decided, tau = int(part["beats"].sum()), order["tau"][0]
        sentence = (
            f"{' > '.join(order['family'])}; {decided} of {len(part)} pairs told apart; "
            f"{order['family'][0]} is first in {order['first'][0]:.0%} of resamples; "
            f"tau between seeds {tau:+.2f}"
        )
        found[dataset, name] = "supported" if decided == len(part) else "undetermined", sentence
    return found


def duel(line: Mapping) -> str:
    """The rule for one pair of families, with its numbers."""
    verb = "beats" if line["beats"] else "is not shown to differ from"
    agree = 0 if line["agree"] is None else round(line["agree"] * line["seeds"])
    return (
        f"{line['family']} {verb} {line['other']}: {span(line, 'diff', 'diff_lo', 'diff_hi')} "
        f"nats, p = {line['diff_p']:.2g}, {agree} of {line['seeds']} seeds"
    )


def holds(line: Mapping) -> bool:
    """The rule for one effect."""
    clear = line["lo"] is not None and (line["lo"] > 0 or line["hi"] < 0)
    return clear and line["agree"] == 1


def report(cfg: Config, table: pl.DataFrame, fights: pl.DataFrame, said: list[tuple]) -> None:
    """Print every family per data set and way, then the sentences of the rule."""
    heads = ("family", "alpha", "effect", "seeds", "sd", "agree", "rank", "first", "each seed")
    for dataset, name, outcome, sentence in said:
        part = table.filter(dataset=dataset, variant=name)
        pooled, each = part.filter(role=ROLES[name]), part.filter(role="seed").sort("seed")
        lines = [
            [
                r["family"],
                r["alpha"],
                span(r, "effect", "lo", "hi"),
                *(r[c] for c in ("seeds", "seed_sd", "agree", "rank", "first")),
                " ".join(f"{x:+.2f}" for x in each.filter(family=r["family"])["effect"]),
            ]
            for r in pooled.sort("rank").iter_rows(named=True)
        ]
        console.print(grid(f"{dataset}: {name}, effect in nats over items and seeds", heads, lines))
        kept = sum(map(holds, pooled.iter_rows(named=True)))
        console.print(f"{dataset}, {name}: the effect of {kept} of {len(pooled)} families holds")
        for line in fights.filter(dataset=dataset, variant=name).iter_rows(named=True):
            console.print(f"  {duel(line)}", highlight=False)
        console.print(f"ranking, {dataset}, {name}: [bold]{outcome}[/]: {sentence}\n")
    for sentence in idle(table):
        console.print(sentence)
    for r in table.filter(role="control").iter_rows(named=True):
        effect = span(r, "effect", "lo", "hi")
        of = f" of {r['family']}" if r["family"] else ""
        console.print(f"control, {r['dataset']}: {r['variant']}{of} {effect} nats")


if __name__ == "__main__":
    guarded(main, Config)
