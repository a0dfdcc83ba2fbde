"""Which coordinates of dW carry the behaviour: singular directions, or the adapter's own?

Question:   is there one band of singular directions (of dW itself, or of the base weight), or one
            degree of freedom of the adapter family, whose part of dW keeps the steering effect, and
            without which the effect is gone?
Prediction: the top quarter of dW's own directions carries most of it; in the base's coordinates the
            effect lies in no single band.
Rule:       per coordinate system: supported if one component retains >= 0.7 and its removal leaves
            <= 0.3; refuted if several disjoint components each retain >= 0.7 (distributed), or
            every component clearly fails; each comparison by its 95 % interval; else undetermined.

    python experiments/t8_coordinates.py
    python experiments/t8_coordinates.py --seeds 0 1 2

own:   bands of dW = U S V^T, as shares of its NUMERICAL RANK (the difference of two rank-8 LoRAs
       has rank 16, and its top quarter is 4 directions), or of its energy.
base:  the block of dS = U0^T dW V0 in a band of the base weight's directions; blocks that join two
       bands are in every band's rest.
family: rank components (lora, pissa, delora), magnitude and direction (dora), lambda and direction
       (delora), the best rotation and what it leaves (oft, boft), attention and MLP gates (ia3).
Every component is kept (keep_*), removed (drop_*), and replaced by random directions of its own
rank and norm (control_*). keep + drop is checked against dW in the run. Singular value
decompositions of the base are computed once and kept on disk under the weights' hash.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl
from torch import Tensor

from wscore import (
    BOTTOM,
    MIDDLE,
    PARAMETERIZATION,
    SVD,
    TOP,
    Band,
    DeltaLike,
    Locus,
    Verdict,
    add,
    cached_spectra,
    crop,
    crop_rest,
    family_coordinates,
    scale,
    spectra,
    verdict,
)
from wscore import family as family_of
from wscore.spectrum import inside
from wsrun.adapters.extract import read_adapter, read_config
from wsrun.report import figures
from wsrun.report.console import console, grid, guarded, progress
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
from wsrun.study.session import Pairs, draw, load, read_pairs, record, run, share, write

EXPERIMENT = "t8_coordinates"
BANDS = {
    "top": TOP,
    "middle": MIDDLE,
    "bottom": BOTTOM,
    "energy50": Band(0, 0.5, "energy"),
    "energy90": Band(0, 0.9, "energy"),
}
WORDS = {
    "own": "bands of dW's own singular directions",
    "base": "bands of the base weight's directions",
    "rank": "rank components",
    "magnitude_direction": "magnitude, direction",
    "lambda_direction": "lambda, direction",
    "rotation": "best rotation, what it leaves",
    "gates": "attention gates, MLP gates",
}
LENSES: tuple[Literal["own"], Literal["base"]] = ("own", "base")
RANKS = ("lora", "pissa", "delora")  # families with rank components


@dataclass(frozen=True)
class Config(Options):
    """Options of T8."""

    cache: Path = Path("artifacts/cache")
    """folder for the singular value decompositions of the base"""


class Cut(NamedTuple):
    """One component of one coordinate system: the part of dW in it, and the rest."""

    system: str
    component: str
    kept: DeltaLike
    rest: DeltaLike
    size: str

    @property
    def name(self) -> str:
        return f"{self.system}_{self.component}"


def main(cfg: Config) -> None:
    """Read deltas, score every component once, write rows, summary and figure, print verdicts."""
    check(cfg, "t8")
    share(cfg)
    at = load(cfg)
    pairs = read_pairs(at.model, cfg)
    base = dict(at.model.named_parameters(remove_duplicate=False))
    touched = {n: base[n].detach() for n in base if any(n in p.dW for p in pairs.values())}
    with progress("singular directions of the base", len(touched)) as step:
        svds = cached_spectra(touched, cfg.cache, progress=step)
    notes: dict = {}
    sizes = [len(LENSES) * len(BANDS) + components(cfg.adapters / f"{f}-s{s}") for f, s in pairs]
    runs = sum(cfg.nulls + len(cfg.alphas) * (2 + 3 * size) for size in sizes)
    rows = run(cfg, EXPERIMENT, at, variants(cfg, pairs, touched, svds, notes), runs)
    if rows is None:  # a shard
        return
    table = summarise(cfg, rows, notes, "full").rename({"energy": "energy_frac"})
    found = decide(cfg, table)
    said = [(*key, *v) for key, v in found.items()]
    path = write(cfg, EXPERIMENT, rows, table, record(cfg, at, pairs, verdicts=said))
    shown = table.filter(alpha=cfg.rule_alpha)
    report(cfg, shown, found)
    picture(cfg, shown, path)
    say_next(cfg, "t13_planted", "these rules where the truth is known")


def picture(cfg: Config, table: pl.DataFrame, path: Path) -> None:
    """Retained share against energy, of the data sets on which some whole dW steers."""
    kept = table.filter(pl.col("keep_or_drop").is_not_null() & pl.col("retained").is_not_null())
    shown = table.filter(pl.col("dataset").is_in(kept["dataset"].unique().to_list()))
    if shown.is_empty():
        console.print("no figure: no effect of a whole dW is clear of 0")
        return
    question = "Does a part of dW keep more of the effect than its share of the squared norm?"
    limits = cfg.keep_at_least, cfg.drop_at_most
    draw(figures.scatter, shown, path, question, "coordinate_system", WORDS, limits)


def variants(
    cfg: Config, pairs: Pairs, base: Mapping[str, Tensor], svds: Mapping[str, SVD], notes: dict
) -> Iterator[Variant]:
    """Every component of every dW kept, dropped and replaced."""
    for (family, seed), pair in pairs.items():
        parts = Parts(family, seed, pair.dW, notes)
        kind: dict[str, Any] = {"parameterization_family": PARAMETERIZATION[family]}
        yield parts.one("full", pair.dW, **kind)
        yield parts.one("zero", scale(0.0, pair.dW), **kind)
        for cut in cuts(cfg, family, seed, pair.dW, base, svds):
            facts: dict[str, Any] = dict(kind, coordinate_system=cut.system)
            facts |= {"component": cut.component, "rank_or_group": cut.size}
            yield from parts.pair(cut.name, cut.kept, cut.rest, **facts)
            yield parts.control(cut.name, cut.kept, **facts)
        yield from parts.nulls(cfg, **kind)


def cuts(
    cfg: Config,
    family: str,
    seed: int,
    dW: DeltaLike,
    base: Mapping[str, Tensor],
    svds: Mapping[str, SVD],
) -> Iterator[Cut]:
    """The components of one dW in every coordinate system."""
    own = spectra(dW)
    for lens, of in zip(LENSES, (own, {n: svds[n] for n in dW}), strict=True):
        for name, band in BANDS.items():
            size = directions(band, of, "rank" if lens == "own" else "base directions")
            part, rest = (f(dW, band, lens, svds=of) for f in (crop, crop_rest))
            yield Cut(lens, name, part, rest, size)
    folder = cfg.adapters / f"{family}-s{seed}"
    pos, neg = (read_adapter(folder / side) for side in ("pos", "neg"))
    for system, components in family_coordinates(*pos, *neg, base).items():
        for name, part in components.items():
            others = [d for other, d in components.items() if other != name]
            size = f"1 of {len(components)} components"
            yield Cut(system, name, part, reduce(add, others), size)


def components(folder: Path) -> int:
    """How many components the family's own coordinates have."""
    configs = [read_config(folder / side) for side in ("pos", "neg")]
    ranks = max(c["r"] for c in configs) if family_of(configs[0]) in RANKS else 0
    return ranks + (0 if family_of(configs[0]) in ("lora", "pissa") else 2)


