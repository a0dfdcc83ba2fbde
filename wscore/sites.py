"""Sites: where in the model an entry of a delta sits, and selection by place.

model.layers.3.self_attn.q_proj.weight  ->  Site(layer=3, block="self_attn", proj="q_proj")
"""

import re
from collections.abc import Callable, Mapping
from functools import update_wrapper
from typing import NamedTuple

from torch import Tensor

from wscore.entries import format_keys
from wscore.factored import subset
from wscore.files import quoted

_NAME = re.compile(
    r"(?:^|\.)layers\.(?P<layer>\d+)\.(?:(?P<block>.+)\.)?(?P<proj>\w+)\.(?:weight|bias)$"
)
_WRITES = frozenset({"o_proj", "down_proj"})
_READS = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})


class Site(NamedTuple):
    """layer number, block within the layer ("" for a norm of the layer itself), projection."""

    layer: int
    block: str
    proj: str


Predicate = Callable[[Site], bool]


class Where:
    """A predicate of sites that composes: a & b, a | b, ~a.

    Wraps any function of a site: Where(lambda at: at.layer % 2 == 0) & writes_residual.
    """

    def __init__(self, test: Predicate):
        update_wrapper(self, test)
        self._test = test

    def __call__(self, at: Site) -> bool:
        return self._test(at)

    def __and__(self, other: Predicate) -> "Where":
        return Where(lambda at: self(at) and other(at))

    def __or__(self, other: Predicate) -> "Where":
        return Where(lambda at: self(at) or other(at))

    def __invert__(self) -> "Where":
        return Where(lambda at: not self(at))

    __rand__, __ror__ = __and__, __or__


def site(name: str) -> Site:
    """The site of a parameter name, whatever stands before `layers.`, for weights and biases."""
    match = _NAME.search(name) if isinstance(name, str) else None
    if match is None:
        raise ValueError(
            f"site: {quoted(name)} names no layer; expected ...layers.<n>.<block>.<proj>.weight or"
            " .bias"
        )
    return Site(int(match["layer"]), match["block"] or "", match["proj"])


def select(d: Mapping[str, Tensor], where: Predicate) -> Mapping[str, Tensor]:
    """The entries of d whose site satisfies `where`. select(d, w) and omit(d, w) partition d.

    Only the selected entries are read; they are shared with d, not copied, and a delta whose
    entries are made on demand stays one.
    """
    return _pick(d, [name for name in d if where(site(name))], "select: nothing matches")


def omit(d: Mapping[str, Tensor], where: Predicate) -> Mapping[str, Tensor]:
    """The entries of d whose site does not satisfy `where`, the partner of `select`."""
    return _pick(d, [name for name in d if not where(site(name))], "omit: nothing is left")


def _pick(d: Mapping[str, Tensor], names: list[str], complaint: str) -> Mapping[str, Tensor]:
    if not names:
        raise ValueError(f"{complaint} of {format_keys(d)}; change `where` or the delta")
    return subset(d, names)


def layers(lo: int, hi: int) -> Where:
    """lo <= layer < hi."""
    return Where(lambda at: lo <= at.layer < hi)


def projections(*names: str) -> Where:
    """proj is one of names."""
    return Where(lambda at: at.proj in names)


@Where
def writes_residual(at: Site) -> bool:
    """The output side is the residual stream: o_proj, down_proj."""
    return at.proj in _WRITES


@Where
def reads_residual(at: Site) -> bool:
    """The input side is the residual stream: q_proj, k_proj, v_proj, gate_proj, up_proj."""
    return at.proj in _READS
