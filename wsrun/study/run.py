"""A script of the benchmark from its options to its tables, its figure and the next command."""

from collections.abc import Iterable

from wsrun.report.console import console
from wsrun.score.names import DW
from wsrun.score.variants import Variant
from wsrun.study.benchmark import Benchmark
from wsrun.study.comparison import compare_on_test
from wsrun.study.controls import sanity_summary, zero_control
from wsrun.study.next_command import say_next
from wsrun.study.selected import Selections
from wsrun.study.selection import check_benchmark, choose, match_doses, select_dW
from wsrun.study.session import marked, read_pairs, run_record, write_tables
from wsrun.study.start import load_splits, run_shards


def run_benchmark(script: Benchmark) -> None:
    """Choose on validation items, compare on test items, write, print, draw."""
    cfg = script.cfg
    check_benchmark(cfg, script.name, adapters=not script.trains)
    script.check()
    if not script.trains:
        run_shards(cfg)
    script.validation, script.test = load_splits(cfg)
    script.prepare()
    if script.trains:
        run_shards(cfg)
    script.pairs = read_pairs(script.test.model, cfg)
    chosen = choose_all(script)
    if chosen is None:  # a shard
        return
    script.chosen = chosen
    script.refine()
    controls = [zero_control(chosen[DW].variant), *script.controls()]
    if cfg.match_dose:
        controls = match_doses(cfg, script.test, controls)
    script.control_variants = controls = [*controls, *script.fixed_dose_controls()]
    rows, table = compare_on_test(cfg, script.experiment, script.test, chosen, controls)
    script.rows, script.table = rows, marked(table, script.test.reads)
    script.add_columns()
    verdicts = list(script.verdicts())
    script.record = run_record(cfg, script.test, script.pairs, **script.notes())
    path = write_tables(cfg, script.experiment, script.rows, script.table, script.record, verdicts)
    for sentence in sanity_summary(script.table):
        console.print(sentence)
    script.report(verdicts)
    script.figure(path)
    say_next(cfg, *script.following)


def choose_all(script: Benchmark) -> Selections | None:
    """The shared choice of dW, and the best candidate of each method of the script."""
    dW = select_dW(script.cfg, script.validation, script.pairs)
    chosen = choose_among(script, script.candidates())
    if dW is None or chosen is None:
        return None
    selections = Selections({name: s for name, s in dW.items() if name in script.poles} | chosen)
    selections.unmatched = [v for v in dW.unmatched if v.name in script.poles] + [*chosen.unmatched]
    selections.rows = chosen.rows
    return selections


def choose_among(script: Benchmark, candidates: Iterable[Variant]) -> Selections | None:
    """The best candidate of each method on validation items; None of a shard."""
    return choose(
        script.cfg,
        script.experiment,
        script.validation,
        list(candidates),
        script.negative_methods,
    )
