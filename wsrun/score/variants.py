"""Variants: labelled interventions of a sweep, and what their rows say of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import nan
from typing import NamedTuple

import polars as pl

from wscore.stats.schema import ROW_SCHEMA
from wsrun.steer.interventions import Intervention


class Dose(NamedTuple):
    """What a variant at its alpha amounts to: |alpha dW|, KL in nats, and whether x was met.

    norm is None for activations and prompts; converged is None for prompts, which have no dose.
    """

    norm: float | None = None
    kl: float = nan
    converged: bool | None = None


@dataclass(frozen=True)
class Variant:
    """An intervention under a name, with what tables say of it.

    family, k, seed: of the adapter, the subspace and the draw, where there are such.
    dose: what it amounts to at its one alpha, where that was matched (doses.py).
    """

    name: str
    intervention: Intervention
    alphas: tuple[float, ...] | None = None  # None: the alphas of the sweep
    family: str | None = None
    k: int | None = None
    seed: int | None = None
    dose: Dose | None = None

    @property
    def method(self) -> str:
        return self.intervention.method


class Base(Intervention):
    """The model as it is."""

    method = "base"


BASE = Variant("base", Base())
REPLY_STYLE = "chat-reply-1"
"""prompt_style of rows about replies in the chat template; PROMPT_STYLE: about one token"""


def labelled(frame: pl.DataFrame, variant: Variant, alpha: float) -> pl.DataFrame:
    """The frame with what the variant's rows say of it."""
    return frame.with_columns(
        pl.lit(variant.method).alias("method"),
        pl.lit(variant.family, pl.String).alias("family"),
        pl.lit(variant.name).alias("variant"),
        pl.lit(variant.k, pl.Int64).alias("k"),
        pl.lit(float(alpha)).alias("alpha"),
        pl.lit(variant.seed, pl.Int64).alias("seed"),
    )


def completed(frames: Iterable[pl.DataFrame], **columns: object) -> pl.DataFrame:
    """The frames as one table of ROW_SCHEMA with further columns: expressions, or constants."""
    further = {c: x if isinstance(x, pl.Expr) else pl.lit(x) for c, x in columns.items()}
    rows = pl.concat(frames).with_columns(**further)
    return rows.select(pl.col(c).cast(t) for c, t in ROW_SCHEMA.items())
