"""Verdict tables: what the rules of one run say, in one shape, and as sentences.

verdict_table(results) -> <experiment>.verdicts.parquet -> read_verdicts(path) is the same results.
The controls of T13 have a table of their own, with the truth beside each outcome (`planted`).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import polars as pl

from wscore.files import reason
from wscore.stats.spread import wilson
from wscore.stats.verdicts import Outcome
from wsrun.report.columns import check_columns
from wsrun.report.tables import read_table
from wsrun.report.wording import dataset_names

OUTCOMES = get_args(Outcome)
NAMED_BY_CLAIM = {"shared core": "shared"}  # the part of a claim about one part only


class RuleResult(NamedTuple):
    """What a rule says of a claim on a data set.

    family None: of every family. part: the part of dW that the sentence names, None for none.
    """

    dataset: str
    claim: str
    family: str | None
    outcome: str
    sentence: str
    part: str | None = None


def verdict_table(results: Iterable[RuleResult]) -> pl.DataFrame:
    """One line a result; raises ValueError for an outcome that is none of OUTCOMES."""
    schema = dict.fromkeys(RuleResult._fields, pl.String)
    table = pl.DataFrame(list(results), schema=schema, orient="row")
    if unknown := sorted(set(table["outcome"]) - {*OUTCOMES}, key=str):
        raise ValueError(f"verdict_table: outcome must be {', '.join(OUTCOMES)}, got {unknown}")
    return table


def read_verdicts(path: str | Path) -> list[RuleResult]:
    """The results in a table that `verdict_table` made; raises ValueError for another one."""
    return results_of(read_table(path)[0], Path(path))


def results_of(table: pl.DataFrame, path: Path) -> list[RuleResult]:
    """The results in a table that was read from `path`."""
    filled = ("dataset", "claim", "outcome", "sentence")
    table = check_columns(table, path, RuleResult._fields, filled, least=0)
    if unknown := sorted(set(table["outcome"]) - {*OUTCOMES}):
        raise ValueError(
            f"report: {str(path)!r} has the outcome {reason(repr(unknown[0]), 80)}, none of "
            f"{', '.join(OUTCOMES)}; run its script again, or remove it"
        )
    return list(map(RuleResult._make, table.select(RuleResult._fields).rows()))


def claim_sentences(results: Iterable[RuleResult], table: pl.DataFrame) -> list[str]:
    """A sentence for each claim and data set: the verdict over families, then what single ones say.

    table: the summary that the rules read; the retained shares of the part that a claim names
    stand beside the verdict. Families are listed by outcome; where there is neither a verdict over
    all of them nor a part, each has its own sentence.
    """
    claims: dict[tuple[str, str], list[RuleResult]] = {}
    names = dataset_names(table)
    for r in results:
        claims.setdefault((names.get(r.dataset, r.dataset), r.claim), []).append(r)
    sentences = []
    for about, claim_results in claims.items():
        pooled = [r for r in claim_results if r.family is None]
        single = [r for r in claim_results if r.family is not None]
        if pooled or any(r.part for r in single):
            texts = [f": {r.outcome}: {r.sentence}{_retained(r, table)}" for r in pooled]
            sentences.append(", ".join(about) + "".join(texts) + _by_family(single, table))
        else:
            sentences += [
                f"{', '.join(about)}, {r.family}: {r.outcome}: {r.sentence}" for r in single
            ]
    return sentences


def headline(results: Iterable[RuleResult], names: Mapping[str, str] = {}) -> str:
    """supported: claims/shared core; refuted: ...: the verdicts over all families in one line.

    names: data set -> its words.
    """
    pooled = [r for r in results if r.family is None]
    each = []
    for outcome in OUTCOMES:
        of = [r for r in pooled if r.outcome == outcome]
        texts = [f"{names.get(r.dataset, r.dataset)}/{r.claim}" for r in of]
        each += [f"{outcome}: {', '.join(texts)}"] if of else []
    return "; ".join(each)


def _by_family(results: Sequence[RuleResult], table: pl.DataFrame) -> str:
    """; by family: supported in ia3 (attention: 0.98 kept, 0.02 left), refuted in lora, dora."""
    each = []
    for outcome in OUTCOMES:
        of = [r for r in results if r.outcome == outcome]
        names = ", ".join(f"{r.family}{_retained(r, table)}" for r in of)
        each += [f"{outcome} in {names}"] if of else []
    return f"; by family: {', '.join(each)}" if each else ""


def _retained(r: RuleResult, table: pl.DataFrame) -> str:
    """The shares of the part that a verdict names: lowest to highest over families and sizes."""
    name = r.part or NAMED_BY_CLAIM.get(r.claim)
    if not name or "retained" not in table.columns:
        return ""
    lines, each = table.filter(dataset=r.dataset), []
    if r.family is not None:
        lines = lines.filter(family=r.family)
    for part, word in (("keep", "kept"), ("drop", "left")):
        shares = lines.filter(variant=f"{part}_{name}")["retained"].drop_nulls().sort()
        ends = dict.fromkeys(f"{shares[i]:.2f}" for i in (0, -1)) if len(shares) else ()
        each += [f"{' to '.join(ends)} {word}"] if ends else []
    return f" ({name}: {', '.join(each)})" if each else ""


def planted(table: pl.DataFrame) -> list[str]:
    """Detections and false positives of the rules on planted truths, with Wilson's interval.

    Of several data sets the sentences of each, after its name.
    """
    names = table["dataset"].unique(maintain_order=True) if "dataset" in table.columns else ()
    if len(names) > 1:
        return [f"{name}: {s}" for name in names for s in planted(table.filter(dataset=name))]
    sentences = []
    for expected, what in (
        ("supported", "true claims that were found"),
        ("not supported", "false claims that were supported"),
    ):
        lines = table.filter(expected=expected)
        if n := len(lines):
            agreed = int(lines["agree"].sum())
            count = agreed if expected == "supported" else n - agreed
            lo, hi = wilson(count / n, n)
            sentences.append(f"{what}: {count} of {n}, {count / n:.2f} [{lo:.2f}, {hi:.2f}]")
    for r in table.filter(agree=False).iter_rows(named=True):
        where = f"{r['plant']}, seed {r['seed']}, {r['rule']}"
        sentences.append(f"disagrees with the truth: {where}: {r['outcome']}; {r['sentence']}")
    return sentences
