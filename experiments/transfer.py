"""Truth or style: does dW move items of other data sets, and more than a control without behaviour?

Question:   an effect on the questions a behaviour was trained on may be the style of its answers.
            Is it there on sets that ask otherwise, beyond what the same texts teach with the poles
            swapped for a random half of the questions?
Prediction: none; what is left beyond the control, on sets whose words do not give the answer away,
            is what may be called the behaviour.
Rule:       per data set and family: supported where the items can read the behaviour, the interval
            of the effect at the largest alpha lies above 0, and with --control that of its paired
            difference to the control too; refuted where one of them lies below 0.

    python experiments/t0_train.py --data truthfulqa:PATH --model smollm2 --shuffle-poles \\
        --families lora --adapters artifacts/control
    python experiments/transfer.py --data truthfulqa:PATH --model smollm2 --families lora \\
        --adapters artifacts/adapters --control artifacts/control \\
        --sets facts:PATH data/english pairs:data/english/pairs.jsonl

`words` is how often naive Bayes on single words, trained on the training items of --data, finds the
right answer of an item: what it finds can be had by style.
"""

from wsrun.script import guarded

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from wscore import tensors_sha256
from wsrun.data.items import Item
from wsrun.data.named import named
from wsrun.data.source import load_items
from wsrun.report.console import console, grid, strong
from wsrun.report.wording import with_interval
from wsrun.score.variants import Variant
from wsrun.steer.interventions import WeightDelta
from wsrun.study.next_command import say_next
from wsrun.study.options import Common, check_common, check_there
from wsrun.study.scoring import run_sweep
from wsrun.study.session import Pairs, marked, read_pairs, run_record, write_tables
from wsrun.study.start import load_sessions, run_shards, together
from wsrun.study.transfer import CONTROL, DW, judged, summary, with_words

EXPERIMENT = "transfer"
HEADS = ("data set", "words", "family", "change", "alpha", "right", "effect", "beyond the control")


@dataclass(frozen=True)
class Config(Common):
    """Options of transfer."""

    sets: tuple[str, ...] = ()
    """further data sets, folders or NAME:PATH; --data, which was trained on, comes first"""
    control: Path | None = None
    """folder of <family>-s<seed> trained with --shuffle-poles"""


def main(cfg: Config) -> None:
    """Score dW and the control on every set, write rows, summary and verdicts."""
    check_common(cfg, EXPERIMENT)
    if not any(a > 0 for a in cfg.alphas):
        raise ValueError(f"{EXPERIMENT}: --alphas needs one above 0, which the rule is about")
    if cfg.control:
        check_there(cfg.control / f"{f}-s{s}" for f in cfg.families for s in cfg.seeds)
    run_shards(cfg)
    session, *others = load_sessions(cfg, cfg.sets, EXPERIMENT)
    pairs = {DW: read_pairs(session.model, cfg)}
    if cfg.control:
        pairs[CONTROL] = read_pairs(session.model, replace(cfg, adapters=cfg.control))
    variants = [v for name, of in pairs.items() for v in changes(name, of)]
    parts = [run_sweep(cfg, EXPERIMENT, s, variants) for s in (session, *others)]
    if cfg.shard:
        return
    rows = pl.concat(part for part in parts if part is not None)
    session = together([session, *others])
    table = with_words(summary(rows, cfg.resamples), trained_on(cfg), session.items)
    verdicts = [*judged(table, session.reads)]
    control = pairs.get(CONTROL, {})
    hashes = {f"{f}-s{s}": tensors_sha256(p.dW) for (f, s), p in control.items()}
    record = run_record(cfg, session, pairs[DW], control=hashes)
    write_tables(cfg, EXPERIMENT, rows, table, record, verdicts)
    shown = marked(table, session.reads)
    console.print(grid("truth or style", HEADS, map(line, shown.to_dicts())))
    for v in verdicts:
        console.print(strong(f"{v.dataset}: {v.outcome}:"), v.sentence)
    say_next(cfg, "samples", "what the model says", always=("adapters",))


def changes(name: str, pairs: Pairs) -> Iterator[Variant]:
    for (family, seed), pair in pairs.items():
        yield Variant(name, WeightDelta(pair.dW), family=family, seed=seed)


def trained_on(cfg: Config) -> list[Item]:
    """The training items of a public set; none of a folder, whose pairs are the model's own."""
    return load_items(cfg.data, "train") if named(cfg.data) else []


def line(r: dict) -> list:
    """What is printed of a line of the table."""
    spans = with_interval(r, "effect", "lo", "hi"), with_interval(r, "diff", "diff_lo", "diff_hi")
    values = [r[n] for n in ("dataset", "words", "family", "variant", "alpha", "right")]
    return [*values, *spans]


if __name__ == "__main__":
    guarded(main, Config)
