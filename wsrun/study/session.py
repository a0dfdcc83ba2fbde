"""What an experiment holds and leaves: model and items, adapter pairs, its record, its tables."""

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import tensors_sha256
from wsrun.adapters.base import BaseWarning
from wsrun.adapters.extract import PairDelta, pair_deltas
from wsrun.adapters.folders import read_folder
from wsrun.data.items import Item, items_sha256
from wsrun.report.console import console, progress
from wsrun.report.tables import provenance, write_table
from wsrun.report.verdicts import RuleResult, verdict_table
from wsrun.study.options import Common
from wsrun.study.shards import HOW, asked

Pairs = dict[tuple[str, int], PairDelta]  # (family, seed) -> deltas


class Session(NamedTuple):
    """The model, the evaluation items that it is asked, and what these can read on it."""

    model: PreTrainedModel
    tok: PreTrainedTokenizerBase
    items: list[Item]
    reads: Mapping[str, str] = {}
    """{data set: what the instrument check found}, a key of `READS`"""


def read_pairs(model: PreTrainedModel, cfg: Common) -> Pairs:
    """The proved deltas of every family and seed; raises ValueError for a folder misnamed.

    Says what is not known of an adapter's base.
    """
    pairs: Pairs = {}
    with (
        warnings.catch_warnings(),
        progress("reading adapters", len(cfg.families) * len(cfg.seeds)) as step,
    ):
        warnings.simplefilter("ignore", BaseWarning)  # said below, once, and kept in the record
        for family in cfg.families:
            for seed in cfg.seeds:
                folder = cfg.adapters / f"{family}-s{seed}"
                pair = pairs[family, seed] = read_folder(folder, partial(pair_deltas, model))
                if pair.family != family:
                    raise ValueError(f"{str(folder)!r} holds {pair.family} adapters; rename it")
                step(folder.name)
    for name, notes in notes_of(pairs).items():
        console.print(f"note on {name}: {'; '.join(notes)}")
    return pairs


def notes_of(pairs: Pairs) -> dict[str, list[str]]:
    """Of each pair with something unknown about its base, what that is."""
    return {f"{family}-s{seed}": [*p.notes] for (family, seed), p in pairs.items() if p.notes}


def run_record(cfg: Common, session: Session, pairs: Pairs, **more: Any) -> dict[str, Any]:
    """The provenance of a run: options, base, items, and every dW.

    How it was run is left out, so that the tables of shards are those of one process, bit for bit.
    """
    options = {name: value for name, value in asdict(cfg).items() if name not in HOW}
    return provenance(
        options,
        argv=asked(sys.argv),
        base=tensors_sha256(dict(session.model.named_parameters())),
        items=items_sha256(session.items),
        deltas={f"{f}-s{s}": tensors_sha256(p.dW) for (f, s), p in pairs.items()},
        reads=dict(session.reads),
        **({"notes": notes} if (notes := notes_of(pairs)) else {}),
        **more,
    )


def write_tables(
    cfg: Common,
    experiment: str,
    rows: pl.DataFrame,
    summary: pl.DataFrame,
    record: dict[str, Any],
    verdicts: Iterable[RuleResult] | None = None,
) -> Path:
    """Rows, summary and verdicts as parquet under `out`; returns the path of the summary.

    Column `reads` of the summary says what the items of a line can read on this model.
    """
    summary = marked(summary, record["reads"])
    files = {f"{experiment}.rows": rows, experiment: summary}
    if verdicts is not None:
        files[f"{experiment}.verdicts"] = verdict_table(verdicts)
    paths = [write_table(t, cfg.out / f"{name}.parquet", record) for name, t in files.items()]
    what = "item rows", "summary table", "verdicts"
    written = (f"{w} {path}" for w, path in zip(what, paths, strict=False))
    console.print(", ".join(written), highlight=False)
    return paths[1]


def save_figure(figure: Callable[..., str], *args: Any, **more: Any) -> None:
    """Draw a figure beside its table, and say where it is, or why there is none."""
    console.print(figure(*args, **more), highlight=False)


def marked(table: pl.DataFrame, reads: Mapping[str, str]) -> pl.DataFrame:
    """With the column `reads`: what the data set of a line can read, null where not checked.

    Tables that are written or drawn have it, so that pages and figures can say it.
    """
    found = pl.Series("reads", [reads.get(d) for d in table["dataset"]], pl.String)
    return table.with_columns(found)