def directions(band: Band, svds: Mapping[str, SVD], of: str) -> str:
    """How many directions of how many a band takes: `4 of rank 16`, ranges where tensors differ."""
    taken = [int(inside(band, s.S).sum()) for s in svds.values()]
    return f"{span(taken)} of {of} {span([len(s.S) for s in svds.values()])}"


def span(counts: list[int]) -> str:
    """`4`, or `4-16` where the counts differ."""
    lo, hi = min(counts), max(counts)
    return str(lo) if lo == hi else f"{lo}-{hi}"


def decide(cfg: Config, table: pl.DataFrame) -> dict[tuple[str, str, str], Verdict]:
    """(dataset, coordinate system, family or "all") -> verdict at the rule's alpha."""
    found = {}
    parts = table.filter(alpha=cfg.rule_alpha, keep_or_drop="keep")
    systems = parts.select("coordinate_system", "family", "component").unique().sort(pl.all())
    for (dataset,), lines in table.filter(alpha=cfg.rule_alpha).group_by("dataset"):
        for (system, family), part in systems.group_by("coordinate_system", "family"):
            names = tuple(
                f"{system}_{c}" for c in part["component"].sort() if not c.startswith("energy")
            )
            rules = {family: (family,)} | ({"all": cfg.families} if system in LENSES else {})
            for name, families in rules.items():
                rule = Locus(names, cfg.keep_at_least, cfg.drop_at_most, families)
                found[str(dataset), str(system), str(name)] = verdict(lines, rule)
    return dict(sorted(found.items()))


