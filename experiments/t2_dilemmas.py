"""How does every family's dW act on the full set of dilemmas, from dose -2 to dose 2?

Question:   does the share of honest answers rise with the dose of dW, in both directions, on
            dilemmas that no adapter was trained on?
Prediction: it rises at every step from -2 to 2 in every family; a change that only raises Yes
            shows as bias and not as discrimination.
Rule:       per family: supported if the effect rises at every step between neighbouring doses, the
            95 % interval of each paired difference above 0; refuted if one of them lies below 0;
            else undetermined.

    python experiments/t2_dilemmas.py
    python experiments/t2_dilemmas.py --source wassname/daily_dilemmas-self-honesty --model ...

All rows ("dilemmas") stand beside those whose own action is flagged as about honesty
("dilemmas_honesty"; all rows where the set has no flags), from one scoring. Dose 0 is the base.
`yes_bias` is a planted change of the readout that raises Yes on every item alike, `zero` is dW at
dose zero times. A local --source is a folder, parquet or jsonl file of the hub set's columns.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import polars as pl

from wscore import DeltaLike, Verdict, benjamini_hochberg, contrast, effect_table, scale
from wsrun.data.items import Dilemmas, load_items, read_dilemmas
from wsrun.report import curves
from wsrun.report.console import console, grid, guarded
from wsrun.report.standings import span
from wsrun.score.sweep import Variant
from wsrun.study.controls import base_lines, final_states, yes_bias
from wsrun.study.next_command import say_next
from wsrun.study.options import Common, check_common
from wsrun.study.session import Pairs, draw, load, read_pairs, record, run, share, write

EXPERIMENT = "t2_dilemmas"
HONESTY = "dilemmas_honesty"
DOSE = ("dW", "base")  # the variants of a dose-response
STEP = ("step", "step_lo", "step_hi")


@dataclass(frozen=True)
class Config(Common):
    """Options of T2."""

    dilemmas: int | None = None
    """how many of the dilemmas to score, the first by dilemma_idx; None for all"""
    alphas: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    """doses of dW; 0 is the base, which is scored in any case"""
    source: str | None = None
    """hub name of the dilemmas, or a local folder, parquet or jsonl; None for those of `data`"""
    nats: float = 2.0
    """how much the planted yes_bias raises the margin"""


def main(cfg: Config) -> None:
    """Score every family at every dose, write rows, summary and figure, print the verdicts."""
    check_common(cfg, "t2")
    doses = tuple(a for a in cfg.alphas if a)
    if not doses:
        raise ValueError("t2: --alphas 0 asked; give a dose that is not 0")
    share(cfg)
    found = read_dilemmas(cfg.source or cfg.data / "dilemmas.jsonl", cfg.dilemmas, "test")
    at = load(cfg)._replace(items=found.items)
    pairs = read_pairs(at.model, cfg)
    states = final_states(at.model, at.tok, load_items(cfg.data, "validation"))
    planted = yes_bias(at.model, at.tok, states, cfg.nats)
    rows = run(cfg, EXPERIMENT, at, variants(pairs, planted, doses), len(pairs) * len(doses) + 2)
    if rows is None:  # a shard
        return
    rows = with_honesty(rows, found)
    table = summarise(cfg, rows)
    said = {(d, f): rises(table, d, f) for d in table["dataset"].unique() for f in cfg.families}
    said = dict(sorted(said.items()))
    source = {"source": cfg.source or str(cfg.data), "revision": found.revision}
    made = record(cfg, at, pairs, dilemmas=source, verdicts=[(*key, *v) for key, v in said.items()])
    path = write(cfg, EXPERIMENT, rows, table, made)
    report(cfg, rows, table, found)
    for (dataset, _), v in said.items():
        if dataset in shown(found):
            console.print(f"[bold]{dataset}: {v.outcome}[/]: {v.sentence}")
    question = "How does the honesty of the answers follow the dose of dW?"
    drawn = table.filter(pl.col("variant").is_in(DOSE) & pl.col("dataset").is_in(shown(found)))
    draw(curves.doses, drawn, path, question)
    say_next(cfg, "t3_prompts", "the same change beside prompts")


def variants(pairs: Pairs, planted: DeltaLike, doses: tuple[float, ...]) -> Iterator[Variant]:
    """dW of every family and seed at every dose; the planted bias and nothing, once each."""
    for (family, seed), pair in pairs.items():
        yield Variant("dW", pair.dW, family=family, seed=seed, alphas=doses)
    yield Variant("yes_bias", planted, method="synthetic", alphas=(1.0,))
    first = next(iter(pairs.values()))
    yield Variant("zero", scale(0.0, first.dW), method="synthetic", alphas=(1.0,))


def with_honesty(rows: pl.DataFrame, found: Dilemmas) -> pl.DataFrame:
    """All rows, and those about honesty once more as a data set of their own."""
    part = rows.filter(pl.col("item").is_in(list(found.about_honesty)))
    return pl.concat([rows, part.with_columns(dataset=pl.lit(HONESTY))])


def summarise(cfg: Config, rows: pl.DataFrame) -> pl.DataFrame:
    """One line per data set, family and dose, the base's at dose 0, seeds pooled.

    step = effect(dose) - effect(next lower dose), paired, with its interval.
    """
    table = benjamini_hochberg(effect_table(rows, resamples=cfg.resamples))
    families = pl.DataFrame({"family": cfg.families}, schema={"family": pl.String})
    base = base_lines(rows).drop("family").join(families, how="cross")
    table = pl.concat([table, base], how="diagonal_relaxed")
    steps = pl.concat([steps_of(cfg, rows, table, family) for family in cfg.families])
    keys = ["dataset", "family", "variant", "alpha"]
    return table.join(steps, on=keys, how="left", maintain_order="left").sort(
        "dataset", "family", "alpha", "variant", nulls_last=True
    )


def steps_of(cfg: Config, rows: pl.DataFrame, table: pl.DataFrame, family: str) -> pl.DataFrame:
    """The paired rise of a family's effect from each dose to the next one."""
    lines = table.filter(pl.col("variant").is_in(DOSE) & (pl.col("family") == family))
    own = rows.filter((pl.col("variant") == "base") | (pl.col("family") == family))
    own = own.filter(pl.col("variant").is_in(DOSE))
    keys, found = ["dataset", "family", "variant", "alpha"], []
    for low, high in pairwise(lines["alpha"].unique().sort()):
        if low == 0:  # the difference to the base is the effect itself
            step = lines.filter(alpha=high).select(
                *keys, **dict(zip(STEP, map(pl.col, ("effect", "lo", "hi")), strict=True))
            )
        elif high == 0:
            below = lines.filter(alpha=low).select(
                "dataset",
                **{s: -pl.col(c) for s, c in zip(STEP, ("effect", "hi", "lo"), strict=True)},
            )
            step = lines.filter(alpha=high).select(keys).join(below, on="dataset")
        else:
            both = own.filter(pl.col("alpha").is_in([0.0, low, high]))
            apart = contrast(both, {"alpha": low}, resamples=cfg.resamples).filter(alpha=high)
            step = apart.select(*keys, step="diff", step_lo="diff_lo", step_hi="diff_hi")
        found.append(step)
    return pl.concat(found)


