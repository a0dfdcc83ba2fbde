"""Equal doses: the alpha at which a way of steering changes weights, or replies, by a given amount.

    norm:x   |alpha dW| = x, the Frobenius norm over all tensors
    kl:x     KL(base || steered) = x nats: sum_v p0(v) log(p0(v) / p1(v)) of the next token v, the
             mean over the positions of neutral replies (replies.py)

A candidate, all variants of one method, name, family and k, gets one alpha, and its seeds or draws
are averaged: their mean norm or mean KL is x. A prompt has no dose; its KL is measured only.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import copysign, inf, isfinite, nan, sqrt
from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import Factored, norm
from wscore.factored import outline
from wsrun.data.replies import Encoded, Reply, encode
from wsrun.score.logprobs import NUMBERS, NotFinite, changed, log_probs
from wsrun.score.sweep import Variant

SPLIT = "validation"  # of the neutral texts: T11 measures cost on those of the test split
TEXTS = 24  # how many neutral texts the KL is taken on
TOLERANCE = 0.02  # relative, of the KL that is met
NO_SENSE = 2.0**40  # an alpha beyond it, or below its inverse, is no dose
STEPS = 60  # of the bisection; a jump at which no alpha meets the target ends it


class Match(NamedTuple):
    """What is made equal, and to what value."""

    by: Literal["kl", "norm"]
    target: float


class Dose(NamedTuple):
    """What a variant at its alpha amounts to: |alpha dW|, KL in nats, and whether x was met.

    norm is None for activations and prompts; converged is None for prompts, which have no dose.
    """

    norm: float | None = None
    kl: float = nan
    converged: bool | None = None


@dataclass(frozen=True)
class Dosed(Variant):
    """A variant at the one alpha that was matched, with its dose."""

    dose: Dose = Dose()


def read_match(text: str) -> Match:
    """The match of "kl:0.5" or "norm:4"; raises ValueError for anything else."""
    by, _, value = text.partition(":")
    try:
        target = float(value)
    except ValueError:
        target = nan
    if by not in ("kl", "norm") or not (isfinite(target) and target > 0):
        raise ValueError(f"match: {text!r} asked; give kl:X in nats or norm:X, with X above 0")
    return Match(by, target)  # type: ignore[arg-type]


class Divergence:
    """KL(base || steered) on neutral replies, with the base's distributions kept."""

    def __init__(
        self, model: PreTrainedModel, tok: PreTrainedTokenizerBase, texts: Sequence[Reply]
    ) -> None:
        self.model, self.tok, self.texts = model, tok, texts
        self.plain = encode(tok, texts)
        self.base = {i: (logp, ids) for i, logp, ids in log_probs(model, self.plain)}

    def __call__(self, variant: Variant, alpha: float) -> float:
        """Nats a position; infinite where the steered model's logits are not finite."""
        try:
            with changed(self.model, variant, alpha):
                return self._mean(self._replies(variant.system))
        except NotFinite:
            return inf

    def _replies(self, system: str | None) -> list[Encoded]:
        return self.plain if system is None else encode(self.tok, self.texts, system)

    def _mean(self, replies: Sequence[Encoded]) -> float:
        total, positions = 0.0, 0
        for i, logp, ids in log_probs(self.model, replies):
            base, known = self.base[i]
            if not torch.equal(ids, known):
                raise ValueError(
                    f"match: the text of {self.texts[i].item!r} has other tokens under a system "
                    "turn; let it begin with a whole word"
                )
            total += float(divergence(base, logp).sum())
            positions += len(base)
        return total / positions


def divergence(base: torch.Tensor, logp: torch.Tensor) -> torch.Tensor:
    """KL(base || other) = sum_v p0 (log p0 - log p1) of each row of log-probabilities, in float64.

    A token of probability 0 under the base adds nothing.
    """
    p = base.double().exp()
    return torch.where(p > 0, p * (base.double() - logp.double()), 0).sum(-1)


