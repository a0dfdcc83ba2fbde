"""Planted adapters read with the lenses and the rules of T6, T7 and T8, and counted (T13)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import polars as pl

from wscore import Verdict, effect_table, null_percentile, select, verdict, wilson, writes_residual
from wscore.stats.schema import SUMMARY_KEYS
from wsrun.lenses.base import Cut, Deltas, LensInput
from wsrun.lenses.plants import PLANTS, Instance, Planted
from wsrun.lenses.registry import Claim, claims, cuts
from wsrun.lenses.weights import Base
from wsrun.score.variants import Variant
from wsrun.study.parts import Ablation, with_facts

Planting = Mapping[Instance, Sequence[Planted]]
"""instance -> its members"""
OUTPUTS = ("shared", "own", "random", "stacked")
PLACES = ("layers", "modules", "own_bands", "base_bands")
LENSES = (*OUTPUTS, *PLACES)


@dataclass
class Reading:
    """Adapters cut by some lenses; `method` tells its rows from those of other readings."""

    method: str
    whole: str
    lenses: tuple[str, ...]
    cuts: dict[LensInput, list[Cut]] = field(default_factory=dict)
    instances: dict[Instance, list[LensInput]] = field(default_factory=dict)
    pieces: dict[LensInput, Planted] = field(default_factory=dict)
    """whose plant and decoys are scored apart"""
    ablation: Ablation = field(default_factory=Ablation)

    def add(self, at: Instance, found: LensInput, cuts: Iterable[Cut]) -> None:
        self.instances.setdefault(at, []).append(found)
        self.cuts[found] = list(cuts)

    def variants(self, nulls: int, alpha: float = 1.0) -> Iterator[Variant]:
        """Every part of every adapter, and null deltas of each whole."""
        for at, adapter_cuts in self.cuts.items():
            yield self.ablation.whole(at, self.whole)
            if at in self.pieces:
                yield from self._pieces(at, self.pieces[at])
            for cut in adapter_cuts:
                yield from self.ablation.split(at, cut)
            yield from self.ablation.nulls(at, nulls, alpha)

    def _pieces(self, at: LensInput, piece: Planted) -> Iterator[Variant]:
        yield self.ablation.part(at, "plant", lambda: piece.core)
        if (beside := piece.decoys) is not None:
            yield self.ablation.part(at, "decoys", lambda: beside)

    def claims(self, at: Instance) -> list[Claim]:
        """The claims about an instance: of all its members together."""
        of = {x.family: self.cuts[x] for x in self.instances.get(at, [])}
        if not of or not self.lenses:
            return []
        return [c for c in claims(self.lenses, of, tuple(of)) if c.family is None]

    def summary(self, rows: pl.DataFrame, resamples: int) -> pl.DataFrame:
        """One line per family, variant and k, with shares of the whole and what the parts are."""
        of = rows.filter(pl.col("method").is_in(["base", self.method]))
        table = null_percentile(effect_table(of, full=self.whole, resamples=resamples))
        return with_facts(table, self.ablation, SUMMARY_KEYS)


def outputs(planted: Planting, K: tuple[int, ...], lenses: Iterable[str] = OUTPUTS) -> Reading:
    """T6 on the residual-writing tensors of instances that have members, by those of its lenses."""
    lenses = tuple(name for name in lenses if name in OUTPUTS)
    reading = Reading("outputs", "residual_full", lenses)
    for at, members in planted.items():
        if lenses and len(members) > 1:
            parts = [select(m.whole, writes_residual) for m in members]
            deltas = Deltas({(at.member(i), at.seed): d for i, d in enumerate(parts)})
            for family, seed in deltas:
                lens_input = LensInput(family, seed, deltas, K)
                reading.add(at, lens_input, cuts(lenses, lens_input))
    return reading


def places(planted: Planting, base: Base, lenses: Iterable[str] = PLACES) -> Reading:
    """T7 and T8 on each first member, by those of their lenses: the parts that a claim is about."""
    lenses = tuple(name for name in lenses if name in PLACES)
    reading = Reading("places", "full", lenses)
    for at, (first, *_) in planted.items():
        deltas = Deltas({(at.member(0), at.seed): first.whole})
        lens_input = LensInput(at.member(0), at.seed, deltas, svds=base.svds)
        found = cuts(lenses, lens_input) if lenses else ()
        reading.add(at, lens_input, (c for c in found if c.partition))
        reading.pieces[lens_input] = first
    return reading


def check_lenses(lenses: Sequence[str], plants: Iterable[str]) -> None:
    """Refuse lenses that say nothing: parts without what they are compared with, plants unread."""
    alone = [name for name in ("own", "random") if name in lenses]
    if alone and "shared" not in lenses:
        raise ValueError(
            f"t13: --lenses {alone[0]} is compared with shared; add shared, or leave it out"
        )
    unread = [p for p in plants if not PLANTS[p].several and not {*lenses} & {*PLACES}]
    if unread:
        raise ValueError(
            f"t13: no rule of --lenses {' '.join(lenses)} reads {unread[0]}, which is one adapter; "
            f"add one of {', '.join(PLACES)}, or leave it out of --plants"
        )


def sweep_readings(
    readings: Iterable[Reading], nulls: int, sweep: Callable[[str, list[Variant]], pl.DataFrame]
) -> pl.DataFrame:
    """Rows of all readings with their method, and of the base once."""
    frames = []
    for reading in (r for r in readings if r.cuts):
        rows = sweep(reading.method, list(reading.variants(nulls)))
        is_base = pl.col("method") == "base"
        rows = rows.with_columns(
            method=pl.when(is_base).then("method").otherwise(pl.lit(reading.method))
        )
        frames.append(rows.filter(~is_base) if frames else rows)
    return pl.concat(frames)


def judge(readings: Sequence[Reading], planted: Planting, table: pl.DataFrame) -> pl.DataFrame:
    """One line per data set, instance and rule: the verdict, the truth, and whether they agree."""
    lines = []
    for dataset, at in product(table["dataset"].unique(maintain_order=True), planted):
        for reading in readings:
            families = [x.family for x in reading.instances.get(at, [])]
            of = table.filter(
                pl.col("family").is_in(families), method=reading.method, dataset=dataset
            )
            lines += [judged(dataset, at, c.name, verdict(of, c.rule)) for c in reading.claims(at)]
    return pl.DataFrame(lines, infer_schema_length=None)


def judged(dataset: str, at: Instance, rule: str, v: Verdict) -> dict[str, object]:
    """A verdict beside the truth; a true claim about slices counts where it names the right one."""
    true, supported = PLANTS[at.plant].makes(rule), v.outcome == "supported"
    expected = {True: "supported", False: "not supported", None: None}[true]
    correct = supported and v.part == at.truth
    return {
        "dataset": dataset,
        **at._asdict(),
        "rule": rule,
        "expected": expected,
        "outcome": v.outcome,
        "named": v.part,
        "agree": {True: correct, False: not supported, None: None}[true],
        "sentence": v.sentence,
    }


def confusion(verdicts: pl.DataFrame) -> pl.DataFrame:
    """One line per (data set, plant, rule): outcomes counted, and the rate of agreement.

    `misplaced` are those of `supported` that name another slice than the planted one; lo and hi are
    Wilson's. Lines whose truth is unknown have no `agree`.
    """
    outcomes = {o: (pl.col("outcome") == o).sum() for o in ("supported", "refuted", "undetermined")}
    misplaced = (pl.col("outcome") == "supported") & (pl.col("expected") == "supported")
    table = verdicts.group_by("dataset", "plant", "rule", "expected", maintain_order=True).agg(
        seeds=pl.len(),
        **outcomes,
        misplaced=(misplaced & ~pl.col("agree")).sum(),
        agree=pl.when(pl.col("agree").is_not_null().all()).then(pl.col("agree").sum()),
    )
    both = table.select("agree", "seeds").iter_rows()
    spans = [(None, None) if agree is None else wilson(agree / n, n) for agree, n in both]
    ends = pl.DataFrame(spans, schema={"lo": pl.Float64, "hi": pl.Float64}, orient="row")
    return table.with_columns(rate=pl.col("agree") / pl.col("seeds")).hstack(ends)
