"""A constructed change cut at the top-r left singular vectors of the weights that write it (T10).

keep_top + drop_top is the whole, checked in the run. keep_random: its part in a random subspace of
r directions; matched: that part brought to the norm of keep_top, per weight.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import polars as pl
from rich.table import Table
from torch import Tensor

from wscore import (
    Basis,
    DeltaLike,
    Verdict,
    add,
    at_least,
    at_most,
    difference,
    drop,
    effect_table,
    energy,
    keep,
    match_norm,
    norm,
    null_percentile,
    random_basis,
    weight_basis,
)
from wscore.delta import entry_norm
from wsrun.report.console import grid
from wsrun.report.wording import difference_to_dW, with_interval
from wsrun.score.variants import Variant
from wsrun.steer.interventions import ConstructedDelta

SUM_TOLERANCE = 1e-5  # top + rest against the whole, relative
RANDOM, MATCHED = "keep_random", "matched"
HEADS = ("r", "part", "energy", "by chance", "retained", "effect", "minus dW", "above random")
ROLES = {"keep_top": "keep", "drop_top": "drop", RANDOM: "control", MATCHED: "control"}


class Cut(NamedTuple):
    """A part as a variant, its energy |part|^2 / |whole|^2, and what that is by chance."""

    variant: Variant
    energy: float
    by_chance: float | None = None


def cuts(whole: Variant, base: Mapping[str, Tensor], r: int, draws: int) -> Iterator[Cut]:
    """The whole change cut at the top r, and in as many random subspaces of that size."""
    d = whole.intervention.delta()
    size, basis = norm(d), weight_basis(base, r)

    def cut(name: str, part: DeltaLike, by_chance: float | None = None) -> Cut:
        variant = replace(whole, name=name, intervention=ConstructedDelta(part), k=r, dose=None)
        return Cut(variant, (norm(part) / size) ** 2, by_chance)

    top, rest = keep(d, basis), drop(d, basis)
    error = norm(difference(add(top, rest), d)) / size
    if error > SUM_TOLERANCE:
        raise RuntimeError(f"top-{r} + rest differs from the contrast by {error}")
    yield cut("keep_top", top, energy_by_chance(d, base, basis))
    yield cut("drop_top", rest)
    for i in range(draws):
        kept = keep(d, random_basis(basis, i))
        yield cut(f"{RANDOM}#{i:02d}", kept)
        yield cut(f"{MATCHED}#{i:02d}", match_norm(kept, top))


def energy_by_chance(d: DeltaLike, base: Mapping[str, Tensor], basis: Basis) -> float:
    """The energy of a top-r part if inputs differed at random: sum |d_W|^2 |W_r|^2/|W|^2 / |d|^2.

    c = W (x_pos - x_neg) is never a random direction: W stretches what it writes most.
    """
    sizes = {name: entry_norm(d, name) ** 2 for name in d}
    held = (sizes[n] * energy({n: base[n]}, {n: basis[n]}) for n in d)
    return sum(held) / sum(sizes.values())


def add_shares(
    rows: pl.DataFrame,
    table: pl.DataFrame,
    whole: Variant,
    parts: Sequence[Cut],
    resamples: int,
) -> pl.DataFrame:
    """The table with energy, retained share of the whole, and percentiles among random subspaces.

    `above_random` and `above_matched`: 100 where a part does more than each draw of its own r.
    """
    whole_rows = rows.filter(pl.col("method").is_in(["base", whole.method]))
    effects = effect_table(whole_rows, full=whole.name, resamples=resamples)
    for null, column in ((RANDOM, "above_random"), (MATCHED, "above_matched")):
        effects = null_percentile(effects, null).rename({"null_percentile": column})
    numbers = dict.fromkeys(("energy", "energy_by_chance"), pl.Float64())
    facts = pl.DataFrame(
        [(c.variant.name, c.variant.k, c.energy, c.by_chance) for c in parts],
        schema={"variant": pl.String(), "k": pl.Int64(), **numbers},
        orient="row",
    )
    keys = ["dataset", "variant", "k"]
    new = ("retained", "retained_lo", "retained_hi", "above_random", "above_matched")
    kind = pl.col("variant").str.split("#").list.first()
    return (
        table.join(effects.select(*keys, *new), on=keys, how="left", nulls_equal=True)
        .join(facts, on=keys[1:], how="left", nulls_equal=True)
        .with_columns(keep_or_drop=kind.replace_strict(ROLES, default=None))
    )


def decide(
    table: pl.DataFrame, sizes: Sequence[int], keep_at_least: float, drop_at_most: float
) -> Verdict:
    """The rule of T10, on the lines of one data set."""
    lines = {(r["variant"], r["k"]): r for r in table.iter_rows(named=True)}
    held, failed, shares = [], [], []
    for r in sizes:
        top, rest = lines["keep_top", r], lines["drop_top", r]
        if top["retained_lo"] is None:
            return Verdict("undetermined", "the effect of the whole contrast is not clear of 0")
        conditions = (
            at_least(top["retained_lo"], top["retained_hi"], keep_at_least),
            at_most(rest["retained_lo"], rest["retained_hi"], drop_at_most),
            top["above_random"] == 100,
        )
        held += [r] if all(conditions) else []
        failed += [r] if False in conditions else []
        shares.append(f"r = {r}: top {top['retained']:.2f}, rest {rest['retained']:.2f}")
    if held:
        held_sizes = " and ".join(map(str, held))
        return Verdict(
            "supported",
            f"at r = {held_sizes} the top-r part retains >= {keep_at_least:g}, the rest <= "
            f"{drop_at_most:g}, and every random subspace of that r less than top-r",
        )
    outcome = "refuted" if len(failed) == len(sizes) else "undetermined"
    return Verdict(outcome, f"at no r all conditions hold; {'; '.join(shares)}")


def parts_grid(table: pl.DataFrame, title: str, sizes: Sequence[int]) -> Table:
    """The printed table of one data set: parts of every r, and the means of the random draws."""
    lines = [x for r in sizes for x in _lines(table.filter(k=r), r)]
    return grid(f"{title}; random, matched: mean of the draws", HEADS, lines)


def _lines(at: pl.DataFrame, r: int) -> Iterator[list]:
    for name in ("keep_top", "drop_top"):
        x = at.row(by_predicate=pl.col("variant") == name, named=True)
        retained = with_interval(x, "retained", "retained_lo", "retained_hi").replace("+", "")
        effects = with_interval(x, "effect", "lo", "hi"), difference_to_dW(x)
        energies = x["energy"], x["energy_by_chance"]
        yield [r, name, *energies, retained, *effects, f"{x['above_random']:.0f} %"]
    for name in (RANDOM, MATCHED):
        draws = at.filter(pl.col("variant").str.starts_with(f"{name}#"))
        held, *means = (draws[c].mean() for c in ("energy", "retained", "effect", "diff"))
        yield [r, name, held, None, *means, None]


def parts_to_draw(table: pl.DataFrame, sizes: Sequence[int]) -> tuple[pl.DataFrame, dict[str, str]]:
    """(lines of retained_by_energy without the raw random parts, words for each r)."""
    width = len(str(max(sizes)))
    shown = table.filter(
        pl.col("keep_or_drop").is_not_null() & ~pl.col("variant").str.contains(RANDOM),
        pl.col("retained").is_not_null(),
    )
    r = pl.col("k").cast(pl.String).str.zfill(width)
    shown = shown.with_columns(r=r, family=pl.lit("persona contrast"))
    return shown, {f"{r:0{width}d}": f"r = {r}" for r in sizes}
