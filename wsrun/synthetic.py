"""Synthetic weight changes: made of a persona contrast and base weights, of no trained delta.

    dW' = c x^T / |x|^2,  so  (W + dW') x = W x + c

What a weight adds on its mean input x is the contrast c of its own outputs under two personas.
Construction is refused once the process has read a trained delta (`wscore.store.trained_reads`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from wscore import DeltaLike, Factored, match_norm, stream, tensors_sha256, writes_residual
from wscore.null import haar
from wscore.store import trained_reads
from wsrun import benchmark, structure
from wsrun.console import progress
from wsrun.items import PREFILL, load_personas
from wsrun.pairs import load_questions
from wsrun.persona import Contrast, persona_contrast
from wsrun.runs import Loaded

Per = Literal["tensor", "all"]
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


def check_unseen() -> None:
    """Raises RuntimeError, for a defect of the program, where a trained delta was read before."""
    if trained_reads:
        raise RuntimeError(
            f"synthetic: {len(trained_reads)} trained changes were read in this process before, "
            f"such as {trained_reads[0]!r}; construct synthetic changes first"
        )


def rank_one(contrast: Contrast) -> Factored:
    """dW' = c x^T / |x|^2 for every weight of the contrast, as factors in float32."""
    check_unseen()
    factors = {}
    for name, c in contrast.out.items():
        x = contrast.x[name]
        if not (size := float(x @ x)):
            raise ValueError(f"synthetic: the mean input of {name!r} is zero; leave it out")
        factors[name] = (c[:, None].float(), (x / size)[None].float())
    return Factored(factors)


def turned(contrast: Contrast, seed: int) -> Contrast:
    """Q c for all c, with one Haar-random rotation Q: the same lengths and mutual angles."""
    turns: dict[int, Tensor] = {}
    for c in contrast.out.values():
        if (d := len(c)) not in turns:
            turns[d] = haar(d, d, c, stream(seed, f"contrast/{d}"))
    return contrast._replace(out={n: turns[len(c)] @ c for n, c in contrast.out.items()})


def sized(d: DeltaLike, base: Mapping[str, Tensor], per: Per) -> DeltaLike:
    """d rescaled to |d| = |W| over the weights it changes, so that a dose is a share of |W|."""
    return match_norm(d, {name: base[name] for name in d}, per)


def unseen_record(made: Mapping[str, DeltaLike]) -> dict[str, Any]:
    """For the provenance, before any trained delta is read: what was made, and that none was."""
    check_unseen()
    return {"trained_reads": 0, "made": {name: tensors_sha256(d) for name, d in made.items()}}
