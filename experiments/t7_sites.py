"""Which layers and modules of dW carry the behaviour?

Question:   is there one layer, one module, or one side of the residual stream whose part of dW
            keeps the steering effect, and without which the effect is gone?
Prediction: no single layer or module does; the MLP carries more than attention.
Rule:       per partition (layers, thirds of the trained band, blocks, sides, modules): supported if
            one slice retains >= 0.7 and its removal leaves <= 0.3 in every family; refuted if
            several disjoint slices each retain >= 0.7 (distributed), or every slice clearly fails
            in some family; each comparison by its 95 % interval; else undetermined.

    python experiments/t7_sites.py
    python experiments/t7_sites.py --seeds 0 1 2 --no-cells

Every slice is kept alone (keep_*), removed (drop_*), and replaced by random directions of its own
rank and norm (control_*); a slice whose control keeps as much supports nothing. keep + drop is
checked against dW in the run. `cell_<layer>_<module>` is one module of one layer. Slices a family
does not have (IA3 adapts k, v and down only) get a line that says so. With 20 null deltas a family,
dW's own singular values in random directions, `null %` ranks an effect among theirs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl
from torch import Tensor

from wscore import (
    DeltaLike,
    Locus,
    Verdict,
    layers,
    omit,
    projections,
    reads_residual,
    scale,
    select,
    site,
    verdict,
    writes_residual,
)
from wscore.sites import Where
from wsrun.report import figures
from wsrun.report.console import console, grid, guarded
from wsrun.score.sweep import Variant
from wsrun.study.ablation import (
    Options,
    Parts,
    check,
    held_sentence,
    ratios,
    spread_sentence,
    summarise,
)
from wsrun.study.next_command import say_next
from wsrun.study.session import draw, load, read_pairs, record, run, share, write

EXPERIMENT = "t7_sites"
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PARTITIONS = ("layers", "thirds of the band", "blocks", "sides of the residual stream", "modules")
Deltas = Mapping[tuple[str, int], DeltaLike]  # (family, seed) -> dW
WORDS = {
    "early": "early third of the layers",
    "middle": "middle third",
    "late": "late third",
    "attention": "attention (q, k, v, o)",
    "mlp": "MLP (gate, up, down)",
    "writes": "writing side (o, down)",
    "reads": "reading side (all others)",
    "qkv": "q, k and v",
    "up_gate": "up and gate",
}
NOT_APPLICABLE = "not applicable: this family changes no such tensor"


@dataclass(frozen=True)
class Config(Options):
    """Options of T7."""

    cells: bool = True
    """score every module of every layer too, for the heat map"""


class Slice(NamedTuple):
    """A set of tensors by place, and the partition it is a part of ("" for none)."""

    name: str
    where: Where
    partition: str = ""
    layer: int | None = None
    module: str | None = None


def slices(names: Mapping[str, Tensor] | set[str], cells: bool) -> list[Slice]:
    """Every slice of a set of tensors, without regard to which family has them."""
    trained = sorted({site(name).layer for name in names})
    thirds = [trained[i * len(trained) // 3 : (i + 1) * len(trained) // 3] for i in range(3)]
    found = [Slice(f"layer_{n}", layers(n, n + 1), "layers") for n in trained]
    found += [
        Slice(name, layers(part[0], part[-1] + 1), "thirds of the band")
        for name, part in zip(("early", "middle", "late"), thirds, strict=True)
        if part
    ]
    found += [
        Slice("attention", lambda at: at.block == "self_attn", "blocks"),
        Slice("mlp", lambda at: at.block == "mlp", "blocks"),
        Slice("writes", writes_residual, "sides of the residual stream"),
        Slice("reads", reads_residual, "sides of the residual stream"),
        *(Slice(m, projections(m), "modules") for m in MODULES),
        Slice("qkv", projections("q_proj", "k_proj", "v_proj")),
        Slice("up_gate", projections("up_proj", "gate_proj")),
    ]
    if cells:
        found += [Slice(f"cell_{n}_{m}", _cell(n, m), "", n, m) for n in trained for m in MODULES]
    return found


def _cell(layer: int, module: str) -> Where:
    return lambda at: at.layer == layer and at.proj == module


def main(cfg: Config) -> None:
    """Read deltas, score every slice once, write rows, summary and figures, print the verdicts."""
    check(cfg, "t7")
    share(cfg)
    at = load(cfg)
    pairs = read_pairs(at.model, cfg)
    whole = {key: pair.dW for key, pair in pairs.items()}
    cuts = slices({name for d in whole.values() for name in d}, cfg.cells)
    notes: dict = {}
    runs = sum(cfg.nulls + len(cfg.alphas) * parts_of(cuts, d) for d in whole.values())
    rows = run(cfg, EXPERIMENT, at, variants(cfg, whole, cuts, notes), runs)
    if rows is None:  # a shard
        return
    table = summarise(cfg, rows, notes, "full", absent(whole, cuts))
    partitions = {p: [c.name for c in cuts if c.partition == p] for p in PARTITIONS}
    found = decide(cfg, table, partitions)
    said = [(*key, *v) for key, v in found.items()]
    path = write(cfg, EXPERIMENT, rows, table, record(cfg, at, pairs, verdicts=said))
    shown = table.filter(alpha=cfg.rule_alpha)
    names = [c.name for c in cuts if c.layer is None]
    report(cfg, shown, found, names)
    pictures(cfg, shown, path, names)
    say_next(cfg, "t8_coordinates", "the same question of directions")


def applies(cut: Slice, d: Mapping[str, Tensor]) -> bool:
    """Whether the delta has a tensor in the slice."""
    return any(cut.where(site(name)) for name in d)


def facts(cut: Slice) -> dict:
    """The columns that say which slice a line is about."""
    return {"slice": cut.name, "partition": cut.partition, "layer": cut.layer, "module": cut.module}


def parts_of(cuts: list[Slice], d: Mapping[str, Tensor]) -> int:
    """How many parts a delta has: itself, zero, and two or three per slice."""
    return 2 + sum(2 + (cut.layer is None) for cut in cuts if applies(cut, d))


def absent(whole: Deltas, cuts: list[Slice]) -> dict[tuple, dict]:
    """The lines of slices in which a family changes nothing."""
    return {
        (family, f"{part}_{cut.name}", None, seed): facts(cut)
        | {"keep_or_drop": part, "status": NOT_APPLICABLE}
        for (family, seed), d in whole.items()
        for cut in cuts
        for part in ("keep", "drop", "control")
        if not applies(cut, d) and (part != "control" or cut.layer is None)
    }


def variants(cfg: Config, whole: Deltas, cuts: list[Slice], notes: dict) -> Iterator[Variant]:
    """Every slice of every dW kept, dropped and replaced; what a family lacks is left out."""
    for key, d in whole.items():
        parts = Parts(*key, d, notes)
        yield parts.one("full", d)
        yield parts.one("zero", scale(0.0, d))
        for cut in cuts:
            if applies(cut, d):
                kept = select(d, cut.where)
                rest = omit(d, cut.where) if len(kept) < len(d) else scale(0.0, d)
                yield from parts.pair(cut.name, kept, rest, **facts(cut))
                if cut.layer is None:
                    yield parts.control(cut.name, kept, **facts(cut))
        yield from parts.nulls(cfg)


def decide(
    cfg: Config, table: pl.DataFrame, partitions: Mapping[str, list[str]]
) -> dict[tuple[str, str, str], Verdict]:
    """(dataset, partition, family, or "all" for every one) -> verdict at the rule's alpha."""
    found = {}
    for (dataset,), lines in table.filter(alpha=cfg.rule_alpha).group_by("dataset"):
        for partition, names in partitions.items():
            for family in (None, *cfg.families):
                families = (family,) if family else cfg.families
                rule = Locus(tuple(names), cfg.keep_at_least, cfg.drop_at_most, families)
                found[str(dataset), partition, family or "all"] = verdict(lines, rule)
    return dict(sorted(found.items()))


