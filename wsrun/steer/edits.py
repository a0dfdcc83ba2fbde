"""Edits of the residual stream: functions (h, alpha) -> h' with a hash of what they do."""

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from wscore import tensors_sha256

States = Float[Tensor, "b s d"]


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
class Chain:
    """h' = second(first(h)), both at one alpha."""

    edits: tuple[Edit, ...]

    def __call__(self, h: States, alpha: float) -> States:
        for edit in self.edits:
            h = edit(h, alpha)
        return h

    def fingerprint(self) -> str:
        return " then ".join(edit.fingerprint() for edit in self.edits)
