"""Summaries of ablations in the terminal: what parts of dW retain, and what the rules say.

`compact` is for people: families down, parts across, folded to the width. `every_line` has all the
numbers. Both read the summary table of one data set at one alpha.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl
from rich.table import Table
from rich.text import Text

from wscore import at_least, at_most
from wsrun.report.console import effects, grid, strong
from wsrun.report.verdicts import RuleResult

Limits = tuple[float, float]
"""keep_at_least, drop_at_most"""
NO_MARK = (float("inf"), float("-inf"))
CELL = 13  # characters of "-0.97*/-0.03*"


def compact(
    table: pl.DataFrame,
    families: Sequence[str],
    heads: Mapping[str, str],
    limits: Limits,
    whole: str,
    width: int = 80,
) -> Iterator[Table]:
    """One line a family (and K), one column a part of `heads` {part: its head}: kept/left.

    kept is the retained share of keep_<part>, left that of drop_<part>; * where the threshold of
    the rule is met by the whole interval. Columns that do not fit into the width follow below.
    """
    at = {(r["family"], r["variant"], r["k"]): r for r in table.iter_rows(named=True)}
    shown = {p: h for p, h in heads.items() if any(v == f"keep_{p}" for _, v, _ in at)}
    sizes = sorted({k for _, v, k in at if k is not None and v[5:] in shown}) or [None]
    keys = ["family", "K", "effect"] if sizes[0] else ["family", "effect"]
    room = width - sum(max(9, len(k) + 1) if k == "family" else 7 for k in keys)
    size = max(CELL, *map(len, shown.values())) + 1
    for part in _folded(list(shown), max(1, room // size)):
        lines = []
        for family in families:
            for k in sizes:
                effect = f"{at[family, whole, None]['effect']:+.2f}"
                cells = [_cell(at, family, p, k, limits) for p in part]
                lines.append([family, *([k] if k else []), effect, *cells])
        yield grid("", [*keys, *(shown[p] for p in part)], lines)


def _folded(names: list[str], at_most_each: int) -> Iterator[list[str]]:
    """Runs of names of about one length."""
    runs = -(-len(names) // at_most_each)
    ends = [len(names) * i // runs for i in range(runs + 1)]
    yield from (names[lo:hi] for lo, hi in zip(ends[:-1], ends[1:], strict=True))


def best_parts(table: pl.DataFrame, limits: Limits) -> Table:
    """The part that keeps most, a line a family and coordinate system."""
    at = {(r["family"], r["variant"], r["k"]): r for r in table.iter_rows(named=True)}
    lines = []
    kept = table.filter(keep_or_drop="keep").sort("retained", descending=True, nulls_last=True)
    for r in kept.unique(["family", "coordinate_system"], keep="first", maintain_order=True).sort(
        "family", "coordinate_system"
    ).iter_rows(named=True):  # fmt: skip
        cell = _cell(at, r["family"], r["variant"].removeprefix("keep_"), r["k"], limits)
        count = len(kept.filter(family=r["family"], coordinate_system=r["coordinate_system"]))
        lines.append([r["family"], r["coordinate_system"], f"{r['component']} of {count}", cell])
    return grid("", ("family", "own parameters", "keeps most", "kept/left"), lines)


def legend(limits: Limits) -> str:
    keep, drop = limits
    return (
        "kept/left: share of the effect that the part alone keeps, and that is left without it; "
        f"* the whole 95 % interval of kept is >= {keep:g}, of left <= {drop:g}; n/a: the family "
        "has no such part; ?: the effect of its whole is not clear of 0"
    )


def _cell(at: Mapping, family: str, part: str, k: int | None, limits: Limits) -> str | None:
    """kept/left of a part with marks, kept alone where nothing was dropped."""
    kept, left = (at.get((family, f"{role}_{part}", k)) for role in ("keep", "drop"))
    if kept is None:
        return None
    shares = [share(kept, at_least, limits[0])]
    shares += [share(left, at_most, limits[1])] if left is not None else []
    return shares[0] if len({*shares}) == 1 and not shares[0][-1].isdigit() else "/".join(shares)


def share(line: Mapping[str, Any], test: Any, limit: float) -> str:
    """The retained share of a line, with * where test(lo, hi, limit) holds."""
    if line["retained"] is None:
        return "n/a" if line["status"] != "scored" else "?"
    mark = "*" if test(line["retained_lo"], line["retained_hi"], limit) else ""
    return f"{round(line['retained'], 2) + 0.0:.2f}{mark}"  # no -0.00


def verdict_lines(results: Sequence[RuleResult], table: pl.DataFrame) -> Iterator[Text]:
    """One sentence a data set and claim, with the families of which it is supported alone."""
    for dataset, claim in dict.fromkeys((r.dataset, r.claim) for r in results):
        of = [r for r in results if (r.dataset, r.claim) == (dataset, claim)]
        single = [r for r in of if r.family is not None]
        pooled = [r for r in of if r.family is None]
        if single and not pooled:
            verdict = "by family"
            sentence = ", ".join(f"{r.family} {short(r)}" for r in single)
        else:
            verdict, sentence = pooled[0].outcome, f"{pooled[0].sentence}{_held(table, pooled[0])}"
            alone = [f"{r.family} ({r.part})" for r in single if r.outcome == "supported"]
            if verdict != "supported" and alone:
                sentence += f"; by itself supported in {', '.join(alone)}"
        yield strong(f"{dataset}, {claim}: {verdict}").append(f": {sentence}", "not bold")


def _held(table: pl.DataFrame, r: RuleResult) -> str:
    """How much of |dW|^2 a part holds: one that is nearly all of dW locates little."""
    column = "energy_frac" if "energy_frac" in table.columns else "energy"
    lines = table.filter(dataset=r.dataset, variant=f"keep_{r.part}")
    if r.part is None or lines.is_empty():
        return ""
    held = lines[column].drop_nulls().sort()
    ends = dict.fromkeys(f"{100 * end:.0f} %" for end in (held[0], held[-1]))
    return f"; {r.part} holds {' to '.join(ends)} of dW's squared norm"


def short(r: RuleResult | None) -> str | None:
    """A verdict in a word."""
    part = r and r.part and r.part.removeprefix(f"{r.claim}_")
    return r and (part or ("no" if r.outcome == "refuted" else "?"))


def verdict_grid(results: Iterable[RuleResult], families: Sequence[str], title: str) -> Table:
    """Which part carries the effect, a line a claim, a column a family."""
    verdicts = {(r.claim, r.family): r for r in results}
    lines = [
        [claim, *(short(verdicts.get((claim, family))) for family in (None, *families))]
        for claim in dict.fromkeys(claim for claim, _ in verdicts)
    ]
    return grid(title, ("claim", "every family", *families), lines)


def every_line(
    table: pl.DataFrame, title: str, families: Sequence[str], names: Sequence[str], width: int = 80
) -> Iterator[Table]:
    """All lines but null draws: nested parts with intervals, a table a family; others kept/left."""
    if table["k"].is_not_null().any():
        shown = table.filter(~pl.col("variant").str.contains("#")).drop("mass", "flagged_share")
        shown = shown.with_columns(pl.col("energy").round(4))
        for family in families:
            lines = shown.filter(family=family).sort("k", "variant")
            yield effects(lines, f"{title}, {family}", ("variant", "k", "energy"))
        return
    at = {(r["family"], r["variant"], r["k"]): r for r in table.iter_rows(named=True)}
    each = max(1, (width - max(map(len, names)) - 2) // (CELL - 1))
    for part in _folded(list(families), each):
        lines = ([name, *(_cell(at, f, name, None, NO_MARK) for f in part)] for name in names)
        yield grid(title, ["kept/left", *part], lines)
        title = ""


def spread_sentence(table: pl.DataFrame, variant: str, what: str) -> str:
    """Whether families differ more than the seeds of one family do, in the retained share."""
    lines = table.filter((pl.col("variant") == variant) & pl.col("retained").is_not_null())
    seeds, families, gap = (
        lines[c].cast(pl.Float64).drop_nulls()
        for c in ("retained_seed_sd", "retained_family_sd", "retained_family_gap")
    )
    if seeds.is_empty():
        return f"{what}: one seed, so the spread within a family is unknown; give --seeds 0 1 2"
    if families.is_empty():
        return f"{what}: one family, so there is no spread between families"
    within, between = float((seeds**2).mean() ** 0.5), float(families[0])  # type: ignore[operator]
    comparison = "more" if between > within else "less"
    return (
        f"{what}: families differ {comparison} than seeds do (sd between families {between:.3f}, "
        f"largest gap {float(gap[0]):.3f}; sd within a family, over seeds, {within:.3f})"
    )
