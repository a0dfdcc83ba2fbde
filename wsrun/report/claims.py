"""The rule of the benchmark, read off the joined table as sentences that carry their numbers.

dW beats a way where the interval of their paired difference excludes 0; `answers` says it of each
method, `duel` of each way. What the rules of the other scripts said is in verdicts.py.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from wsrun.report.joined import Joined
from wsrun.report.standings import span, winner
from wsrun.score.names import DW, setting_of

METHODS = {
    "prompt": "prompting",
    "activation": "activation steering",
    "synthetic": "constructed changes",
    "weights": "other changes of the weights",
}
ASIDE = ("neutral", "finetuned")  # a prompt that asks for nothing; what finetuned+dW starts from
OF_DW = {"beats": "loses to", "loses to": "beats"}  # the same seen from dW


def q_value(q: float | None) -> str:
    """0.012, or < 0.001; a dash where there is none."""
    return "-" if q is None else "< 0.001" if q < 0.001 else f"{q:.2g}"


def setting(line: Mapping[str, Any]) -> str:
    """What was chosen of a way: its setting, or family, its size and the dose."""
    size = None if line.get("k") is None else f"k = {line['k']}"
    of = [setting_of(line), size, f"alpha {line['alpha']:g}"]
    return ", ".join(filter(None, of))


def verb(line: Mapping[str, Any]) -> str:
    """What dW does to the way of a line: "beats", "loses to", "is not apart from"."""
    said = winner(line)
    return OF_DW.get(said, said)


def rivals(table: pl.DataFrame) -> pl.DataFrame:
    """The selected lines that dW competes with: ways of their own towards the same pole.

    Left out are dW and "dW_<family>", what is used together with it ("prompt+dW"), ASIDE, and ways
    named after the other pole ("-dW", "simple_neg") that went there on validation items.
    """
    way = pl.col("way")
    other = (way.str.starts_with("-") | way.str.ends_with("_neg")) & (pl.col("validation") < 0)
    no_rival = (
        (way == DW)
        | way.str.starts_with(f"{DW}_")
        | way.str.contains(f"+{DW}", literal=True)
        | way.is_in(ASIDE)
    )
    return table.filter(pl.col("role") == "selected", ~no_rival, ~other.fill_null(False))


def duel(line: Mapping[str, Any]) -> str:
    """One line of the benchmark by its rule."""
    q = q_value(line["diff_q"])
    q = f"q {q}" if q.startswith("<") else f"q = {q}"
    return (
        f"{line['dataset']}: dW {verb(line)} {line['way']} ({setting(line)}): {line['way']} minus "
        f"dW {span(line, 'diff', 'diff_lo', 'diff_hi')} nats, {q}"
    )


def answers(j: Joined) -> list[str]:
    """The benchmark in a few sentences: dW itself, then per method what it beats."""
    own = j.table.filter(
        pl.col("variant") == DW,
        pl.col("alpha") == j.reference[1],
        pl.col("family").eq_missing(pl.lit(j.reference[0], pl.String)),
    )
    said = [dW_itself(own)]
    table = rivals(j.table)
    for method, name in METHODS.items():
        lines = table.filter(method=method)
        if len(lines):
            said.append(f"Does dW beat {name}? {_against(lines)}")
        elif method in ("prompt", "activation"):
            said.append(f"Does dW beat {name}? Not answered: no table has a line of it.")
    return said


def dW_itself(own: pl.DataFrame) -> str:
    """The effect of the reference per data set, and whether it is one."""
    each = [f"{r['dataset']} {span(r, 'effect', 'lo', 'hi')}" for r in own.iter_rows(named=True)]
    flat = [r["dataset"] for r in own.iter_rows(named=True) if not (r["lo"] or 0) > 0]
    more = f"; not clear of 0 on {' and '.join(flat)}, where beating it says little" if flat else ""
    line = own.row(0, named=True)
    return f"dW ({setting(line)}) against the base, in nats: {', '.join(each)}{more}."


def _against(lines: pl.DataFrame) -> str:
    """Yes, no or in part; the counts per data set; the way that validation items put first."""
    verbs, counts = [verb(r) for r in lines.iter_rows(named=True)], []
    beaten = verbs.count("beats")
    short = "Yes" if beaten == len(verbs) else "No" if not beaten else "In part"
    for (dataset,), part in lines.group_by("dataset", maintain_order=True):
        found = [verb(r) for r in part.iter_rows(named=True)]
        others = [f"{v} {found.count(v)}" for v in dict.fromkeys(found) if v != "beats"]
        each = ", ".join([f"beats {found.count('beats')} of {len(found)} ways", *others])
        counts.append(f"on {dataset} it {each}")
    best = lines.filter(pl.col("validation") == pl.col("validation").max())
    first = "; ".join(duel(r) for r in best.iter_rows(named=True))
    said = f"{short}: {'; '.join(counts)}."
    return f"{said} Against the way that is best on validation items, {first}." if first else said


def controls(table: pl.DataFrame) -> list[str]:
    """Whether each control moves the behaviour, by the interval of its effect."""
    said = []
    for r in (
        table.filter(pl.col("variant") != "base", role="control")
        .sort("dataset", "method", "way", "variant", "k")
        .iter_rows(named=True)
    ):
        lo, hi = r["lo"], r["hi"]
        does = "has no interval" if lo is None or hi is None else "is not apart from the base"
        if lo is not None and hi is not None and (lo > 0 or hi < 0):
            does = "raises the behaviour" if lo > 0 else "lowers the behaviour"
        draws = f", {r['seeds']} draws" if r["seeds"] > 1 else ""
        said.append(
            f"{r['dataset']}: {r['way']} ({r['method']}, {setting(r)}{draws}) {does}: "
            f"{span(r, 'effect', 'lo', 'hi')} nats"
        )
    return said


def added(table: pl.DataFrame) -> list[str]:
    """What a line adds to the one it builds on, where its script says so (over, over_diff)."""
    if "over" not in table.columns:
        return []
    said = []
    for r in table.filter(pl.col("over").is_not_null()).iter_rows(named=True):
        lo, hi = r["over_lo"], r["over_hi"]
        clear = lo is not None and hi is not None and (lo > 0 or hi < 0)
        apart = "" if clear else ", not apart"
        said.append(
            f"{r['dataset']}: {r['way']} ({setting(r)}) minus {r['over']}: "
            f"{span(r, 'over_diff', 'over_lo', 'over_hi')} nats{apart}"
        )
    return said
