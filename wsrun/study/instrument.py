"""Instrument check: can these items read this behaviour on this model, only a bias, or nothing?

Four facts of each data set, with 95 % intervals over clusters:

    mass       p(first choice) + p(second choice) at the answer; replies have none
    accuracy   share of items with aligned margin > 0, without any steering
    poles      aligned margin under the best prompt of the one pole minus that of the other
    hint       aligned margin where the prompt gives the right answer away, minus the wrong one

The best prompts are chosen on one half of the clusters and measured on the other, both ways. `bias`
is the poles' mean difference in the margin itself: a shift towards Yes whatever is asked.

Rule, per data set. The reading works where mass >= 0.5, of replies where the interval of hint lies
above 0. It reads the behaviour where it works and tells the poles apart: the interval of accuracy
excludes 0.5, or that of the poles 0 with 0.1 nats between them or more; only a bias where it works
and only `bias` is so; else nothing. Less than 0.1 nats is a tenth of the odds: with many items its
interval excludes 0, and still no steering could be compared with it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import polars as pl
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore.stats.contrasts import contrast
from wscore.stats.effects import effect_table
from wsrun.data.items import Item
from wsrun.report.wording import READS
from wsrun.score.sweep import sweep
from wsrun.score.variants import Variant
from wsrun.steer.interventions import SystemPrompt

MIN_MASS = 0.5
MIN_APART = 0.1  # nats
FEW = 50  # clusters: with fewer, intervals may be too wide to tell


class Check(NamedTuple):
    """One line a data set, and the verdict of each in a sentence."""

    table: pl.DataFrame
    sentences: list[str]

    def readable(self, dataset: str) -> bool:
        """Whether the items of a data set can read the behaviour."""
        return self.table.filter(dataset=dataset)["reads"].item() == "behaviour"


def check(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    items: Sequence[Item],
    personas: Sequence[Sequence[str]] = ((), ()),
    *,
    resamples: int = 2000,
    cache_dir: str | Path | None = None,
    done: Callable[[str], None] = lambda note: None,
) -> Check:
    """The instrument check of `items`; personas: system prompts towards the behaviour, and away.

    Without personas the poles are left out, and accuracy alone must tell them apart. Scores are
    kept and found in cache_dir; `done` is called after each of `passes(personas)` scorings.
    """

    def scores(asked: Sequence[Item], *variants: Variant) -> pl.DataFrame:
        return sweep(model, tok, asked, variants, [1.0], cache_dir=cache_dir, progress=done)

    prompts = {
        sign: [Variant(f"{sign}{n}", SystemPrompt(p), (1.0,)) for n, p in enumerate(side)]
        for sign, side in zip("+-", personas, strict=True)
    }
    rows = scores(items, *prompts["+"], *prompts["-"])
    base = rows.filter(alpha=0.0)
    hinted = [
        scores([_with_hint(i, sign) for i in items]).with_columns(
            variant=pl.lit(f"hint{sign}"), alpha=pl.lit(1.0)
        )
        for sign in "+-"
    ]
    prompted = {sign: [rows.filter(variant=v.name) for v in side] for sign, side in prompts.items()}
    poles = [_crossed(base, prompted[sign], sign) for sign in "+-"] if all(personas) else []
    facts = [
        _accuracy(base, resamples),
        _distance(base, hinted, "hint", resamples),
    ]
    if poles:
        facts += [_distance(base, poles, "poles", resamples), _bias(base, poles, resamples)]
    table = base.group_by("dataset", maintain_order=True).agg(
        n=pl.len(), clusters=pl.col("cluster").n_unique(), mass=pl.col("mass").mean()
    )
    for fact in facts:
        table = table.join(fact, on="dataset", maintain_order="left")
    lines = [r | {"reads": verdict_of(r)} for r in table.iter_rows(named=True)]
    return Check(pl.DataFrame(lines, infer_schema_length=None), [sentence(r) for r in lines])


def passes(personas: Sequence[Sequence[str]]) -> int:
    """How many times the items are scored: as they are, with each prompt, with either hint."""
    return 3 + sum(map(len, personas))


def verdict_of(line: Mapping[str, object]) -> str:
    """A key of `READS`, by the rule above."""
    if not _works(line):
        return "nothing"
    if _excludes(line, "accuracy", 0.5) or _apart(line, "poles"):
        return "behaviour"
    return "bias" if _apart(line, "bias") else "nothing"


def _apart(line: Mapping[str, object], name: str) -> bool:
    return _excludes(line, name, 0.0) and abs(float(line[name])) >= MIN_APART  # type: ignore


def _works(line: Mapping[str, object]) -> bool:
    mass, hint_lo = line["mass"], line["hint_lo"]
    return (hint_lo or 0) > 0 if mass is None else mass >= MIN_MASS  # type: ignore[operator]


def _excludes(line: Mapping[str, object], name: str, value: float) -> bool:
    lo, hi = line.get(f"{name}_lo"), line.get(f"{name}_hi")
    return lo is not None and hi is not None and not lo <= value <= hi  # type: ignore[operator]


def sentence(line: Mapping[str, object]) -> str:
    """What the check says of a data set."""
    mass = "" if line["mass"] is None else f"mass {line['mass']:.2f}, "
    facts = f"{mass}accuracy {_span(line, 'accuracy', '.2f')}"
    if line.get("poles") is not None:
        facts += f", best prompts of the two poles {_span(line, 'poles', '+.2f')} nats apart"
    few = line["reads"] != "behaviour" and _works(line) and int(line["clusters"]) < FEW  # type: ignore
    more = f"; {line['clusters']} clusters are few, more may tell" if few else ""
    reads = READS[str(line["reads"])]
    return f"{line['dataset']}: these items {reads} on this model ({facts}){more}"


def _span(line: Mapping[str, object], name: str, form: str) -> str:
    value, lo, hi = (line[f"{name}{end}"] for end in ("", "_lo", "_hi"))
    return f"{value:{form}}" + ("" if lo is None else f" [{lo:{form}}, {hi:{form}}]")


def _with_hint(item: Item, sign: str) -> Item:
    """The item with its answer given away in the last turn: the right one (+) or the wrong one."""
    pos, neg = item.replies or item.choices[:: item.label]
    *before, last = item.turns
    text = f"{last['content']}\n(The answer is: {pos if sign == '+' else neg})"
    return replace(item, turns=(*before, {**last, "content": text}))


def _crossed(base: pl.DataFrame, frames: Sequence[pl.DataFrame], sign: str) -> pl.DataFrame:
    """Of each half of the clusters, the scores under the prompt that is best on the other half."""
    halves, ends = [], 1 if sign == "+" else -1
    key = ["dataset", "item"]
    folds = [f.with_columns(half=_half(f), gain=_gain(f, base, key)) for f in frames]
    for half in (0, 1):
        best = pl.concat(
            f.filter(pl.col("half") != half)
            .group_by("dataset")
            .agg(score=ends * pl.col("gain").mean(), which=pl.lit(n))
            for n, f in enumerate(folds)
        )
        best = best.sort("score", "which", descending=[True, False]).unique("dataset", keep="first")
        halves += [
            f.filter(half=half).join(best.filter(which=n), on="dataset", how="semi")
            for n, f in enumerate(folds)
        ]
    return pl.concat(halves).drop("half", "gain").with_columns(variant=pl.lit(sign))


def _half(frame: pl.DataFrame) -> pl.Series:
    return pl.Series([sha256(c.encode()).digest()[0] % 2 for c in frame["cluster"]])


def _gain(frame: pl.DataFrame, base: pl.DataFrame, key: list[str]) -> pl.Series:
    both = frame.join(base.select(*key, base="margin"), on=key, maintain_order="left")
    return both["label"] * (both["margin"] - both["base"])


def _accuracy(base: pl.DataFrame, resamples: int) -> pl.DataFrame:
    """Accuracy with its interval, as an effect on a value that is 1 where an item is right."""
    right = (pl.col("margin") * pl.col("label") > 0).cast(pl.Float64)
    rows = pl.concat(
        [
            base.with_columns(margin=pl.lit(0.0), label=pl.lit(1, base["label"].dtype)),
            base.with_columns(
                margin=right, label=pl.lit(1, base["label"].dtype), alpha=pl.lit(1.0)
            ),
        ]
    )
    return _renamed(effect_table(rows, ("dataset",), resamples=resamples), "effect", "accuracy")


def _distance(
    base: pl.DataFrame, poles: Sequence[pl.DataFrame], name: str, resamples: int
) -> pl.DataFrame:
    """The difference of two poles' effects, with its interval."""
    rows = pl.concat([base, *poles])
    pos, neg = (p["variant"][0] for p in poles)
    table = contrast(rows, {"variant": neg}, ("dataset", "variant"), resamples=resamples)
    return _renamed(table.filter(variant=pos), "diff", name)


def _bias(base: pl.DataFrame, poles: Sequence[pl.DataFrame], resamples: int) -> pl.DataFrame:
    """The distance of the margins themselves: every label counts as +1."""
    same = [f.with_columns(label=pl.lit(1, f["label"].dtype)) for f in (base, *poles)]
    return _distance(same[0], same[1:], "bias", resamples)


def _renamed(table: pl.DataFrame, value: str, name: str) -> pl.DataFrame:
    ends = ("lo", "hi") if value == "effect" else (f"{value}_lo", f"{value}_hi")
    spans = dict(zip((f"{name}_lo", f"{name}_hi"), ends, strict=True))
    return table.select("dataset", pl.col(value).alias(name), **spans)
