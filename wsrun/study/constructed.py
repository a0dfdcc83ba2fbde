"""Synthetic weight changes: made of a persona contrast and base weights, of no trained delta.

    dW' = c x^T / |x|^2,  so  (W + dW') x = W x + c

What a weight adds on its mean input x is the contrast c of its own outputs under two personas.
Construction is refused once the process has read a trained delta (`wscore.store.trained_reads`).
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from wscore import writes_residual
from wsrun.data.items import PREFILL
from wsrun.data.pairs import load_questions
from wsrun.data.personas import load_personas
from wsrun.report.console import progress
from wsrun.steer import structure
from wsrun.steer.constructed import Per, check_unseen
from wsrun.steer.contrast import Contrast, persona_contrast
from wsrun.study import benchmark
from wsrun.study.session import Loaded

WHERE = {"answer": PREFILL, "start": ""}
SIZES: dict[str, Per] = {"raw": "all", "even": "tensor"}


@dataclass(frozen=True)
class Options(benchmark.Options):
    """Options of the experiments with synthetic changes."""

    doses: tuple[float, ...] = (0.08, 0.16, 0.24, 0.32, 0.48, 0.64)
    """doses of synthetic changes to choose from, as |dW'| / |W|"""
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


def check(cfg: Options, what: str) -> None:
    """Refuse options that cannot work before anything is loaded; `what` names the script."""
    benchmark.check(cfg, what)
    if not cfg.doses or len(set(cfg.doses)) < len(cfg.doses) or any(not a > 0 for a in cfg.doses):
        raise ValueError(f"{what}: --doses must be above 0, at least one, each once")
    if cfg.questions is not None and cfg.questions < 1:
        raise ValueError(f"{what}: --questions {cfg.questions} asked; it must be 1 or more")


def measure(cfg: Options, at: Loaded) -> tuple[dict[str, Tensor], dict[str, Setting]]:
    """(base weights that write the residual stream, settings by name), from the base model alone.

    A setting is a place and the sizes. Contrasts are measured on training questions, where an
    evaluated answer would be read ("answer") or where any answer begins ("start"); their sizes over
    tensors stay ("raw") or are those of the base weights ("even").
    """
    check_unseen()
    asked = load_questions(cfg.data / "questions.jsonl", "train")[: cfg.questions]
    positive, negative = load_personas(cfg.data / "personas.json", cfg.positive, cfg.negative)
    weights = structure.weights(at.model, writes_residual)
    settings = {}
    with progress("persona contrasts", 3 * len(WHERE)) as step:
        for where, prefill in WHERE.items():
            prompts = [q["prompt"] for q in asked]
            found = persona_contrast(
                at.model, at.tok, prompts, positive, negative, weights, prefill, step
            )
            settings |= {f"{where} {size}": Setting(found, per) for size, per in SIZES.items()}
    return {name: w.float().cpu() for name, w in weights.items()}, settings
