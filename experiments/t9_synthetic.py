"""Can a weight change that was never trained steer as dW does?

Question:   does a change dW' made of base weights and of what a persona changes in the model's own
            outputs, before any trained delta was read, move the answers, and as far as dW?
Prediction: it steers, but less than dW; directions that nothing reads do not steer.
Rule:       a way steers where its interval lies above 0 and its effect above that of every random
            contrast of its own size; it beats (loses to) dW where the paired difference does.

    python experiments/t9_synthetic.py
    python experiments/t9_synthetic.py --dilemmas None

Per weight that writes the residual stream (o_proj, down_proj), dW' = c x^T / |x|^2: on its mean
input x it adds the contrast c of its outputs, on training questions. Ways: contrast (c itself);
c projected on the readout's top-k directions (readout), on the weight's own top-k left singular
vectors (weight_basis), on what later layers write but do not read (write_not_read); -contrast,
towards the other pole. random_contrast turns all c by one random rotation, as many as --randoms.
Settings: c measured where the answer is read ("answer") or begins ("start"), its sizes as measured
("raw") or those of the weights ("even"). Dose: |dW'| / |W|. Both are chosen on validation items, as
are dW's family and dose.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import polars as pl
from torch import Tensor

from wscore import DeltaLike, cosine, effect_table, keep, norm, only, weight_basis
from wscore.effect import KEYS
from wsrun.report import curves
from wsrun.report.console import console, guarded
from wsrun.report.standings import against_dW, standings
from wsrun.score.names import DW
from wsrun.score.sweep import Variant
from wsrun.steer.constructed import rank_one, sized, turned, unseen_record
from wsrun.steer.structure import readout_basis, write_not_read_basis
from wsrun.study import constructed as synthetic
from wsrun.study.benchmark import choose, load_splits, of_dW, report_on
from wsrun.study.constructed import Setting, check, measure
from wsrun.study.controls import nothing
from wsrun.study.next_command import say_next
from wsrun.study.selection import Chosen
from wsrun.study.session import Loaded, draw, read_pairs, record, share, write

EXPERIMENT = "t9_synthetic"
RANDOM, MINUS = "random_contrast", "-contrast"


@dataclass(frozen=True)
class Config(synthetic.Options):
    """Options of T9."""

    k: int = 32
    """directions of the readout, of each weight, and of what is read and written later"""


def main(cfg: Config) -> None:
    """Construct dW', only then read dW, choose on validation items, report on test items."""
    check(cfg, "t9")
    share(cfg)
    validation, test = load_splits(cfg)
    base, settings = measure(cfg, test)
    made = dict(ways(cfg, test, base, settings))
    draws = dict(randoms(cfg, base, settings))
    unseen = unseen_record(made)
    pairs = read_pairs(test.model, cfg)  # not before: what was made must not have seen them
    candidates = [*of_dW(cfg, pairs), *variants(cfg, made)]
    chosen = choose(cfg, EXPERIMENT, validation, candidates, against=(f"-{DW}", MINUS))
    if chosen is None:  # a shard
        return
    controls = [nothing(chosen), *at_doses(chosen, draws)]
    rows, table = report_on(cfg, EXPERIMENT, test, chosen, controls)
    table = ranked(rows, table).with_columns(cos_dW=cosines(table, made, chosen[DW]))
    said = verdicts(table)
    noted = record(cfg, test, pairs, unseen=unseen, verdicts=said)
    path = write(cfg, EXPERIMENT, rows, table, noted)
    draw(curves.ways, table, path, "Do changes that were never trained steer as dW does?")
    report(cfg, table, said, sizes_sentence(cfg, table, chosen))


def ways(
    cfg: Config, at: Loaded, base: Mapping[str, Tensor], settings: Mapping[str, Setting]
) -> Iterator[tuple[str, DeltaLike]]:
    """("way@setting", dW' of |dW'| = |W|) for every way in every setting."""
    bases = {
        "readout": readout_basis(at.model, base, cfg.k),
        "weight_basis": weight_basis(base, cfg.k),
        "write_not_read": write_not_read_basis(at.model, base, cfg.k),
    }
    for name, (contrast, per) in settings.items():
        whole = rank_one(contrast)
        yield f"contrast@{name}", sized(whole, base, per)
        for way, basis in bases.items():
            part = keep(only(whole, [n for n in whole if n in basis]), basis)
            yield f"{way}@{name}", sized(part, base, per)


def randoms(
    cfg: Config, base: Mapping[str, Tensor], settings: Mapping[str, Setting]
) -> Iterator[tuple[tuple[str, int], DeltaLike]]:
    """((setting, draw), the contrast turned at random, of |dW'| = |W|)."""
    for i in range(cfg.randoms):
        for name, (contrast, per) in settings.items():
            yield (name, i), sized(rank_one(turned(contrast, i)), base, per)


