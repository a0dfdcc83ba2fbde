"""How strong: the largest dose of a method whose costs stay below their bounds.

    below(alpha)    the 95 % interval of every measured cost lies below its bound at alpha
    largest         the last of the doses a1 < a2 < ..., in size, up to which all are below

A dose that is not below ends it, whatever larger ones do. So the chance that the dose taken costs
more than a bound is at most that of one interval's upper end, 2.5 %, however many doses are tried:
a fixed-sequence test (Angelopoulos et al. 2021, arXiv 2110.01052). The effect at that dose is of
other items, and had no say in it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
from rich.table import Table

from wscore import effect_table
from wsrun.data.items import items_sha256
from wsrun.report.console import console, grid
from wsrun.report.dose_figures import effects_by_cost
from wsrun.report.row_identity import LINE
from wsrun.report.verdicts import RuleResult
from wsrun.report.wording import with_interval
from wsrun.score.names import DW, method_name, setting_of
from wsrun.score.variants import Variant
from wsrun.steer.interventions import WeightDelta
from wsrun.steer.prompts import OTHER_POLE, filter_reachable_prompts, read_wordings
from wsrun.study import activation
from wsrun.study.answers import answers, check_answering, read_sources
from wsrun.study.benchmark import prompt_candidates
from wsrun.study.costs import NATS, bounded, check_bounds, cost_lines, cost_rows, measured
from wsrun.study.next_command import say
from wsrun.study.options import check_common
from wsrun.study.scoring import run_sweep
from wsrun.study.session import Pairs, read_pairs, run_record, save_figure, write_tables
from wsrun.study.start import WORDINGS, load_session

METHOD = ("method", "variant", "family", "k")  # what has one largest dose
QUESTION = "How far does each method get, and what does it cost?"


@dataclass(frozen=True)
class DoseOptions(activation.Directed):
    """Options of the choice of a dose."""

    alphas: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    """doses of dW to try, all of one sign; the smallest is tried first"""
    coefficients: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    """coefficients of the mean difference, in units of its length"""
    layers: tuple[int, ...] | None = None
    """layers to add it to one at a time, too, counted from 0; only to all at once if not given"""
    nats_at_most: float = 0.1
    """a cost in text stays below this many nats a token"""
    points_at_most: float = 5.0
    """a cost in accuracy stays below this many percentage points"""
    questions: bool = False
    """measure the cost on the multiple-choice questions beside --data, too"""
    costs: tuple[str, ...] | None = None
    """public sets to measure costs on, too: wikitext:PATH, arc:PATH, blimp:PATH"""
    cost_limit: int | None = None
    """how many texts and questions of each measure, drawn by a hash; None for all"""


def run_dose(cfg: DoseOptions) -> None:
    """Score every method at every dose, measure its costs, and say how far each may go."""
    check(cfg)
    towards = min(cfg.alphas) > 0
    wordings = read_wordings(cfg.data, cfg.pos, cfg.neg)["simple" if towards else OTHER_POLE[0]]
    measures = measured(cfg, cfg.costs, cfg.cost_limit, cfg.questions)
    sources = read_sources(cfg)
    session = load_session(cfg)
    model, tok, items, _ = session
    activation.check_layers(cfg, session, "dose")
    few = {"simple": wordings[:WORDINGS], "neutral": []}
    prompts = filter_reachable_prompts(tok, items, few, "dose")
    (found,) = answers(cfg, model, tok, sources, cfg.seeds[:1]).values()
    vectors = activation.read_directions(session, found.pairs, ("mean_diff",))
    pairs = read_pairs(model, cfg)
    signs = ("",) if towards else ("-",)
    added = activation.directions(replace(cfg, layers=cfg.layers or (0,)), vectors, signs)
    variants = [*changes(cfg, pairs)]
    variants += [v for v in added if cfg.layers or v.name.endswith("all layers")]
    variants += prompt_candidates(prompts)
    rows = run_sweep(cfg, "dose", session, variants)
    assert rows is not None  # no shard can be asked for
    cost = cost_rows(cfg, "dose", session, measures, variants)
    table = effect_table(rows, resamples=cfg.resamples).with_columns(
        role=pl.lit("tried"), method_name=pl.col("variant").map_elements(method_name, pl.String)
    )
    changed = effect_table(cost, resamples=cfg.resamples)
    lines = cost_lines(changed, cost, table, measures)
    table = with_costs(table, lines, cfg.nats_at_most, cfg.points_at_most)
    results = list(verdicts(table, lines, cfg.nats_at_most, cfg.points_at_most))
    texts = {name: items_sha256(entries) for name, entries in measures.items()}
    record = run_record(cfg, session, pairs, costs=texts)
    path = write_tables(cfg, "dose", pl.concat([rows, cost]), table, record, results)
    report(table, lines, results)
    save_figure(effects_by_cost, table, path, QUESTION, bound_of(lines, cfg))
    say_chat(cfg, table)


def check(cfg: DoseOptions) -> None:
    """Refuse options that cannot work before anything is loaded."""
    check_common(cfg, "dose")
    check_answering(cfg, "dose")
    activation.check_directed(cfg, "dose")
    check_bounds(cfg.nats_at_most, cfg.points_at_most, "dose")
    if not (all(a > 0 for a in cfg.alphas) or all(a < 0 for a in cfg.alphas)):
        raise ValueError(f"dose: --alphas must be all above 0, or all below, got {cfg.alphas}")


def changes(cfg: DoseOptions, pairs: Pairs) -> Iterator[Variant]:
    """dW of every family and seed, at the doses to try."""
    for (family, seed), pair in pairs.items():
        yield Variant(DW, WeightDelta(pair.dW), family=family, seed=seed, alphas=cfg.alphas)


def with_costs(
    table: pl.DataFrame, lines: pl.DataFrame, nats: float, points: float
) -> pl.DataFrame:
    """The effect table with cost, cost_lo, cost_hi, unit of the first measure, below, largest.

    lines: of `cost_lines`. below: whether all measures lie below their bounds. largest: whether
    this is the largest dose of its method before the first that is not below.
    """
    below = [bounded(r, nats, points).outcome == "supported" for r in lines.iter_rows(named=True)]
    whole = lines.with_columns(below=pl.Series(below)).group_by(LINE, maintain_order=True)
    each = whole.agg(
        measure=pl.col("dataset").first(),
        unit=pl.col("measure").first(),
        cost=pl.col("change").first(),
        cost_lo=pl.col("lo").first(),
        cost_hi=pl.col("hi").first(),
        below=pl.col("below").all(),
    )
    size = pl.col("alpha").abs()
    each = each.sort(*METHOD, size, nulls_last=True).with_columns(
        allowed=pl.col("below").cast(pl.Int8).cum_min().over(METHOD).cast(pl.Boolean)
    )
    top = size.filter("allowed").max().over(METHOD)
    each = each.with_columns(largest=(pl.col("allowed") & (size == top)).fill_null(False))
    return table.join(
        each.drop("allowed"), on=LINE, how="left", nulls_equal=True, maintain_order="left"
    )


def verdicts(
    table: pl.DataFrame, lines: pl.DataFrame, nats: float, points: float
) -> Iterator[RuleResult]:
    """Of each method, whether a dose stays below; refuted where the smallest surely costs more."""
    first = table["dataset"][0]
    for _, part in table.group_by(METHOD, maintain_order=True):
        smallest = part.sort(pl.col("alpha").abs()).row(0, named=True)
        taken = part.filter("largest")
        costs = lines.filter(pl.col(c).eq_missing(pl.lit(smallest[c])) for c in LINE)
        found = [bounded(r, nats, points) for r in costs.iter_rows(named=True)]
        if taken.is_empty():
            outcome = "refuted" if any(f.outcome == "refuted" for f in found) else "undetermined"
            why = "; ".join(f.sentence for f in found if f.outcome != "supported")
            sentence = f"{label(smallest)}: no dose; at {smallest['alpha']:g}, {why}"
        else:
            outcome, sentence = "supported", _largest(part, taken)
        claim = f"a dose of {label(smallest)} costs less than the bound"
        yield RuleResult(first, claim, smallest["family"], outcome, sentence, smallest["variant"])


def _largest(part: pl.DataFrame, taken: pl.DataFrame) -> str:
    """What the largest dose of one method costs and does."""
    r = taken.row(0, named=True)
    effects = ", ".join(
        f"{e['dataset']} {with_interval(e, 'effect', 'lo', 'hi')}"
        for e in taken.iter_rows(named=True)
    )
    end = part["alpha"].n_unique() > 1 and abs(r["alpha"]) == part["alpha"].abs().max()
    more = ", the largest tried, so more may do" if end else ""
    cost = with_interval(r, "cost", "cost_lo", "cost_hi")
    most = part.filter(pl.col("alpha").abs() <= abs(r["alpha"])).group_by("alpha")
    best = most.agg(pl.col("effect").abs().mean()).sort("effect")["alpha"][-1]
    less = "" if best == r["alpha"] else f" ({best:g} does more)"
    return f"{label(r)}: alpha {r['alpha']:g}{more}{less}; cost {cost}, effect {effects}"


def label(line: dict[str, Any]) -> str:
    """A method and its setting: dW lora."""
    return " ".join(filter(None, [method_name(line["variant"]), setting_of(line)]))


def report(table: pl.DataFrame, lines: pl.DataFrame, results: Sequence[RuleResult]) -> None:
    """Print every dose of every method, and how far each may go."""
    for part in grids(table, lines):
        console.print(part)
    for r in results:
        console.print(r.sentence, highlight=False)


def grids(table: pl.DataFrame, lines: pl.DataFrame) -> Iterator[Table]:
    """A printed table for each data set: doses, effect, cost."""
    first = lines.row(0, named=True)
    head = f"{first['dataset']}, {first['measure']}"
    for (dataset,), part in table.group_by("dataset", maintain_order=True):
        cells = [
            [
                label(r),
                r["alpha"],
                with_interval(r, "effect", "lo", "hi"),
                with_interval(r, "cost", "cost_lo", "cost_hi"),
                "largest" if r["largest"] else "below" if r["below"] else "",
            ]
            for r in part.sort(*METHOD, pl.col("alpha").abs()).iter_rows(named=True)
        ]
        heads = ("method", "alpha", "effect", head, "bound")
        yield grid(f"{dataset}: effect in nats on test items, and cost", heads, cells)


def bound_of(lines: pl.DataFrame, cfg: DoseOptions) -> float:
    """The bound of the measure that the figure shows, in its direction."""
    first = lines.row(0, named=True)
    return cfg.nats_at_most if first["measure"] == NATS else -cfg.points_at_most / 100


def say_chat(cfg: DoseOptions, table: pl.DataFrame) -> None:
    """The command that talks to the model at the largest dose of dW, where there is one."""
    taken = table.filter("largest", variant=DW).sort("effect", descending=True)
    for r in taken.head(1).iter_rows(named=True):
        pair = cfg.adapters / f"{r['family']}-s{cfg.seeds[0]}"
        say(f"wsrun chat --model {cfg.model} --adapters {pair} --alpha {r['alpha']:g}")