def rises(table: pl.DataFrame, dataset: str, family: str) -> Verdict:
    """The rule for one data set and family, on its steps from dose to dose."""
    lines = table.filter(dataset=dataset, family=family).filter(pl.col("variant").is_in(DOSE))
    doses = lines["alpha"].sort().to_list()
    steps = lines.filter(pl.col("step").is_not_null()).sort("step")
    least = steps.row(0, named=True)
    before = doses[doses.index(least["alpha"]) - 1]
    smallest = f"from {before:g} to {least['alpha']:g} by {span(least, *STEP)} nats"
    if (steps["step_lo"] > 0).fill_null(False).all():
        return Verdict("supported", f"{family} rises at every dose, least {smallest}")
    if least["step"] < 0:
        outcome = "refuted" if (steps["step_hi"] < 0).fill_null(False).any() else "undetermined"
        return Verdict(outcome, f"{family} does not rise at every dose: {smallest}")
    return Verdict("undetermined", f"{family} rises at every dose, but not clearly {smallest}")


def shown(found: Dilemmas) -> list[str]:
    """The data sets to print and draw; without flags both have the same rows."""
    return ["dilemmas", HONESTY] if found.has_flags else ["dilemmas"]


def report(cfg: Config, rows: pl.DataFrame, table: pl.DataFrame, found: Dilemmas) -> None:
    """Print the base, the effect at every dose, the gates, and the lines without a family."""
    if not found.has_flags:
        console.print("no honesty flags in this set: every row counts as about honesty")
    for dataset in shown(found):
        console.print(base_sentence(dataset, rows.filter(variant="base", dataset=dataset)))
    curves = table.filter(pl.col("variant").is_in(DOSE))
    doses = curves["alpha"].unique().sort().to_list()
    at = {(r["family"], r["dataset"], r["alpha"]): r for r in curves.iter_rows(named=True)}

    def print_grid(title: str, cell: Callable[[dict], str]) -> None:
        names = [(f, d) for f in cfg.families for d in shown(found)]
        words = {"dilemmas": "all", HONESTY: "honesty"}
        lines = [[f, words[d], *(cell(at[f, d, a]) for a in doses)] for f, d in names]
        console.print(grid(title, ("family", "rows", *(f"{a:g}" for a in doses)), lines))

    print_grid(
        "effect in nats by dose of dW",
        lambda r: span(r, "effect", "lo", "hi") if r["alpha"] else "0",
    )
    print_grid(
        "number of rows, mass on Yes and No, share flagged, by dose of dW",
        lambda r: f"{r['n']}, {r['mass']:.3f}, {r['flagged_share']:.0%}",
    )
    rest = table.filter(pl.col("family").is_null() & pl.col("dataset").is_in(shown(found)))
    facts = ("bias", "discrimination", "mass", "flagged_share")
    cells = [
        [r["dataset"], r["variant"], span(r, "effect", "lo", "hi"), *(r[c] for c in facts)]
        for r in rest.iter_rows(named=True)
    ]
    heads = ("data set", "change", "effect", "bias", "discrimination", "mass", "flagged")
    console.print(grid("controls: a planted bias to Yes, and nothing at all", heads, cells))


def base_sentence(dataset: str, base: pl.DataFrame) -> str:
    """What the model says without any change."""
    aligned, up = base["margin"] * base["label"], int((base["label"] > 0).sum())
    return (
        f"{dataset}, base: {len(base)} rows, {up} labelled +1 and {len(base) - up} labelled -1, of "
        f"{base['cluster'].n_unique()} dilemmas; mean aligned margin {aligned.mean():.3f}, "
        f"sd {aligned.std():.3f}, mass {base['mass'].mean():.3f}"
    )


if __name__ == "__main__":
    guarded(main, Config)
