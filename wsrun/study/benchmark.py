"""What the benchmark of methods shares: selection on validation items, comparison on test items.

A script lists its candidates as variants named "way@setting" ("mean_diff@layer 3"), each with its
own doses. `choose` scores them on the validation split and picks one (setting, dose) per way;
`report_on` scores the picked ones on the test split beside controls, and gives one line per way
with its paired difference to dW. With --match every candidate and control has one dose, found by
dose.py, in place of its own doses.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from wscore import benjamini_hochberg, contrast, effect_table, tensors_sha256
from wscore.effect import CELL, SUMMARY_KEYS
from wsrun.data.items import Item, load_items
from wsrun.data.replies import NEUTRAL, load_neutral
from wsrun.report.console import console, progress
from wsrun.score.doses import SPLIT, TEXTS, Divergence, Dosed, matched, read_match
from wsrun.score.names import DW, way
from wsrun.score.sweep import Variant
from wsrun.study.controls import base_lines, faint, idle
from wsrun.study.options import Common, check_common
from wsrun.study.selection import Chosen, keep_chosen
from wsrun.study.session import Loaded, Pairs, load, run

MOST_FLAGGED = 0.1  # share of rows with little mass on Yes and No, above which a dose is no choice


@dataclass(frozen=True)
class Options(Common):
    """Options of every script of the benchmark."""

    alphas: tuple[float, ...] = (1.0, 2.0, 4.0)
    """doses of dW to choose from"""
    most_flagged: float = MOST_FLAGGED
    """a candidate with a larger share of flagged rows is not chosen"""
    randoms: int = 20
    """random controls"""
    match: str | None = None
    """equal doses for all: kl:X, X nats on neutral texts, or norm:X, |alpha dW| = X"""


class Picks(dict[str, Chosen]):
    """{way: what was picked}, rows of all candidates, and those that no alpha brings to the dose.

    rows are of validation items; unmatched is empty without --match.
    """

    rows: pl.DataFrame
    unmatched: Sequence[Dosed] = ()


def check(cfg: Options, what: str) -> None:
    """Refuse options that cannot work before anything is loaded; `what` names the script."""
    check_common(cfg, what)
    if any(a <= 0 for a in cfg.alphas):
        raise ValueError(f"{what}: --alphas must be above 0; both directions are tried by itself")
    if not 0 <= cfg.most_flagged <= 1:
        raise ValueError(f"{what}: --most-flagged {cfg.most_flagged} asked; it is a share, 0 to 1")
    if cfg.randoms < 2:
        raise ValueError(f"{what}: --randoms {cfg.randoms} asked; it must be 2 or more")
    if cfg.match:
        read_match(cfg.match)
        load_neutral(cfg.data / NEUTRAL, SPLIT)


def load_splits(cfg: Common) -> tuple[Loaded, Loaded]:
    """(validation, test): one model, the items of both splits, checked to be disjoint."""
    test = load(cfg)
    validation = load_items(cfg.data, "validation", cfg.dilemmas)
    check_disjoint(validation, test.items)
    return test._replace(items=validation), test


def check_disjoint(validation: Sequence[Item], test: Sequence[Item]) -> None:
    """Raises ValueError where a claim or dilemma stands in both splits."""
    known = {(i.dataset, i.cluster) for i in validation}
    if both := sorted({(i.dataset, i.cluster) for i in test} & known):
        raise ValueError(
            f"benchmark: {len(both)} clusters are in the validation and in the test split, such as "
            f"{both[0]}; what is selected on an item must not be reported on it"
        )


def of_poles(cfg: Options, pairs: Pairs) -> list[Variant]:
    """dW of every family as a candidate at every dose, its halves tau_pos and -tau_neg, and -dW."""
    minus = tuple(-a for a in cfg.alphas)
    return [
        Variant(name, delta, family=family, seed=seed, alphas=alphas)
        for (family, seed), pair in pairs.items()
        for name, delta, alphas in (
            (DW, pair.dW, cfg.alphas),
            (f"-{DW}", pair.dW, minus),
            ("tau_pos", pair.pos, cfg.alphas),
            ("-tau_neg", pair.neg, minus),
        )
    ]


def of_dW(cfg: Options, pairs: Pairs) -> list[Variant]:
    """Those without the halves: dW, and -dW towards the other pole."""
    return [v for v in of_poles(cfg, pairs) if v.name in (DW, f"-{DW}")]


def choose(
    cfg: Options,
    experiment: str,
    validation: Loaded,
    candidates: Sequence[Variant],
    against: Collection[str] = ("-dW",),
) -> Picks | None:
    """{way: the candidate with the largest effect on validation items}; None of a shard.

    Ways in `against` aim at the other pole: theirs is the smallest effect. With cfg.match only
    candidates at that dose are scored; a way without one has no pick, which is said.
    """
    unmatched: list[Dosed] = []
    if cfg.match:
        ways = dict.fromkeys(way(c.name) for c in candidates)
        dosed = at_dose(cfg, validation, candidates)
        candidates = [d for d in dosed if d.dose.converged is not False]
        unmatched = [d for d in dosed if d.dose.converged is False]
        lost = [w for w in ways if w not in {way(c.name) for c in candidates}]
        if DW in lost or len(lost) == len(ways):
            raise ValueError(f"benchmark: no dW comes to {cfg.match}; ask for another --match")
        for name in lost:
            console.print(f"{name}: no candidate comes to {cfg.match} at any coefficient")
    runs = sum(len(c.alphas or cfg.alphas) for c in candidates)
    rows = run(cfg, f"{experiment}.validation", validation, candidates, runs)
    if rows is None:
        return None
    picks = Picks(picked(rows, candidates, cfg.most_flagged, against))
    picks.rows, picks.unmatched = rows, unmatched
    return picks


def at_dose(cfg: Options, at: Loaded, variants: Sequence[Variant]) -> list[Dosed]:
    """The variants at the alphas that --match asks for, with what is known of their doses."""
    assert cfg.match
    match, texts = read_match(cfg.match), load_neutral(cfg.data / NEUTRAL, SPLIT)[:TEXTS]
    kl = Divergence(at.model, at.tok, texts)
    candidates = len({(v.method, v.name, v.family, v.k) for v in variants})
    with progress(f"matching {cfg.match}", candidates) as done:
        return matched(match, kl, variants, cfg.alphas, done)


def picked(
    rows: pl.DataFrame,
    candidates: Iterable[Variant],
    most_flagged: float = MOST_FLAGGED,
    against: Collection[str] = (),
) -> dict[str, Chosen]:
    """{way: the candidate with the largest effect of `rows`, the mean over data sets and seeds}.

    A candidate with more than `most_flagged` of its rows flagged does not count; of a way that has
    no other, the least flagged is taken, with the role "flagged", and ValueError raised for dW.
    Ways in `against` are picked by the smallest effect.
    """
    key = ["method", "family", "variant", "k", "alpha"]
    found = (
        effect_table(rows, resamples=2)
        .group_by(key)
        .agg(validation=pl.col("effect").mean(), flagged=pl.col("flagged_share").max())
        .with_columns(way=pl.col("variant").str.split("@").list.first())
    )
    aim = pl.when(pl.col("way").is_in(list(against))).then(-1).otherwise(1)
    allowed = pl.max_horizontal(pl.col("flagged").min().over("way"), pl.lit(most_flagged))
    good = found.filter(pl.col("flagged") <= allowed)
    if any(good.filter(way=DW)["flagged"] > most_flagged):
        raise ValueError(
            f"benchmark: every candidate of {DW} has more than {most_flagged:.0%} of its rows "
            "flagged (little mass on Yes and No, or a dose lost in the dtype's rounding); give "
            "other doses, a wider --dtype or a higher --most-flagged"
        )
    order = good.sort(aim * pl.col("validation"), *key[1:], descending=[True] + [False] * 4)
    known: dict[tuple, list[Variant]] = {}
    for c in candidates:
        known.setdefault((c.method, c.family, c.name, c.k), []).append(c)
    picks = {}
    for r in order.group_by("way", maintain_order=True).first().iter_rows(named=True):
        seeds = known[r["method"], r["family"], r["variant"], r["k"]]
        first, *others = (replace(c, alphas=(r["alpha"],)) for c in seeds)
        role = "flagged" if r["flagged"] > most_flagged else "selected"
        picks[r["way"]] = Chosen(first, r["validation"], tuple(others), role)
    return picks


def report_on(
    cfg: Options,
    experiment: str,
    test: Loaded,
    chosen: Mapping[str, Chosen],
    controls: Sequence[Variant] = (),
    held: Sequence[Variant] = (),
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(rows, table) of what was chosen and of controls at their own doses, on test items.

    With cfg.match the controls are brought to its dose first, those in `held` stay at theirs.
    Random ones are scored at a hundredth of their dose, too (`faint`).

    The table is that of `compare` against the chosen dW, with way, role ("selected", "flagged" or
    "control") and validation, the effect that selected a line. Chosen vectors and synthetic changes
    are kept in <out>/<experiment>.chosen, for T11. All seeds of what was chosen make
    one line, and draws of a random control are one variant under several seeds: the interval of a
    line then covers its seeds, or its draws, too.
    """
    cfg = replace(cfg, shard=None)
    controls = at_dose(cfg, test, controls) if cfg.match and controls else controls
    held = [*held, *faint([*controls, *held])]
    variants = [v for c in chosen.values() for v in (c.variant, *c.others)] + [*controls, *held]
    rows = run(cfg, experiment, test, variants, len(variants))
    assert rows is not None
    base = tensors_sha256(dict(test.model.named_parameters()))
    about = {
        "experiment": experiment,
        "model": cfg.model,
        "match": cfg.match,
        "behaviour": cfg.behaviour,
    }
    keep_chosen(cfg.out / f"{experiment}.chosen", chosen, base, about)
    reference = chosen[DW].variant
    table = compare(
        rows,
        {"variant": DW, "family": reference.family, "alpha": (reference.alphas or cfg.alphas)[0]},
        resamples=cfg.resamples,
    )
    on = {"variant": pl.String, "family": pl.String, "alpha": pl.Float64}
    selected = pl.DataFrame(
        [
            (v.name, v.family, (v.alphas or cfg.alphas)[0], c.role, c.validation)
            for c in chosen.values()
            for v in [c.variant]
        ],
        schema=on | {"role": pl.String, "validation": pl.Float64},
        orient="row",
    )
    table = table.join(selected, on=[*on], how="left", nulls_equal=True, maintain_order="left")
    table = table.with_columns(pl.col("role").fill_null("control"))
    if cfg.match:
        unmatched = chosen.unmatched if isinstance(chosen, Picks) else ()
        table = _with_doses(cfg.match, table, variants, unmatched)
    for sentence in idle(table):
        console.print(sentence)
    return rows, table.with_columns(way=pl.col("variant").str.split("@").list.first())