def matched(
    match: Match,
    kl: Callable[[Variant, float], float],
    variants: Iterable[Variant],
    alphas: Sequence[float] = (1.0,),
    done: Callable[[str], None] = lambda note: None,
) -> list[Dosed]:
    """The variants at the alphas of equal dose, the first sign of their alphas kept (`alphas` where
    a variant has none of its own).

    kl is a `Divergence`. A candidate that has no such alpha stays at its first one, with converged
    = False and the last KL that was tried. Raises ValueError for a norm asked of activations.
    """
    groups: dict[tuple, list[Variant]] = {}
    for v in variants:
        groups.setdefault((v.method, v.name, v.family, v.k), []).append(v)
    found = []
    for group in groups.values():
        found += _dosed(match, kl, group, group[0].alphas or tuple(alphas))
        done(group[0].name)
    return found


def _dosed(
    match: Match,
    kl: Callable[[Variant, float], float],
    group: list[Variant],
    alphas: tuple[float, ...],
) -> list[Dosed]:
    """The members of one candidate at their dose."""
    group = _held(group)
    one, sign, alpha = group[0], copysign(1.0, alphas[0]), abs(alphas[0])
    sizes = [norm(v.change()) for v in group if v.delta is not None]
    size = sum(sizes) / len(sizes) if sizes else None

    def mean_kl(alpha: float) -> float:
        return sum(kl(v, sign * alpha) for v in group) / len(group)

    if match.by == "norm" and one.vectors:
        raise ValueError(
            f"match: {one.name!r} adds to activations, which have no |alpha dW|; use kl:X"
        )
    if size is None and not one.vectors:
        alpha, found, met = 1.0, mean_kl(1.0), None
    elif size == 0 and not one.vectors:
        found, met = 0.0, False
    elif match.by == "norm":
        alpha, met = match.target / size, True  # type: ignore[operator]
        found = mean_kl(alpha)
    else:
        solved, found, met = solve(mean_kl, match.target)
        alpha = solved if met else alpha
    dose = Dose(None if size is None else alpha * size, found, met)
    return [_with(v, sign * alpha, dose) for v in group]


def _held(group: list[Variant]) -> list[Variant]:
    """The group with changes made once, in place of at every alpha, where they are small enough."""
    numbers, held = 0, []
    for v in group:
        if callable(v.delta) and numbers <= NUMBERS:
            v = replace(v, delta=v.delta())
        change = v.delta if isinstance(v.delta, Mapping) and numbers <= NUMBERS else {}
        if not isinstance(change, Factored):
            numbers += sum(outline(change, name).numel() for name in change)
        held.append(v)
    return held


def _with(v: Variant, alpha: float, dose: Dose) -> Dosed:
    own: dict[str, Any] = {f.name: getattr(v, f.name) for f in fields(Variant)}
    return Dosed(**(own | {"alphas": (alpha,), "dose": dose}))


def solve(f: Callable[[float], float], target: float) -> tuple[float, float, bool]:
    """(alpha, f(alpha), True) with f(alpha) = target within 2 %; (last alpha, f of it, False).

    From 1 alpha is doubled until f has passed the target, or halved until it has not, without a
    bound but `NO_SENSE`; then the bracket is halved on the log scale. An infinite f has passed.
    False where no bracket is found, or where f jumps over the target.
    """
    alpha = 1.0
    found = f(alpha)
    factor = 2.0 if found < target else 0.5
    while (found < target) == (factor > 1):
        if not 1 / NO_SENSE < alpha * factor < NO_SENSE:
            return alpha, found, False
        alpha *= factor
        found = f(alpha)
    low, high = sorted((alpha, alpha / factor))
    for _ in range(STEPS):
        if abs(found - target) <= TOLERANCE * target:
            return alpha, found, True
        alpha = sqrt(low * high)
        found = f(alpha)
        low, high = (alpha, high) if found < target else (low, alpha)
    return alpha, found, False
