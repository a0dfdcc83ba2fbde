"""What experiments share: options, session, ablation, benchmark, selection, controls, shards.

One question each is asked in experiments/; no formula and no model code lives here.

    options      Common, BenchmarkOptions: the flags, and what is refused before anything is loaded
    start        load_session, load_splits: the model, its items, and what these can read on it
    instrument   check: can items read a behaviour on a model, only a bias, or nothing
    scoring      run_sweep; session: Session, read_pairs, run_record, write_tables
    shards       one sweep on several processes, by hand (--shard) or on Ray
    benchmark    Benchmark: what a script of the benchmark overrides; run: run_benchmark, the rest
    selection    choose, select_dW: setting and coefficient on validation items; selected: its files
    comparison   compare_on_test; rule: whether dW beats a method; increments: what adds to what
    controls     zero, random controls, a planted bias to Yes
    ablation     run_ablation and parts; analysis, located: what T6, T7, T8 cut; planted: T13
    checking, trained, compared, dosing, composing, page: whole runs, of scripts and of wsrun
    activation, constructed, top_directions, costs, replicate, dilemmas, family_ranking, monitor:
                 what single questions need (T1, T9, T10, T11, T5, T2, T4, T14)
    answers, training   paired answers and adapters; next_command: what to run next
"""

from wsrun.study.ablation import run_ablation
from wsrun.study.instrument import check
from wsrun.study.options import Common
from wsrun.study.run import run_benchmark
from wsrun.study.scoring import run_sweep
from wsrun.study.session import Session, read_pairs, write_tables
from wsrun.study.start import load_session

__all__ = [
    "Common",
    "Session",
    "check",
    "load_session",
    "read_pairs",
    "run_ablation",
    "run_benchmark",
    "run_sweep",
    "write_tables",
]