def _with_doses(
    match: str, table: pl.DataFrame, variants: Sequence[Variant], unmatched: Sequence[Dosed]
) -> pl.DataFrame:
    """The table with match, dose_norm, kl, converged, and a line for each unmatched candidate.

    Those lines have the role "unmatched" and neither alpha nor effect.
    """
    own = ("method", "variant", "family", "k", "alpha")
    lines = [
        (d.method, d.name, d.family, d.k, (d.alphas or (None,))[0], *d.dose)
        for d in (*variants, *unmatched)
        if isinstance(d, Dosed)
    ]
    schema = {c: table.schema[c] for c in own}
    schema |= {"dose_norm": pl.Float64, "kl": pl.Float64, "converged": pl.Boolean}
    doses = pl.DataFrame(lines, schema=schema, orient="row").with_columns(match=pl.lit(match))
    table = table.join(
        doses.unique(own), on=own, how="left", nulls_equal=True, maintain_order="left"
    )
    if not unmatched:
        return table
    cells = table.select("experiment", *CELL).unique(maintain_order=True)
    lost = doses.tail(len(unmatched)).with_columns(
        alpha=pl.lit(None, pl.Float64), role=pl.lit("unmatched")
    )
    lost = cells.join(lost.unique(maintain_order=True), how="cross")
    return pl.concat([table, lost], how="diagonal_relaxed")


def compare(
    rows: pl.DataFrame,
    reference: Mapping[str, object],
    by: Sequence[str] = SUMMARY_KEYS,
    resamples: int = 2000,
) -> pl.DataFrame:
    """The benchmark table: effects against the base, differences against the reference, q of both.

    `reference` names the line that the others are measured against, usually the selected dW. A
    method is beaten, or beats it, where [diff_lo, diff_hi] excludes 0. The base itself is the last
    line of each data set.
    """
    table = benjamini_hochberg(contrast(rows, reference, by, resamples=resamples))
    apart = benjamini_hochberg(table.with_columns(p="diff_p").drop("q"))
    table = table.with_columns(diff_q=apart["q"])
    return pl.concat([table, base_lines(rows)], how="diagonal_relaxed")


def prompts(wordings: Mapping[str, Sequence[str]]) -> Iterator[Variant]:
    """Every wording alone."""
    for name, systems in wordings.items():
        for i, system in enumerate(systems):
            yield Variant(f"{name}@{i}", method="prompt", system=system, alphas=(1.0,))
