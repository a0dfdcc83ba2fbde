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

Families are compared twice: all at one coefficient (--dose), and each at its own, the one of
--alphas with the largest effect on validation items. p is asked because resamples of three seeds
end at the outermost seed: where seeds differ more than items do, an interval alone that agrees in
sign calls one in four pairs of equal families different (tests/test_seeds.py measures it).
`p_best` is the share of resamples in which a family is the first, `tau` the mean rank correlation
(Kendall) of two seeds. `random` has a family's own singular values in random directions.
"""

from wsrun.script import guarded

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite

from wscore import scale
from wsrun.report.console import console
from wsrun.report.effect_figures import effects_by_seed
from wsrun.report.tables import write_table
from wsrun.score.variants import Variant
from wsrun.steer.interventions import WeightDelta
from wsrun.study.controls import random_controls, sanity_summary
from wsrun.study.family_ranking import (
    ONE,
    OWN,
    compare_families,
    print_families,
    seeds_table,
    verdicts,
)
from wsrun.study.next_command import say_next
from wsrun.study.options import BenchmarkOptions, check_once
from wsrun.study.scoring import run_sweep
from wsrun.study.selection import check_benchmark, choose
from wsrun.study.session import (
    Pairs,
    Session,
    marked,
    read_pairs,
    run_record,
    save_figure,
    write_tables,
)
from wsrun.study.start import load_splits, run_shards

EXPERIMENT = "t4_seeds"


@dataclass(frozen=True)
class Config(BenchmarkOptions):
    """Options of T4."""

    families: tuple[str, ...] = ("lora", "pissa", "delora")
    """adapter families to rank"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """seeds of data and training; two or more"""
    dose: float = 1.0
    """the one coefficient at which all families are compared"""


def main(cfg: Config) -> None:
    """Choose an alpha per family, score all families and seeds, write tables, print who wins."""
    check_benchmark(cfg, "t4")
    check_once("t4", {"families": cfg.families, "seeds": cfg.seeds}, at_least=2)
    if not (isfinite(cfg.dose) and cfg.dose > 0):
        raise ValueError(f"t4: --dose must be above 0, got {cfg.dose:g}")
    run_shards(cfg)
    validation, test = load_splits(cfg)
    pairs = read_pairs(test.model, cfg)
    alphas = own_alphas(cfg, validation, pairs)
    if alphas is None:  # a shard
        return
    rows = run_sweep(cfg, EXPERIMENT, test, variants(cfg, pairs, alphas))
    assert rows is not None
    table = seeds_table(rows, cfg.resamples)
    contrasts = compare_families(rows, cfg.resamples)
    results = verdicts(table, contrasts)
    record = run_record(cfg, test, pairs, doses=alphas)
    path = write_tables(cfg, EXPERIMENT, rows, table, record, results)
    pairs_path = write_table(contrasts, path.with_suffix(".pairs.parquet"), record)
    console.print(f"pairs of families {pairs_path}", highlight=False)
    for sentence in sanity_summary(table):
        console.print(sentence)
    print_families(table, contrasts, results)
    question = f"Does the effect of dW hold across seeds? (alpha {cfg.dose:g})"
    drawn = marked(table.filter(variant=ONE), test.reads)
    save_figure(effects_by_seed, drawn, path, question)
    say_next(cfg, "t5_replicate", "the benchmark on any model")


def own_alphas(cfg: Config, validation: Session, pairs: Pairs) -> dict[str, float] | None:
    """{family: its alpha with the largest effect on validation items, seeds pooled}."""
    candidates = [
        Variant(f"{f}@own dose", WeightDelta(pair.dW), family=f, seed=seed, alphas=cfg.alphas)
        for (f, seed), pair in pairs.items()
    ]
    chosen = choose(cfg, EXPERIMENT, validation, candidates)
    if chosen is None:
        return None
    if lost := [f for f in cfg.families if f not in chosen]:
        raise ValueError(
            f"t4: no alpha brings dW of {', '.join(lost)} to {cfg.match_dose}; leave these "
            "--families out, or give another --match-dose"
        )
    return {name: s.alpha for name, s in chosen.items()}


def variants(cfg: Config, pairs: Pairs, alphas: Mapping[str, float]) -> Iterator[Variant]:
    """Every family and seed at both coefficients and at zero times dW, and random changes."""
    for (family, seed), pair in pairs.items():
        of = partial(Variant, family=family, seed=seed)
        yield of(ONE, WeightDelta(pair.dW), alphas=(cfg.dose,))
        yield of(OWN, WeightDelta(pair.dW), alphas=(alphas[family],))
        yield of("zero", WeightDelta(scale(0.0, pair.dW)), alphas=(cfg.dose,))
    for family in cfg.families:
        dW = WeightDelta(pairs[family, cfg.seeds[0]].dW)
        yield from random_controls(
            Variant("dW", dW, family=family, alphas=(cfg.dose,)), cfg.n_random
        )


if __name__ == "__main__":
    guarded(main, Config)
