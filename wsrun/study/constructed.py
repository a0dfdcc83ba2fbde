"""Constructed weight changes in the benchmark: made of a persona contrast and base weights alone.

    dW' = c x^T / |x|^2,  so  (W + dW') x = W x + c

What a weight adds on its mean input x is the contrast c of its own outputs under two personas. They
are made of the model, the personas and the questions: no trained delta enters.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import polars as pl
from torch import Tensor

from wscore import DeltaLike, cosine, effect_table, subset, tensors_sha256, writes_residual
from wscore.stats.schema import KEYS
from wsrun.data.items import PREFILL
from wsrun.data.pairs import load_questions
from wsrun.data.personas import load_personas
from wsrun.data.source import beside
from wsrun.report.console import progress
from wsrun.score.variants import Variant
from wsrun.steer import structure
from wsrun.steer.constructed import Per, rank_one, rotated, sized
from wsrun.steer.contrast import Contrast, persona_contrast
from wsrun.steer.interventions import ConstructedDelta
from wsrun.study.options import BenchmarkOptions, check_once
from wsrun.study.selected import Selection
from wsrun.study.session import Session

WHERE = {"answer": PREFILL, "start": ""}
SIZES: dict[str, Per] = {"raw": "all", "even": "tensor"}
RANDOM = "random_contrast"


@dataclass(frozen=True)
class ConstructedOptions(BenchmarkOptions):
    """Options of the experiments with constructed changes."""

    doses: tuple[float, ...] = (0.08, 0.16, 0.24, 0.32, 0.48, 0.64)
    """coefficients of constructed changes to choose from, as |dW'| / |W|"""
    positive: str = "honest"
    """persona of personas.json towards which is steered"""
    negative: str = "dishonest"
    """persona of personas.json away from which is steered"""
    questions: int | None = None
    """how many training questions the contrast is measured on, the first ones; None for all"""


class Setting(NamedTuple):
    """A contrast, and its sizes: as measured, scaled over "all", or even, |W| per "tensor"."""

    contrast: Contrast
    per: Per


def check_constructed(cfg: ConstructedOptions, what: str) -> None:
    """Refuse options that cannot work before anything is loaded; `what` names the script."""
    check_once(what, {"doses": cfg.doses})
    if any(not a > 0 for a in cfg.doses):
        raise ValueError(f"{what}: --doses must be above 0")
    if cfg.questions is not None and cfg.questions < 1:
        raise ValueError(f"{what}: --questions must be at least 1, got {cfg.questions}")


def measure(
    cfg: ConstructedOptions, session: Session
) -> tuple[dict[str, Tensor], dict[str, Setting]]:
    """(base weights that write the residual stream, settings by name), from the base model alone.

    A setting is a place and the sizes. Contrasts are measured on training questions, where an
    evaluated answer would be read ("answer") or where any answer begins ("start"); their sizes over
    tensors stay ("raw") or are those of the base weights ("even").
    """
    questions = load_questions(beside(cfg.data, "questions.jsonl"), "train")[: cfg.questions]
    prompts = [q["prompt"] for q in questions]
    file = beside(cfg.data, "personas.json")
    positive, negative = load_personas(file, cfg.positive, cfg.negative)
    weights = structure.weights(session.model, writes_residual)
    settings = {}
    with progress("persona contrasts", 3 * len(WHERE)) as step:
        for where, prefill in WHERE.items():
            contrast = persona_contrast(
                session.model, session.tok, prompts, positive, negative, weights, prefill, step
            )
            settings |= {f"{where} {size}": Setting(contrast, per) for size, per in SIZES.items()}
    return {name: w.float().cpu() for name, w in weights.items()}, settings


def whole_contrasts(
    base: Mapping[str, Tensor], settings: Mapping[str, Setting]
) -> dict[str, DeltaLike]:
    """{"contrast@setting": dW' of |dW'| = |W|}."""
    return {
        f"contrast@{name}": sized(rank_one(contrast), base, per)
        for name, (contrast, per) in settings.items()
    }


def hashes(made: Mapping[str, DeltaLike]) -> dict[str, str]:
    """{name: sha256 of a constructed change}, for the provenance."""
    return {name: tensors_sha256(d) for name, d in made.items()}


def size_of(s: Selection) -> tuple[str, float]:
    """(setting, |alpha|), by which a method and the random contrasts of its size are matched."""
    return s.variant.name.partition("@")[2], abs(s.alpha)


def random_contrasts(
    base: Mapping[str, Tensor],
    settings: Mapping[str, Setting],
    sizes: Sequence[tuple[str, float]],
    draws: int,
) -> Iterator[Variant]:
    """The contrasts of some (setting, alpha), rotated at random, of |dW'| = |W|."""
    for i in range(draws):
        for name, alpha in sorted(sizes):
            contrast, per = settings[name]
            null = sized(rank_one(rotated(contrast, i)), base, per)
            variant = f"{RANDOM}@{name} {alpha:g}"
            yield Variant(variant, ConstructedDelta(null), alphas=(alpha,), seed=i)


def above_random(rows: pl.DataFrame, table: pl.DataFrame) -> pl.Series:
    """below: the share of the random contrasts of a line's size with less effect.

    A random direction has no pole, so the draws at an alpha serve both of its signs.
    """
    drawn = pl.col("variant").str.starts_with(f"{RANDOM}@")
    each = effect_table(rows.filter(drawn | (pl.col("alpha") == 0)), KEYS, resamples=2)
    effects = each.group_by("dataset", "variant").agg(pl.col("effect"))
    effects_of = {(d, v): e for d, v, e in effects.iter_rows()}

    def below(line: dict[str, Any]) -> float | None:
        if line["alpha"] is None:  # a candidate that has not the dose asked for
            return None
        name = f"{RANDOM}@{line['variant'].partition('@')[2]} {abs(line['alpha']):g}"
        draws = effects_of.get((line["dataset"], name))
        return draws and sum(e < line["effect"] for e in draws) / len(draws)

    shares = [below(line) for line in table.iter_rows(named=True)]
    return pl.Series("below", shares, dtype=pl.Float64)


def cosines(table: pl.DataFrame, made: Mapping[str, DeltaLike], dW: Mapping) -> pl.Series:
    """cos(dW', dW) over the weights that both change, null for other lines and without any."""

    def alike(name: str) -> float | None:
        d = made.get(name.removeprefix("-"), {})
        both = [n for n in d if n in dW]
        return cosine(subset(d, both), subset(dW, both)) if both else None

    cosine_of = {name: alike(name) for name in set(table["variant"])}
    return pl.Series("cos_dW", [cosine_of[name] for name in table["variant"]], dtype=pl.Float64)
