"""Edits of the residual stream: functions (h, alpha) -> h' with a hash of what they do."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from wscore import tensors_sha256

States = Float[Tensor, "b s d"]


@runtime_checkable
class Edit(Protocol):
    """h' of the output h of a decoder layer, at every position."""

    def __call__(self, h: States, alpha: float) -> States: ...

    def fingerprint(self) -> str:
        """A hash of what the edit does, whatever alpha is."""
        ...


@dataclass(frozen=True, eq=False)
class AddVector:
    """h' = h + alpha v."""

    v: Float[Tensor, " d"]

    def __call__(self, h: States, alpha: float) -> States:
        return h + (alpha * self.v).to(h)

    def fingerprint(self) -> str:
        return f"add {tensors_sha256({'v': self.v})}"


@dataclass(frozen=True, eq=False)
class Project:
    """h' = h - alpha (h . r) r with r = v / |v|, in float32 or better."""

    v: Float[Tensor, " d"]

    def __post_init__(self) -> None:
        if not self.v.any():
            raise ValueError("Project: the direction is zero; leave the layer out")

    def __call__(self, h: States, alpha: float) -> States:
        wide = h.to(torch.promote_types(h.dtype, torch.float32))
        v = self.v.to(wide)
        r = v / v.norm()
        return (wide - alpha * einsum(wide, r, "b s d, d -> b s")[..., None] * r).to(h)

    def fingerprint(self) -> str:
        return f"project {tensors_sha256({'v': self.v})}"


@dataclass(frozen=True, eq=False)
class Chain:
    """h' = second(first(h)), both at one alpha."""

    edits: tuple[Edit, ...]

    def __call__(self, h: States, alpha: float) -> States:
        for edit in self.edits:
            h = edit(h, alpha)
        return h

    def fingerprint(self) -> str:
        return " then ".join(edit.fingerprint() for edit in self.edits)
