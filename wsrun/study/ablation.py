"""One run of an ablation: every part of every dW in one sweep, a summary, and verdicts.

T6, T7 and T8 say which lenses cut which tensors of dW, and how their figure looks (`Study`); all
the rest is `run_ablation`.
"""

from collections.abc import Callable, Mapping

import polars as pl

from wscore import (
    benjamini_hochberg,
    cached_spectra,
    effect_table,
    null_percentile,
    seed_spread,
    select,
    verdict,
)
from wscore.stats.schema import SUMMARY_KEYS
from wsrun.adapters.extract import read_adapter
from wsrun.lenses.base import Cut, Deltas, LensInput
from wsrun.lenses.registry import check_lenses, claims, cuts
from wsrun.report.ablation_summary import (
    compact,
    every_line,
    legend,
    spread_sentence,
    verdict_grid,
    verdict_lines,
)
from wsrun.report.console import console, progress, strong
from wsrun.report.verdicts import RuleResult
from wsrun.score.variants import Variant
from wsrun.steer.interventions import WeightDelta
from wsrun.study.analysis import Options, Study
from wsrun.study.next_command import say_next
from wsrun.study.options import check_common
from wsrun.study.parts import SUM_TOLERANCE, Ablation, with_facts
from wsrun.study.scoring import run_sweep
from wsrun.study.session import Pairs, Session, marked, read_pairs, run_record, write_tables
from wsrun.study.start import load_session, run_shards

__all__ = ["SUM_TOLERANCE", "Options", "Study", "run_ablation", "summarise"]


def run_ablation(cfg: Options, study: Study) -> None:
    """Read deltas, score every part once, apply every rule, print, write tables, draw."""
    check(cfg, study)
    run_shards(cfg)
    session = load_session(cfg)
    pairs = read_pairs(session.model, cfg)
    inputs = lens_inputs(cfg, study, session, pairs)
    cuts_at, ablation = {at: cuts(study.lenses, at) for at in inputs}, Ablation()
    todo: list[Variant] = []
    for at, parts in cuts_at.items():
        if study.where:
            key = at.family, at.seed
            whole = WeightDelta(pairs[key].dW)
            todo.append(Variant("full", whole, family=at.family, seed=at.seed))
        todo += [ablation.whole(at, study.whole), ablation.whole(at, "zero", 0.0)]
        todo += (v for cut in parts for v in ablation.split(at, cut))
        todo += ablation.nulls(at, cfg.nulls, cfg.rule_alpha)
    rows = run_sweep(cfg, study.name, session, todo)
    if rows is None:  # a shard
        return
    table = study.columns(summarise(cfg, rows, ablation, study.whole))
    shown = table.filter(alpha=cfg.rule_alpha)
    results = judge(cfg, study, shown, cuts_at)
    names = list(dict.fromkeys(cut.name for parts in cuts_at.values() for cut in parts))
    report(cfg, study, shown, results, names)
    path = write_tables(cfg, study.name, rows, table, run_record(cfg, session, pairs), results)
    for figure_text in study.figures(cfg, marked(shown, session.reads), path, names):
        console.print(figure_text, highlight=False)
    say_next(cfg, *study.next)


def check(cfg: Options, study: Study) -> None:
    """Refuse options that cannot work before anything is loaded."""
    what = study.name.partition("_")[0]
    check_common(cfg, what)
    check_lenses(study.lenses)
    if cfg.rule_alpha not in cfg.alphas or cfg.rule_alpha == 0:
        raise ValueError(
            f"{what}: --rule-alpha {cfg.rule_alpha:g} must be one of --alphas and not 0"
        )
    if not 0 <= cfg.drop_at_most <= cfg.keep_at_least <= 1:
        raise ValueError(f"{what}: thresholds need 0 <= --drop-at-most <= --keep-at-least <= 1")
    if cfg.nulls < 0:
        raise ValueError(f"{what}: --nulls must be at least 0, got {cfg.nulls}")
    if min(study.K, default=1) < 1 or len(set(study.K)) < len(study.K):
        got = " ".join(map(str, study.K))
        raise ValueError(f"{what}: --K must be at least 1, name each one once; got {got}")


