"""What T6, T7 and T8 share: options, pairs of several families and seeds, parts, and one summary.

Each of them cuts every family's dW into parts (`Parts`), scores all of them in one sweep (`run`),
and writes one line per part (`summarise`, `write`): they differ in how they cut, and in the rule.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import (
    Delta,
    add,
    benjamini_hochberg,
    difference,
    effect_table,
    norm,
    null_percentile,
    seed_spread,
    spectrum_null,
    tensors_sha256,
)
from wscore.effect import SUMMARY_KEYS
from wsrun.adapters import FAMILIES, check_family, pair_deltas
from wsrun.console import console, grid, progress
from wsrun.executor import HOW, asked, check_how, finished, read_shard, run_shards
from wsrun.extract import PairDelta
from wsrun.items import Item, load_items
from wsrun.models import limit_threads, load_model
from wsrun.score import Variant, sweep
from wsrun.tables import check_writable, items_sha256, plain, provenance, write_table

SUM_TOLERANCE = 1e-5  # kept + rest against the whole, relative
PART = ("family", "variant", "k")
Pairs = dict[tuple[str, int], PairDelta]  # (family, seed) -> deltas


@dataclass(frozen=True)
class Options:
    """Options of every analysis of the parts of dW."""

    families: tuple[str, ...] = tuple(FAMILIES)
    """adapter families to analyse"""
    seeds: tuple[int, ...] = (0,)
    """whose adapters; several are pooled, and the spread between them is reported"""
    model: str = "data/organism"
    """model folder or hub name"""
    data: Path = Path("data/organism")
    """folder with claims.jsonl and dilemmas.jsonl"""
    adapters: Path = Path("data/organism/adapters")
    """folder with <family>-s<seed>/pos and /neg, trained on that model (t0_train writes one)"""
    dilemmas: int | None = 20
    """how many of the dilemmas to score, the first by dilemma_idx; None for all"""
    alphas: tuple[float, ...] = (1.0,)
    """doses, such as -1 1 2; the verdict is taken at `rule_alpha`"""
    rule_alpha: float = 1.0
    """dose of the verdict, of the null draws and of the figures"""
    nulls: int = 20
    """null deltas per family and seed: same singular values, random directions"""
    resamples: int = 2000
    """bootstrap resamples"""
    keep_at_least: float = 0.7
    """threshold of the rule on the kept part"""
    drop_at_most: float = 0.3
    """threshold of the rule on what is left without it"""
    behaviour: str = "honest"
    """name of the behaviour in the table"""
    out: Path = Path("artifacts/tables")
    """folder that receives the tables and figures"""
    parts: Path = Path("artifacts/parts")
    """folder of finished results: a stopped run, started again, goes on where it was"""
    shard: str | None = None
    """i/n: score only every n-th variant from the i-th, into `parts`, and write no table"""
    executor: Literal["local", "ray"] = "local"
    """ray: run the command as shards on several processes, GPUs or machines first"""
    workers: int | None = None
    """how many shards ray runs; None for one per GPU of its cluster, without --device cuda two"""
    dtype: str = "float32"
    """dtype of the model"""
    device: str = "cpu"
    """device of the model"""


def check(cfg: Options, what: str) -> None:
    """Refuse options that cannot work before anything is loaded; `what` names the script."""
    for family in cfg.families:
        check_family(family)
    several = {"--families": cfg.families, "--seeds": cfg.seeds, "--alphas": cfg.alphas}
    for name, values in several.items():
        if not values or len(set(values)) < len(values):
            asked = " ".join(map(str, values)) or "nothing"
            raise ValueError(f"{what}: {name} {asked} asked; name each one once, at least one")
    if cfg.resamples < 1:
        raise ValueError(f"{what}: --resamples {cfg.resamples} asked; it must be 1 or more")
    if cfg.rule_alpha not in cfg.alphas or cfg.rule_alpha == 0:
        raise ValueError(
            f"{what}: --rule-alpha {cfg.rule_alpha:g} must be one of --alphas and not 0"
        )
    if not all(isfinite(a) for a in cfg.alphas):
        raise ValueError(f"{what}: --alphas must be finite doses")
    if not 0 <= cfg.drop_at_most <= cfg.keep_at_least <= 1:
        raise ValueError(f"{what}: thresholds need 0 <= --drop-at-most <= --keep-at-least <= 1")
    if cfg.nulls < 0:
        raise ValueError(f"{what}: --nulls {cfg.nulls} asked; it must be 0 or more")
    check_how(cfg.shard, cfg.executor, cfg.workers)
    check_writable(cfg.out)
    check_writable(cfg.parts)


class Loaded(NamedTuple):
    """The model, and the evaluation items it is asked."""

    model: PreTrainedModel
    tok: PreTrainedTokenizerBase
    items: list[Item]


def share(cfg: Options) -> None:
    """With --executor ray, score every shard of this command; `run` then finds the results."""
    if cfg.executor == "ray":
        run_shards(cfg.parts, cfg.device, cfg.workers)


def load(cfg: Options) -> Loaded:
    """The test items and the model of the options."""
    items = load_items(cfg.data, "test", cfg.dilemmas)
    model, tok = load_model(cfg.model, cfg.dtype, cfg.device)
    limit_threads(model)
    return Loaded(model, tok, items)


def read_pairs(model: PreTrainedModel, cfg: Options) -> Pairs:
    """The proved deltas of every family and seed; raises ValueError for a folder misnamed."""
    pairs: Pairs = {}
    with progress("reading adapters", len(cfg.families) * len(cfg.seeds)) as step:
        for family in cfg.families:
            for seed in cfg.seeds:
                folder = cfg.adapters / f"{family}-s{seed}"
                pair = pairs[family, seed] = pair_deltas(model, folder)
                if pair.family != family:
                    raise ValueError(f"{str(folder)!r} holds {pair.family} adapters; rename it")
                step(folder.name)
    return pairs


class Parts:
    """Parts of one family's dW as variants, with what share of the whole each holds.

    energy = |part|^2 / |whole|^2, and parts_error = |kept + rest - whole| / |whole|, which stops
    the run above 1e-5. Facts are kept in `notes` under (family, variant, k, seed), for the summary.
    """

    def __init__(self, family: str, seed: int, whole: Mapping[str, Tensor], notes: dict) -> None:
        self.family, self.seed, self.whole, self.notes = family, seed, whole, notes
        self.size = norm(whole)

    def one(self, name: str, part: Delta, k: int | None = None, alphas=None, **facts) -> Variant:
        """A single part under its name; `facts` become columns of the summary."""
        facts["energy"] = (norm(part) / self.size) ** 2
        self.notes[self.family, name, k, self.seed] = facts
        return Variant(name, part, family=self.family, k=k, seed=self.seed, alphas=alphas)

    def pair(
        self, name: str, kept: Delta, rest: Delta, k: int | None = None, **facts
    ) -> Iterator[Variant]:
        """keep_<name> and drop_<name>, whose sum must be the whole."""
        error = norm(difference(add(kept, rest), self.whole, missing="zero")) / self.size
        if error > SUM_TOLERANCE:
            raise RuntimeError(f"{name} of {self.family}: kept + rest misses the whole by {error}")
        facts["parts_error"] = error
        yield self.one(f"keep_{name}", kept, k, **facts, keep_or_drop="keep")
        yield self.one(f"drop_{name}", rest, k, **facts, keep_or_drop="drop")

    def control(self, name: str, kept: Delta, k: int | None = None, **facts) -> Variant:
        """control_<name>: random directions with the kept part's own rank and norm, per tensor."""
        null = spectrum_null(kept, 1000 * self.seed + 999)
        return self.one(f"control_{name}", null, k, **facts, keep_or_drop="control")

    def nulls(self, cfg: Options, **facts) -> Iterator[Variant]:
        """Random deltas with the whole's singular values, at the dose of the rule."""
        for i in range(cfg.nulls):
            null = spectrum_null(self.whole, 1000 * self.seed + i)
            yield self.one(f"spectrum_null#{i:02d}", null, alphas=(cfg.rule_alpha,), **facts)


