"""Sample answers as people read them: a question, and below or beside it what is said at each dose.

Reads the table of experiments/samples.py. The base stands in it once, without a family.
"""

from collections.abc import Iterator, Mapping

import polars as pl
from rich.table import Table
from rich.text import Text as Line

from wsrun.report.document import Block, Grid, Heading, Text
from wsrun.report.sources import Source

CUT = " …"  # ends an answer that the limit cut
NONE = "(no answer)"
MARGIN = "log p(the question's reply that shows the behaviour) - log p(its other reply), in nats"
Row = Mapping[str, object]


def answer_tables(table: pl.DataFrame) -> Iterator[Line | Table]:
    """For a terminal: each question, below it a line per dose of each family, wrapped."""
    groups, scored = _groups(table), table["margin"].is_not_null().any()
    place = {group: i for i, group in enumerate(groups)}  # the base stands among the first's doses
    for _, part in table.group_by("dataset", "item", maintain_order=True):
        yield Line(f"\n{one_line(part['prompt'][0])}", "bold")
        grid = Table.grid(padding=(0, 1))
        for _ in range(2 + scored):
            grid.add_column(overflow="fold")
        rows = part.to_dicts()
        for r in sorted(rows, key=lambda r: (place.get((r["family"], r["seed"]), 0), r["alpha"])):
            margin = [_margin(r)] if scored else []
            cells = [dose(r, len(groups) > 1), *margin, said(r)]
            grid.add_row(*map(Line, cells))
        yield grid


def _groups(table: pl.DataFrame) -> list[tuple[str, int | None]]:
    """Every (family, seed) in the table's order; none for the base."""
    return list(dict.fromkeys(table.drop_nulls("family").select("family", "seed").rows()))


def dose(row: Row, named: bool = False) -> str:
    """base, or alpha 2; `named` also says whose."""
    if row["family"] is None:
        return "base"
    whose = f"{row['family']}-s{row['seed']} " if named else ""
    return f"{whose}alpha {row['alpha']:g}"


def said(row: Row) -> str:
    """The answer on one line, with an ellipsis where the limit cut it."""
    text = one_line(str(row["answer"])) or ("" if row["truncated"] else NONE)
    return (text + CUT * bool(row["truncated"])).strip()


def one_line(text: str) -> str:
    """The text on one line, a replacement character for what a terminal might obey."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def _margin(row: Row) -> str:
    return "" if row["margin"] is None else f"{row['margin']:+.1f}"


def answer_blocks(sources: Mapping[str, Source]) -> list[Block]:
    """The section of the page: per model, family and seed a line a question, a column a dose."""
    blocks: list[Block] = []
    for s in (s for s in sources.values() if s.script.kind == "answers"):
        for (model,), part in s.table.group_by("model", maintain_order=True):
            blocks += [_grid(part, str(model), *group) for group in _groups(part)]
        blocks = [Heading("What it says"), Text(_how(s)), *blocks]
    return blocks


def _grid(table: pl.DataFrame, model: str, family: str, seed: int | None) -> Grid:
    """Questions down, the doses of one family and seed across, the base among them."""
    own = (pl.col("family") == family) & pl.col("seed").eq_missing(pl.lit(seed, pl.Int64))
    rows = table.filter(pl.col("family").is_null() | own).sort("alpha").to_dicts()
    doses = {r["alpha"]: dose(r) for r in rows}
    prompts = dict.fromkeys((r["dataset"], r["item"], r["prompt"]) for r in rows)
    at = {(r["dataset"], r["item"], r["alpha"]): r for r in rows}
    lines = [
        [one_line(prompt), *(_cell(at.get((dataset, item, alpha))) for alpha in doses)]
        for dataset, item, prompt in prompts
    ]
    caption = (
        f"Model {model}, {family}, seed {seed}. alpha: the dose of dW.{CUT}: cut at the limit."
    )
    if table["margin"].is_not_null().any():
        caption += f" In brackets: {MARGIN}."
    return Grid(("question", *doses.values()), lines, caption, prose=True)


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    return said(row) + (f" [{_margin(row)}]" if row["margin"] is not None else "")


def _how(s: Source) -> str:
    """How the answers were had, from the provenance."""
    config = s.meta.get("config", {})
    facts = {
        "n": "prompts",
        "prompt_seed": "their seed",
        "max_new_tokens": "longest answer, tokens",
    }
    known = ", ".join(f"{words} {config[name]}" for name, words in facts.items() if name in config)
    return "Greedy answers to prompts that a seed drew from the test split; none was picked" + (
        f" ({known})." if known else "."
    )
