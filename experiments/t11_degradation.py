"""What does steering cost elsewhere, at the coefficients that were chosen for its effect?

Question:   where dW, one of its halves, a prompt, a vector or a constructed change moves the
            behaviour, what becomes of text and of questions that have nothing to do with it?
Prediction: at its chosen dose dW costs more than the prompt, and less than 0.1 nats a token and 5
            points of accuracy.
Rule:       a way costs on a measure where the 95 % interval of the paired change lies on the worse
            side of 0; its cost is bounded where the interval stays below --nats-at-most and
            --points-at-most. Neither, or both, can be true of a way.

    python experiments/t11_degradation.py
    python experiments/t11_degradation.py --match kl:0.1

dW, one adapter alone (tau_pos, -tau_neg) and the prompts are chosen on validation items as in T3;
where a table with a dW exists, it is compared. What t1, t5, t9, t10 and t12 chose on this model is
taken from where they left it (<out>/*.chosen, wsrun/chosen.py), with the very vectors and doses:
run those first. Perplexity is that of the texts in <data>/neutral.jsonl as replies to their
prompts, accuracy that on <data>/multiple_choice.jsonl: the right option must be the likeliest reply
(wsrun/quality.py). The organism's world consists of facts only: its texts say facts, of which it is
the surer the more honest it is, so honest steering may lower their perplexity, and steering towards
lies must raise it. What the behaviour itself does to them is read off the prompt of the same pole;
a cost beyond it is damage.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path

import polars as pl
from torch import Tensor

from wscore import entries_sha256, tensors_sha256
from wsrun.data.replies import NEUTRAL, load_neutral
from wsrun.report import curves, figures
from wsrun.report.console import console, grid, guarded, progress
from wsrun.report.standings import span
from wsrun.report.tables import items_sha256, read_table
from wsrun.score.capability import QUESTIONS, Quality, costs, load_questions
from wsrun.score.names import DW, line, setting_of
from wsrun.score.sweep import Variant
from wsrun.steer.prompts import OTHER_POLE, reaching, read_wordings
from wsrun.study.benchmark import (
    Options,
    at_dose,
    check,
    choose,
    compare,
    load_splits,
    of_poles,
    prompts,
    report_on,
)
from wsrun.study.controls import nothing, random_changes
from wsrun.study.next_command import say_next
from wsrun.study.selection import Chosen, OtherBase, load_chosen
from wsrun.study.session import Loaded, draw, read_pairs, record, share, write

EXPERIMENT = "t11_degradation"
AGAINST = (f"-{DW}", *OTHER_POLE)


@dataclass(frozen=True)
class Config(Options):
    """Options of T11."""

    pos: str = "honest"
    """persona of personas.json whose wordings are the prompts towards the behaviour"""
    neg: str = "dishonest"
    """persona whose wordings are the prompts away from it"""
    nats_at_most: float = 0.1
    """a cost in text is bounded below this many nats a token"""
    points_at_most: float = 5.0
    """a cost in accuracy is bounded below this many percentage points"""


def main(cfg: Config) -> None:
    """Choose as elsewhere, measure effect and cost of what was chosen, print one table."""
    check(cfg, "t11")
    if cfg.nats_at_most <= 0 or cfg.points_at_most <= 0:
        raise ValueError("t11: --nats-at-most and --points-at-most must be above 0")
    share(cfg)
    texts = load_neutral(cfg.data / NEUTRAL, "test")
    questions = load_questions(cfg.data / QUESTIONS, "test")
    wordings = read_wordings(cfg.data, cfg.pos, cfg.neg)
    validation, test = load_splits(cfg)
    wordings = reaching(test.tok, [*validation.items, *test.items], wordings, "t11")
    others = chosen_elsewhere(cfg, tensors_sha256(dict(test.model.named_parameters())))
    pairs = read_pairs(test.model, cfg)
    candidates = [*of_poles(cfg, pairs), *prompts(wordings)]
    chosen = choose(cfg, EXPERIMENT, validation, candidates, AGAINST)
    if chosen is None:  # a shard
        return
    chosen |= others
    controls: Sequence[Variant] = [
        nothing(chosen),
        *random_changes(chosen[DW].variant, cfg.randoms),
    ]
    if cfg.match:
        controls = at_dose(cfg, test, controls)
    rows, table = report_on(cfg, EXPERIMENT, test, chosen, held=controls)
    quality = Quality(test.model, test.tok, texts, questions)
    spent, cost = measure(cfg, quality, chosen, controls)
    table = table.join(
        cost,
        on=["method", "variant", "family", "k", "alpha"],
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )
    hashes = {"texts": items_sha256(texts), "questions": items_sha256(questions)}
    made = record(cfg, test, pairs, **hashes)
    path = write(cfg, EXPERIMENT, pl.concat([rows, spent]), table, made)
    draw(picture, table, path)
    report(cfg, table, chosen, test)


def picture(table: pl.DataFrame, path: Path) -> str:
    """The cost of every way: nats a token of neutral text, and points of accuracy."""
    one = table.filter(dataset=table["dataset"][0]).drop_nulls("nll").sort("effect")
    lines = [
        {
            "panel": panel,
            "label": curves.label_of(r),
            "role": r["role"],
            **dict(zip(("value", "lo", "hi"), (r[m], r[f"{m}_lo"], r[f"{m}_hi"]), strict=True)),
        }
        for r in one.iter_rows(named=True)
        for panel, m in (("text, nats a token", "nll"), ("accuracy", "accuracy"))
    ]
    caption = (
        "Change against the base, on neutral texts (above 0 is worse) and on multiple choice "
        f"(below 0 is worse), at the doses chosen on validation items. {figures.BARS}Ways in the "
        f"order of their effect on {one['dataset'][0]}. Model: {one['model'][0]}. "
    )
    question = "What does steering cost elsewhere?"
    return curves.ranges(pl.DataFrame(lines), path, question, "change", caption)


def chosen_elsewhere(cfg: Config, base: str) -> dict[str, Chosen]:
    """{way and script: what that script chose}, of the vectors and changes kept beside the tables.

    What two scripts chose alike is taken once, and what was chosen on other base weights, as by a
    replication, is left out. Raises ValueError where one line of the table would be two different
    changes.
    """
    found: dict[str, Chosen] = {}
    lines: dict[tuple, tuple[str, dict[str, str]]] = {}
    for folder in sorted(cfg.out.glob("*.chosen")):
        try:
            kept = load_chosen(folder, base)
        except OtherBase as error:
            console.print(f"left out: {error}", markup=False)
            continue
        for c, told in kept:
            way = f"{told['way']} of {c.source}"
            asked = {"match": cfg.match, "behaviour": cfg.behaviour}
            if odd := {k: told[k] for k, v in asked.items() if told[k] != v}:
                console.print(f"left out: {way}, chosen under {odd}, not {asked}", markup=False)
                continue
            is_of = entries_sha256(tensors_of(c.variant))
            first, known = lines.setdefault(line(c.variant), (way, is_of))
            if known != is_of:
                raise ValueError(
                    f"t11: {first} and {way} have one name and dose, and are different changes; "
                    "run both scripts again with the same options"
                )
            if first == way:
                found[way] = c
    if not found:
        console.print(
            f"{cfg.out} has no chosen vectors or constructed changes; for their costs run "
            "t1_activation.py, t9_synthetic.py or t10_svd_steering.py before, with the same --out"
        )
    return found


def tensors_of(v: Variant) -> Mapping[str, Tensor]:
    """The vectors by layer, or the change."""
    return {str(n): x for n, x in (v.vectors or {}).items()} or v.change()


def measure(
    cfg: Config, quality: Quality, chosen: Mapping[str, Chosen], controls: Sequence[Variant]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(rows, costs) of what was chosen and of the controls."""
    variants = [v for c in chosen.values() for v in (c.variant, *c.others)] + [*controls]
    context = {"experiment": EXPERIMENT, "model": cfg.model, "behaviour": cfg.behaviour}
    with progress("measuring costs", len(variants)) as done:
        rows = quality.rows(variants, context, done)
    dW = chosen[DW].variant
    reference = {"variant": DW, "family": dW.family, "alpha": (dW.alphas or cfg.alphas)[0]}
    return rows, costs(compare(rows, reference, resamples=cfg.resamples), rows)


