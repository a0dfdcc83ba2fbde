"""The sweep: every variant at every alpha, one row an item."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import cast

import polars as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore.entries import number
from wsrun.data.items import Item, with_system
from wsrun.models.hooks import check_layers
from wsrun.models.load import check_positions
from wsrun.models.machine import model_state, unkeyed
from wsrun.models.memory import within_memory
from wsrun.score.plan import plan
from wsrun.score.scorer import (
    ALL_LEVERS,
    FEWER,
    PROMPT_STYLE,
    TOKENS,
    Engines,
    Levers,
    Scorer,
    check_fits,
    choose_engine,
)
from wsrun.score.variants import BASE, Variant, completed, labelled
from wsrun.steer.held import Held
from wsrun.steer.interventions import Intervention, WeightDelta
from wsrun.steer.weights import Rounding, rounding_error, touched_parameters

MIN_MASS = 0.5
MIN_COSINE = 0.99
REPLY_STYLE = "chat-reply-1"
"""prompt_style of rows whose answers are replies; PROMPT_STYLE is that of answers of one token"""


Variants = Iterable[Variant] | Mapping[str, Mapping[str, Tensor] | Intervention]


def sweep(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    items: Sequence[Item],
    variants: Variants,
    alphas: Sequence[float],
    *,
    experiment: str = "",
    model_name: str = "",
    behaviour: str = "",
    cache_dir: str | Path | None = None,
    engine: str = "auto",
    tokens: int | None = None,
    levers: Levers = ALL_LEVERS,
    progress: Callable[[str], None] = lambda name: None,
    warn: Callable[[str], None] = lambda notice: None,
) -> pl.DataFrame:
    """Rows (ROW_SCHEMA) of every variant at every alpha, and of the base once.

    variants: `Variant`s, or interventions or weight deltas by name. alpha = 0 is scored once, as
    variant "base". A row is flagged where its mass is below 0.5, or where the dtype realised the
    weight change with a cosine below 0.99. dtype_noise is the rms change of a base margin of the
    row's data set under one more rounding of the states that enter the first layer (`jittered`): an
    effect below it is within what the dtype leaves open.

    experiment, model_name and behaviour fill the columns of these names. `cache_dir` is a folder in
    which finished (change, alpha) are kept and found (results.py), unless code is hooked into the
    model, which no key can hold: `warn` gets a line, and nothing is kept. engine: "auto" takes the
    cached engine where its proof passes on this model, else gives `warn` one line that says why not
    and takes the plain one; "cached" and "plain" insist. `tokens` is the size of a batch.
    `progress` is called with the variant's name after each (variant, alpha).
    """
    size = tokens or TOKENS[model.device.type == "cuda"]
    if cache_dir and (code := unkeyed(model)):
        warn(f"results are neither kept nor found: the model has {code}, which no key can hold")
        cache_dir = None
    state = model_state(model) if cache_dir else {}
    engines = Engines(model, engine, size, levers, warn)

    @cache
    def under(system: str | None) -> Scorer:
        prompted = items if system is None else [with_system(i, system) for i in items]
        return Scorer(model, plan(tok, prompted), engines, cache_dir, state)

    plain = under(None)
    frames = [_rows(plain.base, BASE, 0.0, None)]
    noise = _noise(plain.base, plain.jittered())
    progress(BASE.name)
    for variant in _listed(variants):
        change = _checked(model, variant)
        scorer = under(change.system())
        for alpha in _doses(variant, alphas):
            scores = scorer.at(change, alpha)
            frames.append(_rows(scores, variant, alpha, _rounding(model, change, alpha)))
            progress(variant.name)
    replied = pl.col("mass").is_null()
    return completed(
        (frame.join(noise, "dataset", how="left", maintain_order="left") for frame in frames),
        experiment=experiment,
        model=model_name,
        behaviour=behaviour,
        prompt_style=pl.when(replied).then(pl.lit(REPLY_STYLE)).otherwise(pl.lit(PROMPT_STYLE)),
    )


def score(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    items: Sequence[Item],
    *,
    engine: str = "auto",
) -> pl.DataFrame:
    """Columns dataset, item, cluster, label, margin, mass for the model as it stands."""
    p = plan(tok, items)
    check_positions(model, p.sequences, "score")
    check_fits(model, p, engine)
    with within_memory("score", FEWER):
        chosen, _ = choose_engine(
            model, p.sequences, engine=engine, cache_bytes=0, readout=p.readout
        )
        return p.frame(*p.results(chosen.run()))


def _listed(variants: Variants) -> Iterable[Variant]:
    if not isinstance(variants, Mapping):
        return variants
    named = cast(Mapping[str, Mapping[str, Tensor] | Intervention], variants).items()
    return [Variant(n, x if isinstance(x, Intervention) else WeightDelta(x)) for n, x in named]


def _checked(model: PreTrainedModel, variant: Variant) -> Held:
    """The variant's intervention with its change made; refused where it does not fit the model."""
    change = Held(variant.intervention)
    delta, edits = change.delta(), check_layers(model, change.edits())
    if not (delta or edits) and change.system() is None:
        raise ValueError(f"sweep: variant {variant.name!r} changes nothing; leave it out")
    if delta:
        touched_parameters(model, delta)
    return change


def _doses(variant: Variant, alphas: Sequence[float]) -> list[float]:
    """The alphas of a variant that are not 0; ValueError for one that is no finite real number."""
    numbers = [number(a, f"sweep: an alpha of {variant.name!r}") for a in variant.alphas or alphas]
    return [a for a in numbers if a != 0]


def _noise(base: pl.DataFrame, jittered: pl.DataFrame) -> pl.DataFrame:
    """dtype_noise of each data set: the rms of jittered - base margins, row by row."""
    change = base.select("dataset", change=jittered["margin"] - pl.col("margin"))
    return change.group_by("dataset").agg(dtype_noise=pl.col("change").pow(2).mean().sqrt())


def _rounding(model: PreTrainedModel, change: Intervention, alpha: float) -> Rounding | None:
    exact = model.dtype in (torch.float32, torch.float64)
    if exact or not any(t.any() for t in change.delta().values()):
        return None  # also where only activations or the prompt change
    return rounding_error(model, change.delta(), alpha)


def _rows(
    scored: pl.DataFrame, variant: Variant, alpha: float, rounding: Rounding | None
) -> pl.DataFrame:
    crude = rounding is not None and rounding.cosine < MIN_COSINE
    return labelled(scored, variant, alpha).with_columns(
        ((pl.col("mass") < MIN_MASS).fill_null(False) | pl.lit(crude)).alias("flagged"),
        pl.lit(rounding and rounding.norm_ratio, pl.Float64).alias("realised_norm_ratio"),
        pl.lit(rounding and rounding.cosine, pl.Float64).alias("realised_cosine"),
    )
