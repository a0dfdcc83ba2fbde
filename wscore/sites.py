"""Sites: where in the model an entry of a delta sits, and selection by place.

model.layers.3.self_attn.q_proj.weight  ->  Site(layer=3, block="self_attn", proj="q_proj")
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from wscore.delta import some
from wscore.factored import OnDemand, only

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


Where = Callable[[Site], bool]


def site(name: str) -> Site:
    """The site of a parameter name, whatever stands before `layers.`, for weights and biases."""
    found = _NAME.search(name)
    if found is None:
        raise ValueError(
            f"site: {name!r} names no layer; expected ...layers.<n>.<block>.<proj>.weight or .bias"
        )
    return Site(int(found["layer"]), found["block"] or "", found["proj"])


def select(d: Mapping[str, Tensor], where: Where) -> Mapping[str, Tensor]:
    """The entries of d whose site satisfies `where`. select(d, w) and omit(d, w) partition d.

    Only the selected entries are read; they are shared with d, not copied, and a delta whose
    entries are made on demand stays one.
    """
    return _pick(d, [name for name in d if where(site(name))], "select: nothing matches")


def omit(d: Mapping[str, Tensor], where: Where) -> Mapping[str, Tensor]:
    """The entries of d whose site does not satisfy `where`, the partner of `select`."""
    return _pick(d, [name for name in d if not where(site(name))], "omit: nothing is left")


def _pick(d: Mapping[str, Tensor], names: list[str], complaint: str) -> Mapping[str, Tensor]:
    if not names:
        raise ValueError(f"{complaint} of {some(d)}; change the predicate or the delta")
    return only(d, names) if isinstance(d, OnDemand) else {name: d[name] for name in names}


def layers(lo: int, hi: int) -> Where:
    """lo <= layer < hi."""
    return lambda at: lo <= at.layer < hi


def projections(*names: str) -> Where:
    """proj is one of names."""
    return lambda at: at.proj in names


def writes_residual(at: Site) -> bool:
    """The output side is the residual stream: o_proj, down_proj."""
    return at.proj in _WRITES


def reads_residual(at: Site) -> bool:
    """The input side is the residual stream: q_proj, k_proj, v_proj, gate_proj, up_proj."""
    return at.proj in _READS