def report(cfg: Config, table: pl.DataFrame, chosen: Mapping[str, Chosen], at: Loaded) -> None:
    """Print effect and cost beside one another, the rule's sentences, and where doses differ."""
    base = table.row(0, named=True)
    datasets = sorted(set(table["dataset"]))
    keys = ["way", "variant", "family", "k", "alpha"]
    effects, costs = [], []
    for _, part in table.sort("effect", descending=True, nulls_last=True).group_by(
        keys, maintain_order=True
    ):
        r = part.row(0, named=True)
        own = [r["way"], setting_of(r), r["alpha"]]
        effect = {p["dataset"]: span(p, "effect", "lo", "hi") for p in part.iter_rows(named=True)}
        measures = (("nll", "nll_lo", "nll_hi"), ("accuracy", "accuracy_lo", "accuracy_hi"))
        effects.append([*own, *(effect[d] for d in datasets)])
        costs.append([*own, *(span(r, *m) for m in measures)])
    heads = ("way", "chosen", "alpha")
    console.print(grid("effect on held-out items, nats", (*heads, *datasets), effects))
    changes = (*heads, "text, nats a token", "accuracy")
    console.print(grid("change of neutral text and of multiple choice", changes, costs))
    console.print(
        f"base: perplexity {exp(base['nll_base']):.3g} of neutral text, accuracy "
        f"{base['accuracy_base']:.3f}; changes of nats a token (above 0 is worse) and of accuracy"
    )
    for r in table.filter(
        pl.col("role").is_in(["selected", "flagged"]), dataset=datasets[0]
    ).iter_rows(named=True):
        console.print(f"{r['way']}: {verdict(cfg, r)}")
    for sentence in agreement(cfg, chosen):
        console.print(sentence)
    say_next(cfg, "t14_monitor", "whether a fine-tune moved along dW")