def run(
    cfg: Options, experiment: str, at: Loaded, variants: Iterable[Variant], runs: int
) -> pl.DataFrame | None:
    """Rows of all variants under a progress bar, None of a shard, which writes no table.

    `runs` is how many (variant, alpha) there are.
    """
    seeds = "seed" if len(cfg.seeds) == 1 else "seeds"
    console.print(
        f"{cfg.model}: {len(at.items)} items, {len(cfg.families)} families, "
        f"{len(cfg.seeds)} {seeds}, {runs} runs"
    )
    context = {"experiment": experiment, "model": cfg.model, "behaviour": cfg.behaviour}
    index, count = read_shard(cfg.shard) if cfg.shard else (0, 1)
    before = finished(cfg.parts)
    with progress("scoring", 1 + -(-runs // count)) as step:
        own = islice(variants, index, None, count)
        rows = sweep(*at, own, cfg.alphas, context=context, results=cfg.parts, progress=step)
    if cfg.shard:
        _say_finished(cfg, len(rows) // len(at.items) - 1, runs)
        return None
    if cfg.executor == "ray" and (late := finished(cfg.parts) - before):
        console.print(f"{late} results scored here: the workers differ in GPU, threads or versions")
    return rows


def _say_finished(cfg: Options, mine: int, runs: int) -> None:
    console.print(
        f"shard {cfg.shard}: {mine} of {runs} runs finished and kept in {cfg.parts}; when all "
        "shards are, run the command without --shard to write the table"
    )


def summarise(
    cfg: Options,
    rows: pl.DataFrame,
    notes: Mapping[tuple, Mapping[str, Any]],
    whole: str,
    absent: Mapping[tuple, Mapping[str, Any]] | None = None,
) -> pl.DataFrame:
    """One line per dataset, family, variant, k and alpha, seeds pooled.

    Beside the effect table: facts of the parts (numbers are means over seeds, parts_error the
    largest), spread between seeds and families, q, and null_percentile. Parts in `absent`, which a
    family does not have, get a line without numbers whose status says why.
    """
    table = effect_table(rows, SUMMARY_KEYS, full=whole, resamples=cfg.resamples)
    table = table.join(
        seed_spread(rows, full=whole).drop("seeds"),
        on=SUMMARY_KEYS,
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )
    table = benjamini_hochberg(null_percentile(table)).with_columns(status=pl.lit("scored"))
    facts = _facts(notes)
    if absent:
        groups = table.select(c for c in SUMMARY_KEYS if c not in PART).unique()
        empty = _facts(absent).join(groups, how="cross").with_columns(n=pl.lit(0, pl.Int64))
        table = pl.concat(
            [table, empty.select(c for c in empty.columns if c in table.columns)],
            how="diagonal_relaxed",
        )
        facts = pl.concat([facts, _facts(absent).drop("status")], how="diagonal_relaxed")
    table = table.join(facts, on=PART, how="left", nulls_equal=True, maintain_order="left")
    return table.sort(SUMMARY_KEYS)


def _facts(notes: Mapping[tuple, Mapping[str, Any]]) -> pl.DataFrame:
    """One line per (family, variant, k) with the facts of its seeds."""
    lines = [
        dict(zip((*PART, "of_seed"), key, strict=True)) | dict(facts)
        for key, facts in notes.items()
    ]
    table = pl.DataFrame(lines, infer_schema_length=None).cast({"k": pl.Int64})
    facts = [c for c in table.columns if c not in (*PART, "of_seed")]
    return table.group_by(PART, maintain_order=True).agg(
        pl.col(c).max()
        if c == "parts_error"
        else pl.col(c).mean()
        if table[c].dtype.is_float()
        else pl.col(c).first()
        for c in facts
    )


def spread_sentence(table: pl.DataFrame, variant: str, what: str) -> str:
    """Whether families differ more than the seeds of one family do, in the retained share."""
    lines = table.filter((pl.col("variant") == variant) & pl.col("retained").is_not_null())
    seeds, families, gap = (
        lines[c].cast(pl.Float64)
        for c in ("retained_seed_sd", "retained_family_sd", "retained_family_gap")
    )
    if seeds.drop_nulls().is_empty():
        return f"{what}: one seed, so the spread within a family is unknown; give --seeds 0 1 2"
    if families.drop_nulls().is_empty():
        return f"{what}: one family, so there is no spread between families"
    within = float((seeds.drop_nulls() ** 2).mean() ** 0.5)  # type: ignore[operator]
    between = float(families.drop_nulls()[0])
    more = "more" if between > within else "less"
    return (
        f"{what}: families differ {more} than seeds do (sd between families {between:.3f}, largest "
        f"gap {float(gap.drop_nulls()[0]):.3f}; sd within a family, over seeds, {within:.3f})"
    )


def held_sentence(table: pl.DataFrame, name: str, what: str, column: str = "energy") -> str:
    """How much of |dW|^2 a slice holds: one that is nearly all of dW locates little."""
    held = table.filter(pl.col("variant") == f"keep_{name}")[column].drop_nulls().sort()
    ends = dict.fromkeys(f"{100 * end:.0f} %" for end in (held[0], held[-1]))
    return f"{what}, {name} holds {' to '.join(ends)} of dW's squared norm"


def ratios(
    cfg: Options, table: pl.DataFrame, title: str, parts: Mapping[str, Sequence], heads: Sequence
) -> Table:
    """Retained shares, kept / removed: one line per part, {name: its cells}, a column a family."""
    shares = {
        (row["family"], row["variant"]): "n/a"
        if row["status"] != "scored"
        else "?"
        if row["retained"] is None
        else f"{row['retained']:.2f}"
        for row in table.iter_rows(named=True)
    }

    def cell(family: str, name: str) -> str | None:
        both = [shares.get((family, f"{part}_{name}")) for part in ("keep", "drop")]
        return " / ".join(map(str, both)) if all(both) else None

    lines = [[*cells, *(cell(f, name) for f in cfg.families)] for name, cells in parts.items()]
    return grid(title, [*heads, *cfg.families], lines)


def record(cfg: Options, at: Loaded, pairs: Pairs, **more: Any) -> dict[str, Any]:
    """The provenance of an analysis: options, base, items, and every dW.

    How it was run is left out, so that the tables of shards are those of one process, bit for bit.
    """
    options = {name: value for name, value in asdict(cfg).items() if name not in HOW}
    return provenance(
        plain(options),
        argv=asked(sys.argv),
        base=tensors_sha256(dict(at.model.named_parameters())),
        items=items_sha256(at.items),
        deltas={f"{f}-s{s}": tensors_sha256(p.dW) for (f, s), p in pairs.items()},
        **more,
    )


def write(
    cfg: Options, experiment: str, rows: pl.DataFrame, table: pl.DataFrame, made: Mapping
) -> Path:
    """Rows and summary as parquet under `out`; returns the path of the summary."""
    rows_path = write_table(rows, cfg.out / f"{experiment}.rows.parquet", dict(made))
    path = write_table(table, cfg.out / f"{experiment}.parquet", dict(made))
    console.print(f"summary table {path}, item rows {rows_path}")
    return path


def draw(figure: Callable[..., str], *args: Any, **more: Any) -> None:
    """Draw a figure beside its table, and say where it is, or why there is none."""
    console.print(figure(*args, **more), markup=False, highlight=False)