def variants(cfg: Config, made: Mapping[str, DeltaLike]) -> Iterator[Variant]:
    """Every constructed change at every dose, and the contrast towards the other pole."""
    minus = tuple(-a for a in cfg.doses)
    for name, d in made.items():
        way, _, setting = name.partition("@")
        yield Variant(name, d, "synthetic", alphas=cfg.doses)
        if way == "contrast":
            yield Variant(f"{MINUS}@{setting}", d, "synthetic", alphas=minus)


def at_doses(
    chosen: Mapping[str, Chosen], draws: Mapping[tuple[str, int], DeltaLike]
) -> Iterator[Variant]:
    """The random contrasts in the settings and at the doses that were chosen."""
    sizes = {size_of(c.variant.name, (c.variant.alphas or (0.0,))[0]) for c in chosen.values()}
    for (setting, i), d in draws.items():
        for name, dose in sorted(s for s in sizes if s[0] == setting):
            line = Variant(f"{RANDOM}@{name} {dose:g}", d, "synthetic", seed=i)
            yield replace(line, alphas=(dose,))


def size_of(variant: str, alpha: float) -> tuple[str, float]:
    """(setting, |dose|), by which a way and the random contrasts of its size are matched."""
    return variant.partition("@")[2], abs(alpha)


def ranked(rows: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
    """The table with `below`: the share of the random contrasts of a line's size with less effect.

    A random direction has no pole, so the draws at a dose serve both of its signs.
    """
    drawn = pl.col("variant").str.starts_with(f"{RANDOM}@")
    each = effect_table(rows.filter(drawn | (pl.col("alpha") == 0)), KEYS, resamples=2)
    effects = each.group_by("dataset", "variant").agg(pl.col("effect"))
    found = {(d, v): e for d, v, e in effects.iter_rows()}

    def below(line: dict) -> float | None:
        if line["alpha"] is None:  # a candidate that has not the dose asked for
            return None
        setting, dose = size_of(line["variant"], line["alpha"])
        draws = found.get((line["dataset"], f"{RANDOM}@{setting} {dose:g}"))
        return draws and sum(e < line["effect"] for e in draws) / len(draws)

    shares = [below(line) for line in table.iter_rows(named=True)]
    return table.with_columns(below=pl.Series(shares, dtype=pl.Float64))


def cosines(table: pl.DataFrame, made: Mapping[str, DeltaLike], dW: Chosen) -> pl.Series:
    """cos(dW', dW) over the weights that both change, null for other lines and without any."""

    def alike(name: str) -> float | None:
        d = made.get(name.removeprefix("-"), {})
        both = [n for n in d if n in dW.variant.change()]
        return cosine(only(d, both), only(dW.variant.change(), both)) if both else None

    found = {name: alike(name) for name in set(table["variant"])}
    return pl.Series([found[name] for name in table["variant"]], dtype=pl.Float64)


def verdicts(table: pl.DataFrame) -> list[str]:
    """Per data set and way, whether it steers by the rule."""
    said = []
    lines = table.filter(pl.col("method") == "synthetic", pl.col("role") == "selected")
    for r in lines.iter_rows(named=True):
        sign = -1 if r["way"] == MINUS else 1
        beyond = r["below"] if sign > 0 else 1 - r["below"]
        ends = sorted(sign * r[c] for c in ("lo", "hi")) if r["lo"] is not None else [0.0]
        steers = ends[0] > 0 and beyond == 1
        said.append(
            f"{r['dataset']}: {r['way']} {'steers' if steers else 'is not shown to steer'}: "
            f"{r['effect']:+.2f} nats, beyond {beyond:.0%} of the random contrasts of its size"
        )
    return said


def sizes_sentence(cfg: Config, table: pl.DataFrame, chosen: Mapping[str, Chosen]) -> str:
    """How large the chosen contrast and the chosen dW are, and how alike."""
    if "contrast" not in chosen:
        return f"no size of the contrast comes to {cfg.match}"
    found = []
    for way in ("contrast", DW):
        v = chosen[way].variant
        found.append(norm(v.change()) * (v.alphas or (0.0,))[0])
    cos = table.filter(way="contrast", role=chosen["contrast"].role)["cos_dW"][0]
    alike = "no weight in common" if cos is None else f"cosine {cos:+.3f} over common weights"
    return f"|dW'| of the contrast {found[0]:.3g}, |dW| {found[1]:.3g} at their doses; {alike}"


def report(cfg: Config, table: pl.DataFrame, said: list[str], sizes: str) -> None:
    """Print the table per data set, the verdicts, and the sentences beside dW."""
    for (dataset,), part in table.group_by("dataset", maintain_order=True):
        title = f"{dataset}: effect in nats on test items, setting and dose chosen on validation"
        console.print(standings(part, title))
    for sentence in said:
        console.print(sentence)
    for sentence in against_dW(table, lambda way: way not in (DW, f"-{DW}", MINUS)):
        console.print(sentence)
    console.print(sizes)
    say_next(cfg, "t10_svd_steering", "which part of the contrast steers")


if __name__ == "__main__":
    guarded(main, Config)