def lens_inputs(cfg: Options, study: Study, session: Session, pairs: Pairs) -> list[LensInput]:
    """Every dW, on the tensors that are cut, with what lenses may need beside it."""
    where = study.where
    deltas = Deltas({k: select(p.dW, where) if where else p.dW for k, p in pairs.items()})
    base = dict(session.model.named_parameters(remove_duplicate=False))
    svds = {}
    if study.svd_cache:
        touched = {n: base[n].detach() for n in base if any(n in d for d in deltas.values())}
        with progress("singular directions of the base", len(touched)) as step:
            svds = cached_spectra(touched, study.svd_cache, progress=step)

    def poles(family: str, seed: int) -> Callable:
        folder = cfg.adapters / f"{family}-s{seed}"
        return lambda: (read_adapter(folder / "pos"), read_adapter(folder / "neg"))

    return [LensInput(f, s, deltas, study.K, svds, base, poles(f, s)) for f, s in deltas]


def summarise(cfg: Options, rows: pl.DataFrame, ablation: Ablation, whole: str) -> pl.DataFrame:
    """One line per dataset, family, variant, k and alpha, seeds pooled.

    Beside the effect table: what the parts are, the spread between seeds and families, q, and
    null_percentile.
    """
    table = effect_table(rows, SUMMARY_KEYS, full=whole, resamples=cfg.resamples)
    table = table.join(
        seed_spread(rows, full=whole).drop("seeds"),
        on=SUMMARY_KEYS,
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )
    table = benjamini_hochberg(null_percentile(table))
    return with_facts(table, ablation, SUMMARY_KEYS)


def judge(
    cfg: Options, study: Study, table: pl.DataFrame, cuts: Mapping[LensInput, list[Cut]]
) -> list[RuleResult]:
    """What the rules of the lenses say of each data set at the rule's alpha."""
    of: dict[str, list[Cut]] = {family: [] for family in cfg.families}
    for at, input_cuts in cuts.items():
        of[at.family] += input_cuts
    all_claims = list(claims(study.lenses, of, None, *cfg.limits))
    return [
        RuleResult(dataset, c.name, c.family, *verdict(table.filter(dataset=dataset), c.rule))
        for dataset in table["dataset"].unique().sort()
        for c in all_claims
    ]


def report(
    cfg: Options,
    study: Study,
    table: pl.DataFrame,
    results: list[RuleResult],
    names: list[str],
) -> None:
    """Print what parts retain, the short table or every line, and the verdicts."""
    heads = {name: head for name in names if (head := study.head(name))}
    for (dataset,), part in table.group_by("dataset", maintain_order=True):
        title = f"{dataset}, alpha = {cfg.rule_alpha:g}: share of the effect of {study.whole}"
        if cfg.full:
            console.print(*every_line(part, title, cfg.families, names, console.width), sep="")
            of = [r for r in results if r.dataset == dataset]
            question = f"{dataset}: which part carries the effect (no: none does; ?: undetermined)"
            console.print(verdict_grid(of, cfg.families, question))
        else:
            console.print(strong(f"{title}, kept/left"))
            short = compact(part, cfg.families, heads, cfg.limits, study.whole, console.width)
            console.print(*short, sep="")
        console.print(*study.notes(part), sep="\n")
        if cfg.full or len(cfg.seeds) > 1:
            lines = part.filter(pl.col("k").is_null() | (pl.col("k") == max(study.K, default=0)))
            console.print(spread_sentence(lines, study.spread, f"{dataset}, {study.spread}"))
    if not cfg.full:
        console.print(legend(cfg.limits), style="dim")
    console.print(*verdict_lines(results, table), sep="\n")
