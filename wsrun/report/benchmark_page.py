"""The joined benchmark as a reader sees it: cells, costs beside them, the sentences below it."""

from collections.abc import Collection, Mapping, Sequence

import polars as pl

from wsrun.report import costs, sentences
from wsrun.report.document import Block, Grid, Heading, Points
from wsrun.report.row_identity import LINE
from wsrun.report.wording import (
    dataset_name,
    difference_to_dW,
    dW_against,
    number_text,
    q_text,
    with_interval,
)
from wsrun.score.names import DW, setting_of

DOSE_WORDS = {"kl": "KL, nats", "dose_norm": "norm of the dose"}  # of --match-dose
HEADS = ("data set", "method name", "chosen", "method", "alpha", "effect, nats", "q")
HEADS += ("minus dW, nats", "q", "dW, by the rule", "bias", "discrim.", "mass", "flagged")


def benchmark_blocks(
    key: tuple[str, str],
    joined: pl.DataFrame,
    reference: tuple[str | None, float],
    costly: pl.DataFrame | None,
) -> list[Block]:
    """The table of one (model, behaviour), the sentences of the rule, and the controls.

    joined, reference: as of `sources.Joined`. costly: the summary of T11, None without it.
    """
    table = joined.sort("dataset", "role", "effect", descending=[False, True, True])
    extra = [c for c in DOSE_WORDS if c in table.columns]
    if (cost_table := costs.costs_of(key, costly)) is not None:
        table = table.join(cost_table, on=LINE, how="left", nulls_equal=True, maintain_order="left")
        extra += costs.COSTS
    rivals = sentences.rivals(table)
    keys = set(rivals.select("dataset", *LINE).rows())
    lines = [_cells(r, extra, keys) for r in table.iter_rows(named=True)]
    reference_lines = [
        i for i, r in enumerate(table.iter_rows(named=True)) if is_reference(r, reference)
    ]
    sizes = ", ".join(
        f"{r['dataset']} {r['n']} items in {r['clusters']} clusters"
        for r in table.group_by("dataset", maintain_order=True).first().iter_rows(named=True)
    )
    caption = (
        f"Model {key[0]}, behaviour {key[1]}; {sizes}. effect: mean rise of the log odds of the "
        "answer that shows the behaviour, against the base. Brackets: 95 % cluster-bootstrap "
        "intervals. q: Benjamini-Hochberg over the whole table. The rule is told from dW. "
        "mass: probability on Yes and No. Set off: the dW that all are measured against."
    )
    comparisons = [sentences.comparison(r) for r in rivals.iter_rows(named=True)]
    words = DOSE_WORDS | costs.WORDS
    return [
        Heading(f"Benchmark: {key[0]}, {key[1]}"),
        Grid((*HEADS, *(words[c] for c in extra), "from"), lines, caption, reference_lines),
        Heading("dW against every method, by the rule", 3),
        Points(comparisons or ["No method but dW was selected in these tables."]),
        Heading("Controls", 3),
        Points(sentences.control_sentences(table) or ["The tables hold no controls."]),
    ]


def is_reference(line: Mapping, reference: tuple[str | None, float]) -> bool:
    """Whether a line is the dW that all others are measured against."""
    return line["variant"] == DW and (line["family"], line["alpha"]) == reference


def _cells(r: Mapping, extra: Sequence[str], rivals: Collection[tuple]) -> list[str]:
    """The cells of one line; the rule is told of rivals only."""
    rule = dW_against(r) if tuple(r[c] for c in ("dataset", *LINE)) in rivals else ""
    size = "" if r["k"] is None else f" k = {r['k']}"
    return [
        dataset_name(r),
        r["method_name"] + (" (control)" if r["role"] == "control" else ""),
        (setting_of(r) or "") + size,
        r["method"],
        f"{r['alpha']:g}",
        with_interval(r, "effect", "lo", "hi"),
        q_text(r["q"]),
        difference_to_dW(r),
        q_text(r["diff_q"]),
        rule,
        *(number_text(r[c]) for c in ("bias", "discrimination", "mass", "flagged_share")),
        *(costs.cost_text(r, c) for c in extra),
        r["source"] or "",
    ]
