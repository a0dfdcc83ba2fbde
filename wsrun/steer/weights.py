"""Steering by weights: add alpha * dW to a model for as long as a `with` block lasts."""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wscore.entries import allowed, check_dtype, format_keys, number
from wscore.factored import Factored, Factors, meta
from wscore.files import quoted

_Terms = tuple[tuple[float, Tensor | Factors], ...]


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
    two of them a weight is cast(W0 + alpha1 dW1 + alpha2 dW2). The original is set aside, neither
    copied nor written to, and put back also after an exception or Ctrl-C. alpha = 0 changes
    nothing. A factored dW = L R is added as alpha L R, without being expanded first.

    Raises ValueError for an alpha that is no finite number and for what is no delta of the model,
    as `touched_parameters`.
    """
    params, alpha = touched_parameters(model, d), number(alpha, "steered: alpha")
    if alpha == 0:
        yield model
        return
    ledger = _ledgers.setdefault(model, _Ledger({}, {}))
    before: dict[str, tuple[Tensor, _Terms]] = {}
    try:
        with torch.no_grad():
            for name, param in params.items():
                before[name] = param.data, ledger.terms.get(name, ())
                original = ledger.originals.setdefault(name, param.data)
                ledger.terms[name] = (*before[name][1], (alpha, term(d, name)))
                param.data = weight_sum(original, ledger.terms[name]).to(original.dtype)
        yield model
    finally:
        for name, (weight, terms) in before.items():
            params[name].data = weight
            ledger.terms[name] = terms
            if not terms:
                ledger.terms.pop(name)
                ledger.originals.pop(name, None)


def term(d: Any, name: str) -> Tensor | Factors:
    """What `weight_sum` takes for one entry: its factors where the delta has them."""
    return d.factors(name) if isinstance(d, Factored) else d[name]


def weight_sum(original: Tensor, terms: _Terms) -> Tensor:
    """W0 + sum_i alpha_i dW_i, summed in fp32 or better, uncast."""
    total = original.to(torch.promote_types(original.dtype, torch.float32))
    for alpha, change in terms:
        if isinstance(change, Factors):
            L, R = (x.to(device=total.device, dtype=total.dtype) for x in change)
            total = torch.addmm(total, L, R, alpha=alpha)
        else:
            total = total.add(change.to(device=total.device, dtype=total.dtype), alpha=alpha)
    return total


class Rounding(NamedTuple):
    """norm_ratio = |W' - W0| / |alpha dW|; cosine between the realised change and alpha dW."""

    norm_ratio: float
    cosine: float


def rounding_error(model: nn.Module, d: Mapping[str, Tensor], alpha: float) -> Rounding:
    """What the model's dtype leaves of alpha * dW: realised R = cast(W0 + alpha dW) - W0.

    norm_ratio = |R| / |alpha dW| and cosine = <R, alpha dW> / (|R| |alpha dW|), over all tensors
    of d, accumulated in float64. Raises ValueError for alpha = 0, one that is no finite number, and
    for a zero delta.
    """
    alpha = number(alpha, "rounding_error: alpha")
    realised = wanted = inner = 0.0
    for name, param in touched_parameters(model, d).items():
        original = param.detach()
        steered_weight = weight_sum(original, ((alpha, term(d, name)),)).to(param.dtype)
        R = steered_weight.double() - original.double()
        alpha_dW = alpha * d[name].to(original.device).double()
        realised += float(R.square().sum())
        wanted += float(alpha_dW.square().sum())
        inner += float((R * alpha_dW).sum())
    if wanted == 0:
        raise ValueError("rounding_error: alpha * dW is zero; give a non-zero alpha and delta")
    cosine = inner / (realised * wanted) ** 0.5 if realised else 0.0
    return Rounding((realised / wanted) ** 0.5, cosine)


def touched_parameters(
    model: nn.Module, d: Mapping[str, Tensor], who: str = "steered"
) -> dict[str, nn.Parameter]:
    """The model's parameters that d changes, by name; `who` asks, which opens refusals.

    Raises ValueError for an empty d, entries that are not float32 or float64, names that the model
    does not have, other shapes, weights that are no floats, and two names of one (tied) weight.
    """
    if not d:
        raise ValueError(f"{who}: the delta is empty; give at least one weight change")
    # blocks of experts are 3-D, which is no delta for the algebra, but a change of a weight
    shapes = {name: _change(name, meta(d, name)).shape for name in d}
    touched = {name: _parameter(model, name) for name in d}
    unknown = [name for name, p in touched.items() if p is None]
    if unknown:
        raise ValueError(
            f"{who}: {format_keys(unknown)} of the delta are not parameters of the model; take"
            " the delta from an adapter trained on this model"
        )
    params = {name: p for name, p in touched.items() if p is not None}
    for name, p in params.items():
        if shapes[name] != p.shape:
            raise ValueError(
                f"{who}: {quoted(name)} has shape {tuple(shapes[name])} in the delta and "
                f"{tuple(p.shape)} in the model; the delta belongs to another model"
            )
        if not p.is_floating_point():
            raise ValueError(
                f"{who}: {quoted(name)} is {p.dtype} in the model; load it without quantisation"
            )
    if len({id(p) for p in params.values()}) < len(params):
        raise ValueError(
            f"{who}: two keys of the delta name one tied weight; keep one of them "
            f"({[n for n in params if 'layers.' not in n][:3]})"
        )
    return params


def _change(name: Any, w: Any) -> Tensor:
    return check_dtype(name, w) if isinstance(w, Tensor) and w.ndim > 2 else allowed(name, w)


def _parameter(model: nn.Module, name: str) -> nn.Parameter | None:
    try:
        return model.get_parameter(name)
    except AttributeError:
        return None
