"""The rule of the benchmark, read off the joined table as sentences that carry their numbers.

dW beats a method where the interval of their paired difference excludes 0; `benchmark_answers` says
it of each kind of method, `comparison` of each line. What other rules say is in verdicts.py.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from wsrun.report.wording import (
    dataset_name,
    dataset_names,
    difference_to_dW,
    dW_against,
    q_text,
    setting_text,
    with_interval,
)
from wsrun.score.names import DW

# a prompt that asks for nothing, and what finetuned+dW starts from
EXCLUDED_METHODS = ("neutral", "finetuned")


def rivals(table: pl.DataFrame) -> pl.DataFrame:
    """The selected lines that dW competes with: other methods towards the same pole.

    Left out are dW and "dW_<family>", what is used together with it ("prompt+dW"),
    EXCLUDED_METHODS, and methods named after the other pole ("-dW", "simple_neg") that went there
    on validation items.
    """
    name = pl.col("method_name")
    negative = name.str.starts_with("-") | name.str.ends_with("_neg")
    other_pole = negative & (pl.col("validation") < 0)
    no_rival = (
        (name == DW)
        | name.str.starts_with(f"{DW}_")
        | name.str.contains(f"+{DW}", literal=True)
        | name.is_in(EXCLUDED_METHODS)
    )
    return table.filter(pl.col("role") == "selected", ~no_rival, ~other_pole.fill_null(False))


def comparison(line: Mapping[str, Any]) -> str:
    """One line of the benchmark by its rule."""
    q, name = q_text(line["diff_q"]), line["method_name"]
    q = f"q {q}" if q.startswith("<") else f"q = {q}"
    return (
        f"{dataset_name(line)}: dW {dW_against(line)} {name} ({setting_text(line)}): {name} "
        f"minus dW {difference_to_dW(line)} nats, {q}"
    )


def benchmark_answers(
    table: pl.DataFrame, reference: tuple[str | None, float], labels: Mapping[str, str]
) -> list[str]:
    """The benchmark in a few sentences: dW itself, then per kind of method whether dW beats it.

    labels: the column `method` -> its words, in the order of the sentences.
    """
    family, alpha = reference
    is_dW = pl.col("variant") == DW, pl.col("family").eq_missing(pl.lit(family, pl.String))
    sentences, table = [effect_of_dW(table.filter(*is_dW, alpha=alpha))], rivals(table)
    kinds = dict.fromkeys([*labels, *table["method"].unique(maintain_order=True)])
    lines = {kind: table.filter(method=kind) for kind in kinds}
    for kind, part in lines.items():
        if len(part):
            sentences.append(f"Does dW beat {labels.get(kind, kind)}? {_answer(part)}")
    if without := [labels[kind] for kind, part in lines.items() if part.is_empty()]:
        sentences.append(f"Not answered, as no table has a line of it: {', '.join(without)}.")
    return sentences


def effect_of_dW(own: pl.DataFrame) -> str:
    """The effect of the reference per data set, and whether it is one."""
    lines = own.rows(named=True)
    each = [f"{dataset_name(r)} {with_interval(r, 'effect', 'lo', 'hi')}" for r in lines]
    flat = [r["dataset"] for r in lines if not (r["lo"] or 0) > 0]
    caveat = (
        f"; not clear of 0 on {' and '.join(flat)}, where beating it says little" if flat else ""
    )
    return f"dW ({setting_text(lines[0])}) against the base, in nats: {', '.join(each)}{caveat}."


def _answer(lines: pl.DataFrame) -> str:
    """Yes, no or in part; counts per data set; the method that validation items put first."""
    verbs, counts = [dW_against(r) for r in lines.iter_rows(named=True)], []
    beaten = verbs.count("beats")
    short = "Yes" if beaten == len(verbs) else "No" if not beaten else "In part"
    names = dataset_names(lines)
    for (dataset,), part in lines.group_by("dataset", maintain_order=True):
        dataset_verbs = [dW_against(r) for r in part.iter_rows(named=True)]
        others = [
            f"{v} {dataset_verbs.count(v)}" for v in dict.fromkeys(dataset_verbs) if v != "beats"
        ]
        each = ", ".join(
            [f"beats {dataset_verbs.count('beats')} of {len(dataset_verbs)} methods", *others]
        )
        counts.append(f"on {names[str(dataset)]} it {each}")
    best = lines.filter(pl.col("validation") == pl.col("validation").max())
    first = "; ".join(comparison(r) for r in best.iter_rows(named=True))
    best_first = f" Against the method that is best on validation items, {first}." if first else ""
    return f"{short}: {'; '.join(counts)}.{best_first}"


def control_sentences(table: pl.DataFrame) -> list[str]:
    """Whether each control moves the behaviour, by the interval of its effect."""
    sentences = []
    for r in (
        table.filter(pl.col("variant") != "base", role="control")
        .sort("dataset", "method", "method_name", "variant", "k")
        .iter_rows(named=True)
    ):
        lo, hi = r["lo"], r["hi"]
        does = "is not distinguishable from the base"
        if lo is None or hi is None:
            does = "has no interval"
        elif lo > 0 or hi < 0:
            does = "raises the behaviour" if lo > 0 else "lowers the behaviour"
        draws = f", {r['seeds']} draws" if r["seeds"] > 1 else ""
        sentences.append(
            f"{dataset_name(r)}: {r['method_name']} ({r['method']}, {setting_text(r)}{draws}) "
            f"{does}: {with_interval(r, 'effect', 'lo', 'hi')} nats"
        )
    return sentences
