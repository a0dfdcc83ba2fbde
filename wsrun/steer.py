"""Steering by weights: add alpha * dW to a model for as long as a `with` block lasts."""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

_Terms = tuple[tuple[float, Tensor], ...]


class _Ledger(NamedTuple):
    """What one model carries now: bit-exact originals and the scaled deltas added on top."""

    originals: dict[str, Tensor]
    terms: dict[str, _Terms]


_ledgers: "weakref.WeakKeyDictionary[nn.Module, _Ledger]" = weakref.WeakKeyDictionary()


@contextmanager
def steered(model: nn.Module, d: Mapping[str, Tensor], alpha: float) -> Iterator[nn.Module]:
    """W' = cast(W0 + alpha dW) inside the block; the weights' bits come back after it.

    d: parameter name -> change of that weight, in the weight's shape. The sum is taken in fp32 (or
    better, if the weight or delta is) from the kept original and cast once. Blocks nest: inside
    two of them a weight is cast(W0 + alpha1 dW1 + alpha2 dW2). The restore is a copy of the
    original and also happens after an exception or Ctrl-C. alpha = 0 changes nothing.

    Raises ValueError for an empty d, names the model does not have, other shapes, and two names
    that share one (tied) weight.
    """
    params = touched_parameters(model, d)
    if alpha == 0:
        yield model
        return
    ledger = _ledgers.setdefault(model, _Ledger({}, {}))
    before: dict[str, tuple[Tensor, _Terms]] = {}
    try:
        with torch.no_grad():
            for name, param in params.items():
                before[name] = param.detach().clone(), ledger.terms.get(name, ())
                original = ledger.originals.setdefault(name, before[name][0])
                ledger.terms[name] = (*before[name][1], (alpha, d[name]))
                param.copy_(weight_sum(original, ledger.terms[name]))
        yield model
    finally:
        with torch.no_grad():
            for name, (weight, terms) in before.items():
                params[name].copy_(weight)
                ledger.terms[name] = terms
                if not terms:
                    ledger.terms.pop(name)
                    ledger.originals.pop(name, None)


def weight_sum(original: Tensor, terms: _Terms) -> Tensor:
    """W0 + sum_i alpha_i dW_i, summed in fp32 or better, uncast."""
    total = original.to(torch.promote_types(original.dtype, torch.float32), copy=True)
    for alpha, change in terms:
        total.add_(change.to(device=total.device, dtype=total.dtype), alpha=alpha)
    return total


class Rounding(NamedTuple):
    """dose = |W' - W0| / |alpha dW|; cosine between the realised and the asked change."""

    dose: float
    cosine: float


def rounding_error(model: nn.Module, d: Mapping[str, Tensor], alpha: float) -> Rounding:
    """What the model's dtype leaves of alpha * dW: realised R = cast(W0 + alpha dW) - W0.

    dose = |R| / |alpha dW| and cosine = <R, alpha dW> / (|R| |alpha dW|), over all tensors of d,
    accumulated in float64. Raises ValueError for alpha = 0 or a zero delta: nothing was asked.
    """
    realised = asked = inner = 0.0
    for name, param in touched_parameters(model, d).items():
        original = param.detach()
        steered_weight = weight_sum(original, ((alpha, d[name]),)).to(param.dtype)
        change = steered_weight.double() - original.double()
        wanted = alpha * d[name].to(original.device).double()
        realised += float(change.square().sum())
        asked += float(wanted.square().sum())
        inner += float((change * wanted).sum())
    if asked == 0:
        raise ValueError("rounding_error: alpha * dW is zero; give a non-zero alpha and delta")
    cosine = inner / (realised * asked) ** 0.5 if realised else 0.0
    return Rounding((realised / asked) ** 0.5, cosine)


def touched_parameters(model: nn.Module, d: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """The model's parameters that d changes, by name; raises ValueError where d does not fit."""
    if not d:
        raise ValueError("steered: the delta is empty; give at least one weight change")
    params = dict(model.named_parameters(remove_duplicate=False))
    unknown = [name for name in d if name not in params]
    if unknown:
        raise ValueError(
            f"steered: {len(unknown)} keys of the delta are not parameters of the model: "
            f"{unknown[:3]}; take the delta from an adapter trained on this model"
        )
    for name in d:
        if d[name].shape != params[name].shape:
            raise ValueError(
                f"steered: {name!r} has shape {tuple(d[name].shape)} in the delta and "
                f"{tuple(params[name].shape)} in the model; the delta belongs to another model"
            )
    touched = {name: params[name] for name in d}
    if len({id(p) for p in touched.values()}) < len(touched):
        raise ValueError(
            "steered: two keys of the delta name one tied weight; keep one of them "
            f"({[n for n in touched if 'layers.' not in n][:3]})"
        )
    return touched
