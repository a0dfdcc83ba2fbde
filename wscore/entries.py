"""The entries of a delta, one by one and checked, and how errors name them."""

from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wscore.factored import Factored, Factors, meta
from wscore.files import quoted


def format_keys(names: Iterable[str], show: int = 3) -> str:
    """How errors name keys: `2 keys: ['a', 'b']`, sorted, at most `show` of them spelled out."""
    names = sorted(map(str, names))
    shown = ", ".join(map(quoted, names[:show])) + (", ..." if len(names) > show else "")
    return f"{len(names)} key{'s' * (len(names) != 1)}: [{shown}]"


def entry(d: Mapping[Any, Any], name: Any) -> Tensor:
    """d[name], refused unless a delta may hold it: 1-D or 2-D, float32 or float64."""
    return allowed(name, d[name])


def allowed(name: Any, w: Any) -> Tensor:
    """w itself, refused unless a delta may hold it under this name."""
    if not isinstance(name, str):
        raise ValueError(f"delta: key {quoted(name)} is not a string; use parameter names")
    if not isinstance(w, Tensor) or w.ndim not in (1, 2):
        kind = f"of shape {list(w.shape)}" if isinstance(w, Tensor) else f"a {type(w).__name__}"
        raise ValueError(f"delta: {quoted(name)} is {kind}; use tensors [d_out, d_in] or [d_out]")
    return check_dtype(name, w)


def check_dtype(name: str, w: Tensor) -> Tensor:
    """w itself, refused unless it is float32 or float64."""
    if w.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"delta: {quoted(name)} is {w.dtype}, and a delta in that precision has already lost"
            " its low-order part; compute it in float32 from the start"
        )
    if w.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"delta: {quoted(name)} is {w.dtype}, and a change of a weight is float32 or float64;"
            " give the change itself, not an index, a mask or a code"
        )
    return w


def weight(base: Mapping[Any, Any], name: Any) -> Tensor:
    """base[name], refused unless it is a weight: 1-D or 2-D, of real floating numbers."""
    w = base[name]
    if not isinstance(w, Tensor) or w.ndim not in (1, 2) or not w.is_floating_point():
        kind = f"{w.dtype} {list(w.shape)}" if isinstance(w, Tensor) else f"a {type(w).__name__}"
        raise ValueError(
            f"base: {quoted(name)} is {kind}; use weights [d_out, d_in] or [d_out] of real numbers"
        )
    return w


def number(value: Any, what: str) -> float:
    """value as a float; ValueError, opening with `what`, unless it is one finite real number."""
    try:
        if isinstance(value, Real) and not isinstance(value, bool) and isfinite(value):
            return float(value)
    except OverflowError:  # an int beyond float64
        pass
    raise ValueError(f"{what} is {quoted(value)}; use a finite number")


def whole(value: Any, what: str, least: int | None = None) -> int:
    """value as an int; ValueError, opening with `what`, unless it is one of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{what} must be a whole number, got {quoted(value)}; use an int")
    if least is not None and value < least:
        raise ValueError(f"{what} must be at least {least}, got {value}")
    return int(value)


def check_shared(what: str, *deltas: Mapping[Any, Any], remedy: str) -> None:
    """Raises ValueError where a delta shares no key with any other: of two models, or misnamed."""
    for i, d in enumerate([nonempty(d) for d in deltas]):
        others = [other for j, other in enumerate(deltas) if j != i]
        if others and not any(name in other for name in d for other in others):
            rest = {name for other in others for name in other}
            raise ValueError(
                f"{what}: {format_keys(d, 2)} on one side and {format_keys(rest, 2)} on the other,"
                f" none in common; {remedy}"
            )


def nonempty(d: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """d itself; raises ValueError for one without entries."""
    if not len(d):
        raise ValueError("delta: it is empty, and {} is never a delta; check the adapter's targets")
    return d


def entries(d: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    """(name, d[name]) one by one, each checked; an empty mapping is refused."""
    return ((name, entry(d, name)) for name in nonempty(d))


def metas(d: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    """`entries` for their dtypes and shapes only: without the data where that would cost work."""
    return ((name, allowed(name, meta(d, name))) for name in nonempty(d))


def pairs(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, a[name], b[name]) over the union of keys, a's first; a missing side is zero."""
    for name in dict.fromkeys([*nonempty(a), *nonempty(b)]):
        x, y = (entry(d, name) if name in d else None for d in (a, b))
        if x is None or y is None:
            zero = torch.zeros_like(entry(a if y is None else b, name))
            x, y = zero if x is None else x, zero if y is None else y
        yield name, *_fitting(name, x, y)


def _fitting(name: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != y.shape:
        raise ValueError(
            f"delta: {quoted(name)} is {list(x.shape)} on one side and {list(y.shape)} on the"
            " other; both deltas must belong to the same model"
        )
    return x, y


def factor_pairs(a: Factored, b: Factored) -> Iterator[tuple[str, Factors, Factors]]:
    """`pairs` of factors; a missing side is zero, of rank 0."""
    for name in dict.fromkeys([*nonempty(a), *nonempty(b)]):
        x, y = (d.factors(name) if name in d else None for d in (a, b))
        if x is not None and y is not None:
            _fitting(name, a._meta(name), b._meta(name))
            yield name, x, y
        elif present := x or y:
            none = Factors(present.L[:, :0], present.R[:0])
            yield name, x or none, y or none


def columns(w: Float[Tensor, "..."]) -> Float[Tensor, "d_out d_in"]:
    """A bias [d_out] seen as the one-column matrix [d_out, 1]; a matrix as it is."""
    return w if w.ndim == 2 else w[:, None]


def check_delta(d: Mapping[Any, Any]) -> Mapping[str, Tensor]:
    """d itself, once known to be a delta: not empty, 1-D or 2-D, float32 or float64, finite."""
    for name, w in entries(d):
        check_finite(name, w)
    return d


def check_finite(name: str, w: Tensor) -> None:
    """Raises ValueError for NaN and infinities."""
    if bad := int((~torch.isfinite(w)).sum()):
        raise ValueError(f"delta: {quoted(name)} has {bad} non-finite entries; check the training")
