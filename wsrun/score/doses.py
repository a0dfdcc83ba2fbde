"""Equal doses: the alpha at which an intervention changes weights, or replies, by a given amount.

    norm:x   |alpha dW| = x, the Frobenius norm over all tensors
    kl:x     KL(base || steered) = x nats: sum_v p0(v) log(p0(v) / p1(v)) of the next token v, the
             mean over the positions of neutral replies (replies.py)

A candidate, all variants of one method, name, family and k, gets one alpha, and its seeds or draws
are averaged: their mean norm or mean KL is x. What has no dose, a prompt, stays at alpha 1, and its
KL is measured only.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import copysign, inf, isfinite, nan, sqrt
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import Factored
from wscore.factored import meta
from wsrun.data.replies import Encoded, Reply, encode
from wsrun.score.logprobs import NUMBERS, NotFinite, log_probs
from wsrun.score.variants import Dose, Variant
from wsrun.steer.held import Held
from wsrun.steer.interventions import Intervention, applied

SPLIT = "validation"  # of the neutral texts: T11 measures cost on those of the test split
TEXTS = 24  # how many neutral texts the KL is taken on
TOLERANCE = 0.02  # relative, of the KL that is met
NO_SENSE = 2.0**40  # an alpha beyond it, or below its inverse, is no dose
STEPS = 60  # of the bisection; a jump at which no alpha meets the target ends it
KL = Callable[[Intervention, float], float]


class Match(NamedTuple):
    """What is made equal, and to what value."""

    by: Literal["kl", "norm"]
    target: float


def read_match(text: str) -> Match:
    """The match of "kl:0.5" or "norm:4"; raises ValueError for anything else."""
    by, _, value = text.partition(":")
    try:
        target = float(value)
    except ValueError:
        target = nan
    if by not in ("kl", "norm") or not (isfinite(target) and target > 0):
        raise ValueError(f"match: must be kl:X in nats or norm:X, with X above 0, got {text!r}")
    return Match(by, target)  # type: ignore[arg-type]


class Divergence:
    """KL(base || steered) on neutral replies, with the base's distributions kept."""

    def __init__(
        self, model: PreTrainedModel, tok: PreTrainedTokenizerBase, texts: Sequence[Reply]
    ) -> None:
        self.model, self.tok, self.texts = model, tok, texts
        self.plain = encode(tok, texts)
        self.base = {i: (logp, ids) for i, logp, ids in log_probs(model, self.plain)}

    def __call__(self, intervention: Intervention, alpha: float) -> float:
        """Nats a position; infinite where the steered model's logits are not finite."""
        try:
            with applied(self.model, intervention, alpha):
                return self._mean(self._replies(intervention.system()))
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


def divergence(base: Float[Tensor, "t v"], logp: Float[Tensor, "t v"]) -> Float[Tensor, " t"]:
    """KL(base || other) = sum_v p0 (log p0 - log p1) of each row of log-probabilities, in float64.

    A token of probability 0 under the base adds nothing.
    """
    p = base.double().exp()
    return torch.where(p > 0, p * (base.double() - logp.double()), 0).sum(-1)


def matched(
    match: Match,
    kl: KL,
    variants: Iterable[Variant],
    alphas: Sequence[float] = (1.0,),
    done: Callable[[str], None] = lambda note: None,
) -> list[Variant]:
    """The variants at the alphas of equal dose, each with its `dose`, the first sign of their
    alphas kept (`alphas` where a variant has none of its own).

    kl is a `Divergence`. A candidate that has no such alpha stays at its first one, with converged
    = False and the last KL that was tried. Raises ValueError for a norm asked of what changes
    more than weights, or none.
    """
    groups: dict[tuple, list[Variant]] = {}
    for v in variants:
        groups.setdefault((v.method, v.name, v.family, v.k), []).append(v)
    dosed = []
    for group in groups.values():
        first, *_ = group[0].alphas or tuple(alphas)
        alpha, dose = _solved(match, kl, group, first)
        dosed += [replace(v, alphas=(alpha,), dose=dose) for v in group]
        done(group[0].name)
    return dosed


def _solved(match: Match, kl: KL, group: list[Variant], first: float) -> tuple[float, Dose]:
    """(alpha, dose) of one candidate."""
    held = _held(group)
    sign, alpha = copysign(1.0, first), abs(first)

    def mean_kl(alpha: float) -> float:
        return sum(kl(i, sign * alpha) for i in held) / len(held)

    if not held[0].has_dose:
        return sign, Dose(None, mean_kl(1.0), None)
    sizes = [size for i in held if (size := i.size()) is not None]
    size = sum(sizes) / len(sizes) if sizes else None
    if match.by == "norm" and size is None:
        raise ValueError(
            f"match: {group[0].name!r} does not change weights alone and has no |alpha dW|; use"
            " kl:X"
        )
    if size == 0:
        reached, met = 0.0, False
    elif match.by == "norm":
        alpha, met = match.target / size, True  # type: ignore[operator]
        reached = mean_kl(alpha)
    else:
        solved, reached, met = solve(mean_kl, match.target)
        alpha = solved if met else alpha
    return sign * alpha, Dose(None if size is None else alpha * size, reached, met)


def _held(group: list[Variant]) -> list[Intervention]:
    """The interventions, with changes made once in place of at every alpha while there is room."""
    numbers, held = 0, []
    for i in (v.intervention for v in group):
        if numbers <= NUMBERS:
            i = Held(i)
            numbers += _numbers(i.delta())
        held.append(i)
    return held


def _numbers(d: Mapping[str, Tensor]) -> int:
    """How many numbers a change keeps in memory; factors count for nothing."""
    return 0 if isinstance(d, Factored) else sum(meta(d, name).numel() for name in d)


def solve(f: Callable[[float], float], target: float) -> tuple[float, float, bool]:
    """(alpha, f(alpha), True) with f(alpha) = target within 2 %; (last alpha, f of it, False).

    From 1 alpha is doubled until f has passed the target, or halved until it has not, without a
    bound but `NO_SENSE`; then the bracket is halved on the log scale. An infinite f has passed.
    False where no bracket is found, or where f jumps over the target.
    """
    alpha = 1.0
    value = f(alpha)
    factor = 2.0 if value < target else 0.5
    while (value < target) == (factor > 1):
        if not 1 / NO_SENSE < alpha * factor < NO_SENSE:
            return alpha, value, False
        alpha *= factor
        value = f(alpha)
    low, high = sorted((alpha, alpha / factor))
    for _ in range(STEPS):
        if abs(value - target) <= TOLERANCE * target:
            return alpha, value, True
        alpha = sqrt(low * high)
        value = f(alpha)
        low, high = (alpha, high) if value < target else (low, alpha)
    return alpha, value, False
