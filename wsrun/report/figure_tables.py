"""What figures read of a table: checks of its lines, names in words, and facts for the caption.

Nothing here draws. Messages name the figure that refuses.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import polars as pl

from wsrun.report.wording import dataset_names

FAMILIES = {"lora": "LoRA", "dora": "DoRA", "pissa": "PiSSA", "delora": "DeLoRA"}
FAMILIES |= {"oft": "OFT", "boft": "BOFT", "ia3": "IA³"}
"""how families are written, in the order of panels; another one is drawn by its name, after them"""
SAME_RUN = ("model", "behaviour", "prompt_style")  # one value each within a figure
EFFECT = (
    "Effect: mean rise, under steering, of the log odds of the answer that shows the behaviour "
    "against the other answer. "
)
MEANING = f"{EFFECT}Effect kept: that of a part of the weight change over that of the whole. "
BARS = "Bars: 95 % cluster-bootstrap intervals (cluster: items of one subject). "
Words = Mapping[str, str]
P = ParamSpec("P")


def check_table(
    figure: str,
    table: pl.DataFrame,
    columns: Iterable[str] = (),
    single: Iterable[str] = (),
    what: str = "",
) -> None:
    """Refuse a table that lacks columns, has no lines, or several values where one is shown."""
    if lacking := [c for c in columns if c not in table.columns]:
        raise ValueError(f"{figure}: the table lacks {lacking}; pass a summary table")
    if table.is_empty():
        raise ValueError(f"{figure}: the table has no lines{what}; score first")
    for column in single:
        if column in table.columns and table[column].n_unique() > 1:
            values = table[column].unique().sort().to_list()
            raise ValueError(
                f"{figure}: shows one {column}, found {values}; filter the table first"
            )


def check_values(figure: str, values: pl.Series, known: Iterable[str]) -> None:
    """Refuse a value, other than null, that is not known."""
    if unknown := sorted(set(values.drop_nulls()) - set(known)):
        raise ValueError(
            f"{figure}: {values.name} must be {', '.join(known)} or null, got {unknown}"
        )


def lines_by(figure: str, table: pl.DataFrame, keys: Sequence[str]) -> dict[tuple, dict[str, Any]]:
    """{values of the keys: the line}; refuses two lines of one key."""
    if len(twice := table.filter(table.select(keys).is_duplicated())):
        raise ValueError(
            f"{figure}: several lines of {twice.select(keys).row(0)}; "
            "give k, or filter the table to one of them"
        )
    return {tuple(line[key] for key in keys): line for line in table.iter_rows(named=True)}


def each_dataset(
    figure: Callable[Concatenate[pl.DataFrame, str | Path, str, P], str],
) -> Callable[Concatenate[pl.DataFrame, str | Path, str, P], str]:
    """A figure per dataset; from a table of several, t.parquet gives t.claims.png and so on.

    The question that is its title names a data set whose items cannot read the behaviour.
    """

    @wraps(figure)
    def drawn(
        table: pl.DataFrame, path: str | Path, question: str, *args: P.args, **more: P.kwargs
    ) -> str:
        names = in_order(table["dataset"]) if "dataset" in table.columns else []
        marked = dataset_names(table)
        asked = {n: question + f" {marked[n]}" * (marked[n] != n) for n in names}
        if len(names) < 2:
            return figure(table, path, next(iter(asked.values()), question), *args, **more)
        paths = {n: Path(path).with_suffix(f".{n.replace('/', '-')}.parquet") for n in names}
        parts = {n: table.filter(dataset=n) for n in names}
        sentences = [figure(parts[n], paths[n], asked[n], *args, **more) for n in names]
        return "; ".join(dict.fromkeys(sentences))

    return drawn


def facts_of(table: pl.DataFrame) -> str:
    """What was measured, from those of its columns that the table has."""
    has, facts = set(table.columns), []
    table = table.filter(pl.col("n") > 0) if "n" in has else table  # 0: not scored
    names = dataset_names(table)
    for dataset in sorted(names):
        part = table.filter(pl.col("dataset") == dataset)
        size = f": {range_text(part['n'])} items" if "n" in has else ""
        size += f" in {range_text(part['clusters'])} clusters" if "clusters" in has else ""
        facts.append(f"Data set {names[dataset]}{size}. ")
    words = {"seeds": "Seeds", "alpha": "Dose alpha", "model": "Model", "behaviour": "Behaviour"}
    facts += [f"{word}: {range_text(table[c])}. " for c, word in words.items() if c in has]
    return "".join(facts)


def range_text(values: pl.Series) -> str:
    """48, or 48 to 60 where they differ."""
    distinct = values.drop_nulls().unique().sort().to_list() or ["unknown"]
    ends = dict.fromkeys(v if isinstance(v, str) else f"{v:g}" for v in (distinct[0], distinct[-1]))
    return " to ".join(ends)


def in_order(values: pl.Series, known: Iterable[str] = ()) -> list[str]:
    """The values, known ones first in their order, the others after them by name."""
    present = values.drop_nulls().unique().sort().to_list()
    return [v for v in known if v in present] + [v for v in present if v not in known]


def in_words(name: str, words: Words | None = FAMILIES) -> str:
    """The name as `words` write it, else with spaces for underscores."""
    return words[name] if words and name in words else name.replace("_", " ")


def limits_of(table: pl.DataFrame, columns: Iterable[str], room: float) -> tuple[float, float]:
    """A range that holds 0 and all values of the columns, and `room` of its width on both sides."""
    ends = [x for c in columns for x in table[c].drop_nulls()] + [0.0]
    margin = room * (max(ends) - min(ends) or 1.0)
    return min(ends) - margin, max(ends) + margin