def verdict(cfg: Config, r: Mapping) -> str:
    """The rule on one line, for both measures."""
    points = cfg.points_at_most / 100
    said = []
    for what, worse, bound in (
        ("text", (r["nll_lo"], r["nll_hi"]), cfg.nats_at_most),
        ("accuracy", (neg(r["accuracy_hi"]), neg(r["accuracy_lo"])), points),
    ):
        lo, hi = worse
        if lo is None or hi is None:
            said.append(f"no interval for {what}")
            continue
        costs = "costs" if lo > 0 else "gains" if hi < 0 else "no clear cost"
        unit = "nats a token" if what == "text" else "of accuracy"
        bounded = f"below {bound:g} {unit}" if hi < bound else f"not bounded by {bound:g} {unit}"
        said.append(f"{what}: {costs}, {bounded}")
    return "; ".join(said)


def neg(x: float | None) -> float | None:
    """-x, None for None."""
    return None if x is None else -x


def agreement(cfg: Config, chosen: Mapping[str, Chosen]) -> Iterator[str]:
    """For every other table of the benchmark here, whether its dW is the one measured here."""
    own = chosen[DW].variant
    dose = own.family, (own.alphas or cfg.alphas)[0]
    for path in sorted(cfg.out.glob("t*.parquet")):
        if path.stem.startswith(EXPERIMENT) or path.stem.endswith(".rows"):
            continue
        table, _ = read_table(path)
        if not {"role", "variant", "family", "alpha", "model"} <= set(table.columns):
            continue
        theirs = table.filter(role="selected", variant=DW, model=cfg.model)
        for other in theirs.select("family", "alpha").unique().sort("family", "alpha").rows():
            same = "the same dW" if other == dose else f"another dW, {other[0]} at {other[1]:g}"
            yield f"{path.name}: {same}"


if __name__ == "__main__":
    guarded(main, Config)