def report(cfg: Config, table: pl.DataFrame, found: Mapping[tuple, Verdict]) -> None:
    """Print what components retain, the spread over seeds and families, and the verdicts."""
    named = table.filter(keep_or_drop="keep").select("coordinate_system", "component").unique()
    parts = {f"{s}_{c}": (s, c) for s, c in sorted(named.iter_rows(), key=order)}
    for (dataset,), part in table.group_by("dataset", maintain_order=True):
        title = f"{dataset}, alpha = {cfg.rule_alpha:g}: share of the effect, kept / removed"
        console.print(ratios(cfg, part, title, parts, ["coordinates", "component"]))
        console.print(spread_sentence(part, "keep_own_top", f"{dataset}, keep_own_top"))
        systems = dict.fromkeys(s for d, s, _ in found if d == dataset)
        names = ("all", *cfg.families)
        lines = [[s, *(short(found.get((str(dataset), s, f)), s) for f in names)] for s in systems]
        title = f"{dataset}: which single component carries the effect (no: none; ?: undetermined)"
        console.print(grid(title, ("coordinates", "every family", *cfg.families), lines))
        for lens in LENSES:
            v = found[str(dataset), lens, "all"]
            console.print(f"[bold]{dataset}, {lens} bands: {v.outcome}[/]: {v.sentence}")
            if v.part:
                console.print(held_sentence(part, v.part, str(dataset), "energy_frac"))
    sizes = table.filter(keep_or_drop="keep", coordinate_system="own", component="top")
    said = ", ".join(
        f"{f} {n}"
        for f, n in sizes.unique("family").sort("family")["family", "rank_or_group"].iter_rows()
    )
    console.print(f"the top quarter of dW's own directions, per tensor: {said}")


def order(part: tuple[str, str]) -> tuple:
    """own, base, then the others by name; bands as in BANDS, components by their number."""
    system, name = part
    number = name.rpartition("_")[2]
    place = list(BANDS).index(name) if name in BANDS else int(number) if number.isdigit() else 0
    return (LENSES.index(system) if system in LENSES else len(LENSES), system, place, name)


def short(v: Verdict | None, system: str) -> str | None:
    """A verdict in a word, None where the family has no such coordinates."""
    if v is None:
        return None
    named = v.part.removeprefix(f"{system}_") if v.part else None
    return named or ("no" if v.outcome == "refuted" else "?")


if __name__ == "__main__":
    guarded(main, Config)
