"""Transfer: effects on several data sets beside a control, and what words alone give away there."""

from collections.abc import Iterator, Mapping, Sequence

import polars as pl

from wscore.stats.contrasts import contrast
from wsrun.data.items import Item
from wsrun.data.surface import word_accuracy
from wsrun.report.verdicts import RuleResult
from wsrun.report.wording import with_interval
from wsrun.score.readings import PER_TOKEN
from wsrun.study.training import with_right

DW, CONTROL = "dW", "control"
CLAIM = "dW moves items it was not trained on"
DIFF = ("diff", "diff_lo", "diff_hi", "diff_p")
BY = ("dataset", "variant", "family", "alpha")


def summary(rows: pl.DataFrame, resamples: int) -> pl.DataFrame:
    """Effects, the share answered right, and dW's paired difference to the control.

    Seeds are pooled. The difference is null for the control itself, and where there is none.
    """
    base, parts = rows.filter(variant="base"), []
    changed = rows.filter(pl.col("variant") != "base")
    for _, part in changed.group_by("family", "alpha", maintain_order=True):
        both = part["variant"].n_unique() > 1
        of = {"variant": CONTROL if both else DW}
        table = contrast(pl.concat([base, part]), of, BY, resamples=resamples)
        shown = (pl.col("variant") == DW) & both
        parts.append(table.with_columns(pl.when(shown).then(pl.col(*DIFF)).name.keep()))
    return with_right(pl.concat(parts), rows, BY).sort("dataset", maintain_order=True)


def with_words(table: pl.DataFrame, train: Sequence[Item], test: Sequence[Item]) -> pl.DataFrame:
    """The table with column `words`: how often naive Bayes on `train` is right on a data set."""
    names = dict.fromkeys(i.dataset for i in test) if train else ()
    right = {d: word_accuracy(train, [i for i in test if i.dataset == d]) for d in names}
    found = [right.get(d.removesuffix(PER_TOKEN)) for d in table["dataset"]]
    return table.with_columns(words=pl.Series(found, dtype=pl.Float64))


def judged(table: pl.DataFrame, reads: Mapping[str, str]) -> Iterator[RuleResult]:
    """Per data set and family, at the largest alpha, on items that can read the behaviour.

    Supported where the intervals of the effect and, with a control, of the difference to it lie
    above 0; refuted where one of them lies below 0.
    """
    of_dW = table.filter(variant=DW)
    for r in of_dW.filter(pl.col("alpha") == of_dW["alpha"].max()).iter_rows(named=True):
        spans = [(r["lo"], r["hi"])] + [(r["diff_lo"], r["diff_hi"])] * (r["diff"] is not None)
        known = [(lo, hi) for lo, hi in spans if lo is not None]
        outcome = "undetermined"
        if reads.get(r["dataset"]) == "behaviour" and len(known) == len(spans):
            outcome = "supported" if all(lo > 0 for lo, _ in known) else outcome
            outcome = "refuted" if any(hi < 0 for _, hi in known) else outcome
        sentence = (
            f"{r['family']} at alpha {r['alpha']:g}: {with_interval(r, 'effect', 'lo', 'hi')} nats"
        )
        if r["diff"] is not None:
            sentence += f", {with_interval(r, 'diff', 'diff_lo', 'diff_hi')} beyond the control"
        if reads.get(r["dataset"]) != "behaviour":
            sentence += "; these items cannot read the behaviour on this model"
        yield RuleResult(r["dataset"], CLAIM, r["family"], outcome, sentence)
