"""Does the part of a persona's direction in the base weights' top singular vectors steer?

Question:   the contrast c of a persona, of which dW' = c x^T / |x|^2 is made without any trained
            delta: is its part in the top-r left singular vectors of the weight that writes it the
            part that steers?
Prediction: yes, with r well below the width: what a persona uses is what the weights write most.
Rule:       supported if at one r the top-r part retains >= 0.7 and the rest <= 0.3 of the effect,
            by their 95 % intervals, and every random subspace of that r retains less than top-r;
            refuted if each r clearly fails; else undetermined.

    python experiments/t10_svd_steering.py
    python experiments/t10_svd_steering.py --r 4 16 --dilemmas None

Parts are not rescaled: top + rest is the whole contrast, checked in the run. keep_random: its part
in a random subspace of r directions; matched: that part brought to the norm of the top-r part, per
weight, so that only the directions differ. Setting and dose of the whole contrast, family and dose
of dW are chosen on validation items; every line has its paired difference to dW, too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
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
from wsrun.models.load import d_model
from wsrun.report import figures
from wsrun.report.console import console, grid, guarded
from wsrun.report.standings import span, standings
from wsrun.score.names import DW
from wsrun.score.sweep import Variant
from wsrun.steer.constructed import rank_one, sized, unseen_record
from wsrun.study import constructed as synthetic
from wsrun.study.ablation import SUM_TOLERANCE
from wsrun.study.benchmark import choose, load_splits, of_dW, report_on
from wsrun.study.constructed import check, measure
from wsrun.study.controls import nothing, random_changes
from wsrun.study.next_command import say_next
from wsrun.study.session import draw, read_pairs, record, share, write

EXPERIMENT = "t10_svd_steering"
WHOLE, RANDOM, MATCHED = "contrast", "keep_random", "matched"
ROLES = {"keep_top": "keep", "drop_top": "drop", RANDOM: "control", MATCHED: "control"}


@dataclass(frozen=True)
class Config(synthetic.Options):
    """Options of T10."""

    r: tuple[int, ...] = (8, 16, 32, 64)
    """how many of the top left singular vectors"""
    keep_at_least: float = 0.7
    """threshold of the rule on the top-r part"""
    drop_at_most: float = 0.3
    """threshold of the rule on the rest"""


def main(cfg: Config) -> None:
    """Construct contrasts, only then read dW, cut the chosen contrast, report on test items."""
    check(cfg, "t10")
    if not cfg.r or len(set(cfg.r)) < len(cfg.r) or min(cfg.r) < 1:
        raise ValueError("t10: --r must be 1 or more, at least one, each once")
    share(cfg)
    validation, test = load_splits(cfg)
    if max(cfg.r) >= (d := d_model(test.model)):
        raise ValueError(f"t10: --r {max(cfg.r)} asked; d_model of {cfg.model!r} is {d}")
    base, settings = measure(cfg, test)
    made = {f"{WHOLE}@{n}": sized(rank_one(c), base, per) for n, (c, per) in settings.items()}
    unseen = unseen_record(made)
    pairs = read_pairs(test.model, cfg)  # not before: what was made must not have seen them
    own = [Variant(name, d, "synthetic", alphas=cfg.doses) for name, d in made.items()]
    chosen = choose(cfg, EXPERIMENT, validation, [*of_dW(cfg, pairs), *own])
    if chosen is None:  # a shard
        return
    if WHOLE not in chosen:
        raise ValueError(f"t10: no contrast comes to {cfg.match}; ask for another --match")
    whole = chosen[WHOLE].variant
    notes: dict = {}
    cuts = [*parts(cfg, whole, base, notes)]
    controls = [nothing(chosen), *random_changes(chosen[DW].variant, cfg.randoms)]
    rows, table = report_on(cfg, EXPERIMENT, test, chosen, controls, held=cuts)
    table = shares(cfg, rows, table, whole, notes)
    found = {name: decide(cfg, part) for (name,), part in table.group_by("dataset")}
    said = [[name, *v] for name, v in sorted(found.items())]
    path = write(
        cfg, EXPERIMENT, rows, table, record(cfg, test, pairs, unseen=unseen, verdicts=said)
    )
    report(cfg, table, said)
    picture(cfg, table, path)
    say_next(cfg, "report", "one page over all tables")


def parts(
    cfg: Config, whole: Variant, base: Mapping[str, Tensor], notes: dict
) -> Iterator[Variant]:
    """The whole contrast cut at every r, and random subspaces of that size."""
    d = whole.change()
    size = norm(d)

    def one(name: str, part: DeltaLike, r: int, chance: float | None = None) -> Variant:
        notes[name, r] = (norm(part) / size) ** 2, chance
        return Variant(name, part, whole.method, k=r, alphas=whole.alphas)

    for r in cfg.r:
        basis = weight_basis(base, r)
        top, rest = keep(d, basis), drop(d, basis)
        error = norm(difference(add(top, rest), d)) / size
        if error > SUM_TOLERANCE:
            raise RuntimeError(f"t10: top-{r} + rest misses the contrast by {error}")
        yield one("keep_top", top, r, by_chance(d, base, basis))
        yield one("drop_top", rest, r)
        for i in range(cfg.randoms):
            kept = keep(d, random_basis(basis, i))
            yield one(f"{RANDOM}#{i:02d}", kept, r)
            yield one(f"{MATCHED}#{i:02d}", match_norm(kept, top), r)


def by_chance(d: DeltaLike, base: Mapping[str, Tensor], basis: Basis) -> float:
    """The energy of a top-r part if inputs differed at random: sum |d_W|^2 |W_r|^2/|W|^2 / |d|^2.

    c = W (x_pos - x_neg) is never a random direction: W stretches what it writes most.
    """
    sizes = {name: entry_norm(d, name) ** 2 for name in d}
    held = (sizes[n] * energy({n: base[n]}, {n: basis[n]}) for n in d)
    return sum(held) / sum(sizes.values())


def shares(
    cfg: Config, rows: pl.DataFrame, table: pl.DataFrame, whole: Variant, notes: Mapping
) -> pl.DataFrame:
    """The table with energy, retained share of the whole, and percentiles among random subspaces.

    `above_random` and `above_matched`: 100 where a part does more than each draw of its own r.
    """
    own = rows.filter((pl.col("method") == "base") | (pl.col("method") == whole.method))
    found = effect_table(own, full=whole.name, resamples=cfg.resamples)
    for null, column in ((RANDOM, "above_random"), (MATCHED, "above_matched")):
        found = null_percentile(found, null).rename({"null_percentile": column})
    numbers = dict.fromkeys(("energy", "energy_by_chance"), pl.Float64())
    facts = pl.DataFrame(
        [(*key, *note) for key, note in notes.items()],
        schema={"variant": pl.String(), "k": pl.Int64(), **numbers},
        orient="row",
    )
    keys = ["dataset", "variant", "k"]
    new = ("retained", "retained_lo", "retained_hi", "above_random", "above_matched")
    kind = pl.col("variant").str.split("#").list.first()
    return (
        table.join(found.select(*keys, *new), on=keys, how="left", nulls_equal=True)
        .join(facts, on=keys[1:], how="left", nulls_equal=True)
        .with_columns(keep_or_drop=kind.replace_strict(ROLES, default=None))
    )


def decide(cfg: Config, table: pl.DataFrame) -> Verdict:
    """The rule, on the lines of one data set."""
    lines = {(r["variant"], r["k"]): r for r in table.iter_rows(named=True)}
    held, failed, said = [], [], []
    for r in cfg.r:
        top, rest = lines["keep_top", r], lines["drop_top", r]
        if top["retained_lo"] is None:
            return Verdict("undetermined", "the effect of the whole contrast is not clear of 0")
        conditions = (
            at_least(top["retained_lo"], top["retained_hi"], cfg.keep_at_least),
            at_most(rest["retained_lo"], rest["retained_hi"], cfg.drop_at_most),
            top["above_random"] == 100,
        )
        held += [r] if all(conditions) else []
        failed += [r] if False in conditions else []
        said.append(f"r = {r}: top {top['retained']:.2f}, rest {rest['retained']:.2f}")
    if held:
        at = " and ".join(map(str, held))
        return Verdict(
            "supported",
            f"at r = {at} the top-r part retains >= {cfg.keep_at_least:g}, the rest <= "
            f"{cfg.drop_at_most:g}, and every random subspace of that r less than top-r",
        )
    outcome = "refuted" if len(failed) == len(cfg.r) else "undetermined"
    return Verdict(outcome, f"at no r all conditions hold; {'; '.join(said)}")


def report(cfg: Config, table: pl.DataFrame, said: list[list]) -> None:
    """Print the whole beside dW, what each part retains, and the verdicts."""
    whole = table.filter(pl.col("way").is_in([DW, f"-{DW}", WHOLE, "zero"]))
    for (dataset,), part in whole.group_by("dataset", maintain_order=True):
        console.print(standings(part, f"{dataset}: effect in nats on test items"))
    heads = ("r", "part", "energy", "by chance", "retained", "effect", "minus dW", "above random")
    for (dataset,), part in table.group_by("dataset", maintain_order=True):
        title = f"{dataset}: share of the contrast's effect; random, matched: mean of the draws"
        console.print(grid(title, heads, [x for r in cfg.r for x in lines_of(part, r)]))
    for dataset, outcome, sentence, _ in said:
        console.print(f"[bold]{dataset}: {outcome}[/]: {sentence}")


def picture(cfg: Config, table: pl.DataFrame, path: Path) -> None:
    """Retained share against energy: parts, and random ones of the top-r part's norm."""
    width = len(str(max(cfg.r)))
    shown = table.filter(
        pl.col("keep_or_drop").is_not_null(), ~pl.col("variant").str.contains(RANDOM)
    )
    shown = shown.with_columns(
        r=pl.col("k").cast(pl.String).str.zfill(width), family=pl.lit("persona contrast")
    )
    shown = shown.filter(pl.col("retained").is_not_null())
    if shown.is_empty():
        console.print("no figure: the effect of the whole contrast is not clear of 0")
        return
    words = {f"{r:0{width}d}": f"r = {r}" for r in cfg.r}
    question = "Does the part of the contrast in the top-r singular vectors steer?"
    draw(figures.scatter, shown, path, question, "r", words)


def lines_of(table: pl.DataFrame, r: int) -> Iterator[list]:
    """The printed lines of one r: both parts, and the means of both kinds of draws."""
    at = table.filter(k=r)
    for name in ("keep_top", "drop_top"):
        x = at.row(by_predicate=pl.col("variant") == name, named=True)
        yield [
            r,
            name,
            x["energy"],
            x["energy_by_chance"],
            span(x, "retained", "retained_lo", "retained_hi").replace("+", ""),
            span(x, "effect", "lo", "hi"),
            span(x, "diff", "diff_lo", "diff_hi"),
            f"{x['above_random']:.0f} %",
        ]
    for name in (RANDOM, MATCHED):
        draws = at.filter(pl.col("variant").str.starts_with(f"{name}#"))
        held, *means = (draws[c].mean() for c in ("energy", "retained", "effect", "diff"))
        yield [r, name, held, None, *means, None]


if __name__ == "__main__":
    guarded(main, Config)
