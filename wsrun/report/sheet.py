"""The benchmark table as a reader sees it: cells, costs beside them, the sentences below it."""

from collections.abc import Collection, Mapping, Sequence

import polars as pl

from wsrun.report import claims
from wsrun.report.document import Block, Grid, Heading, Points
from wsrun.report.joined import Joined
from wsrun.report.same import LINE
from wsrun.report.standings import span
from wsrun.score.names import DW, setting_of

COSTS = ("nll", "perplexity", "accuracy")
WORDS = {"nll": "text, nats a token", "accuracy": "accuracy elsewhere", "kl": "KL, nats"}
WORDS |= {"perplexity": "perplexity", "dose_norm": "norm of the dose"}
HEADS = ("data set", "way", "chosen", "method", "alpha", "effect, nats", "q", "minus dW, nats")
HEADS += ("q", "dW, by the rule", "bias", "discrim.", "mass", "flagged")


def benchmark(at: tuple[str, str], j: Joined, costly: pl.DataFrame | None) -> list[Block]:
    """The table of one model and behaviour, the sentences of the rule, and the controls.

    costly: the summary table of t11, None without it.
    """
    table = j.table.sort("dataset", "role", "effect", descending=[False, True, True])
    extra = [c for c in ("kl", "dose_norm") if c in table.columns]
    if (found := costs(at, costly)) is not None:
        table = table.join(found, on=LINE, how="left", nulls_equal=True, maintain_order="left")
        extra += COSTS
    rivals = claims.rivals(table)
    beside = set(rivals.select("dataset", *LINE).rows())
    lines = [line(r, extra, beside) for r in table.iter_rows(named=True)]
    own = [i for i, r in enumerate(table.iter_rows(named=True)) if is_reference(r, j)]
    items = table.group_by("dataset", maintain_order=True).first()
    sizes = ", ".join(
        f"{r['dataset']} {r['n']} items in {r['clusters']} clusters"
        for r in items.iter_rows(named=True)
    )
    caption = (
        f"Model {at[0]}, behaviour {at[1]}; {sizes}. effect: mean rise of the log odds of the "
        "answer that shows the behaviour, against the base. Brackets: 95 % cluster-bootstrap "
        "intervals. q: Benjamini-Hochberg over the whole table. The rule is told from dW. "
        "mass: probability on Yes and No. Set off: the dW that all are measured against."
    )
    duels = [claims.duel(r) for r in rivals.iter_rows(named=True)]
    return [
        Heading(f"Benchmark: {at[0]}, {at[1]}"),
        Grid((*HEADS, *(WORDS.get(c, c) for c in extra), "from"), lines, caption, own),
        Heading("dW against every way, by the rule", 3),
        Points(duels or ["No way but dW was selected in these tables."]),
        Heading("Controls", 3),
        Points(claims.controls(table) or ["The tables hold no controls."]),
    ]


def is_reference(r: Mapping, j: Joined) -> bool:
    return r["variant"] == DW and (r["family"], r["alpha"]) == j.reference


def line(r: Mapping, extra: Sequence[str], rivals: Collection[tuple]) -> list[str]:
    """The cells of one line; the rule is told of rivals only."""
    rule = claims.verb(r) if tuple(r[c] for c in ("dataset", *LINE)) in rivals else ""
    chosen = setting_of(r) or ""
    return [
        r["dataset"],
        r["way"] + (" (control)" if r["role"] == "control" else ""),
        chosen + ("" if r["k"] is None else f" k = {r['k']}"),
        r["method"],
        f"{r['alpha']:g}",
        span(r, "effect", "lo", "hi"),
        claims.q_value(r["q"]),
        span(r, "diff", "diff_lo", "diff_hi"),
        claims.q_value(r["diff_q"]),
        rule,
        *(number(r[c]) for c in ("bias", "discrimination", "mass", "flagged_share")),
        *(cost(r, c) for c in extra),
        r["source"] or "",
    ]


def number(value: object) -> str:
    """Two digits after the point, a dash for none."""
    if isinstance(value, float):
        return f"{round(value, 2) + 0.0:.2f}"
    return "-" if value is None else str(value)


def cost(r: Mapping, column: str) -> str:
    """A value with its interval, where it has one, to three digits after the point."""
    value, ends = r[column], [r.get(f"{column}_{end}") for end in ("lo", "hi")]
    if value is None:
        return "-"
    sign = "+" if f"{column}_lo" in r else ""
    interval = "" if None in ends else f" [{ends[0]:+.3f}, {ends[1]:+.3f}]"
    return f"{value:{sign}.3f}{interval}"


def costs(at: tuple[str, str], costly: pl.DataFrame | None) -> pl.DataFrame | None:
    """What t11 measured of each line of a model beside its effect; None without it."""
    if costly is None:
        return None
    table = costly.filter(model=at[0], behaviour=at[1])
    ends = [f"{c}_{end}" for c in ("nll", "accuracy") for end in ("lo", "hi")]
    if table.is_empty() or not {*LINE, *COSTS, *ends} <= set(table.columns):
        return None
    return table.select(*LINE, *COSTS, *ends).unique(LINE, maintain_order=True)


def cost_grid(table: pl.DataFrame) -> Grid:
    """The lines of t11 with their costs."""
    lines = [
        [r["way"], claims.setting(r), *(cost(r, c) for c in COSTS)]
        for r in table.unique(LINE, maintain_order=True).iter_rows(named=True)
    ]
    caption = "Change against the base: nats a token of neutral texts, share of right answers."
    return Grid(("way", "chosen", *(WORDS[c] for c in COSTS)), lines, caption)