def report(
    cfg: Config, table: pl.DataFrame, found: Mapping[tuple, Verdict], slices: list[str]
) -> None:
    """Print what slices retain, the spread over seeds and families, and the verdicts."""
    for (dataset,), part in table.group_by("dataset", maintain_order=True):
        title = f"{dataset}, alpha = {cfg.rule_alpha:g}: share of the effect, slice kept / removed"
        console.print(ratios(cfg, part, title, {name: [name] for name in slices}, ["slice"]))
        console.print(spread_sentence(part, "keep_mlp", f"{dataset}, keep_mlp"))
        partitions = dict.fromkeys(p for d, p, _ in found if d == dataset)
        names = ("all", *cfg.families)
        lines = [[p, *(short(found[str(dataset), p, f]) for f in names)] for p in partitions]
        title = f"{dataset}: which single slice carries the effect (no: none does; ?: undetermined)"
        console.print(grid(title, ("slices", "every family", *cfg.families), lines))
        for p in partitions:
            v = found[str(dataset), p, "all"]
            console.print(f"[bold]{dataset}, {p}: {v.outcome}[/]: {v.sentence}")
            if v.part:
                console.print(held_sentence(part, v.part, str(dataset)))


def short(v: Verdict) -> str:
    """A verdict in a word."""
    return v.part or ("no" if v.outcome == "refuted" else "?")


def pictures(cfg: Config, table: pl.DataFrame, path: Path, slices: list[str]) -> None:
    """Per data set, the slices with intervals, and the layer x module map."""
    question = "Which slice of dW keeps the effect, and what is left without it?"
    words = {s: WORDS.get(s, s.replace("_", " ")) for s in slices}
    limits = cfg.keep_at_least, cfg.drop_at_most
    draw(figures.slices, table, path, question, words, whole="full", thresholds=limits)
    if cfg.cells:
        cells = table.filter(pl.col("layer").is_not_null() & (pl.col("keep_or_drop") == "keep"))
        question = "What does one module of one layer keep of the effect?"
        draw(figures.heat, cells, path.with_suffix(".cells.parquet"), question)


if __name__ == "__main__":
    guarded(main, Config)
