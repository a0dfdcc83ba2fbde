"""What a lens takes and gives: one dW with what may be needed beside it, and cuts of that dW.

kept + rest = dW for every cut. A lens names its cuts without computing anything, so that a run
knows beforehand how long it is; parts are computed when they are asked for, and not kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from wscore import SVD, DeltaLike

Key = tuple[str, int]
"""(family, seed)"""
Pole = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""tensors and config of a checkpoint"""


class Deltas(dict[Key, DeltaLike]):
    """(family, seed) -> dW of a whole run. Hashed by identity, as what is remembered of it is."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return id(self)


@dataclass(frozen=True, eq=False)
class LensInput:
    """One dW, and what lenses may need beside it; each takes what it needs."""

    family: str
    seed: int
    deltas: Deltas
    """the dW of all families and seeds, on the tensors that are cut; this one is among them"""
    K: tuple[int, ...] = ()
    """sizes of subspaces"""
    svds: Mapping[str, SVD] = field(default_factory=dict)
    """singular value decompositions of the base weights"""
    base: Mapping[str, Tensor] = field(default_factory=dict)
    """the base weights"""
    poles: Callable[[], tuple[Pole, Pole]] | None = None
    """reads the checkpoints of pos and neg; None where there are none to read"""

    @property
    def dW(self) -> DeltaLike:
        return self.deltas[self.family, self.seed]


@dataclass(frozen=True, eq=False)
class Cut:
    """dW = kept + rest, each computed when called, under the name of the part that is kept."""

    name: str
    kept: Callable[[], DeltaLike]
    rest: Callable[[], DeltaLike]
    k: int | None = None
    """size of the subspace"""
    roles: tuple[str, ...] = ("keep", "drop")
    """what is scored: keep, drop, control (random directions of kept's own rank and norm)"""
    partition: str = ""
    """the set of disjoint cuts it is one of, which is what a claim is about; "" for none"""
    own: bool = False
    """of the family's own parameters, which no other family shares: no claim about several"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """columns of its lines in the summary"""
    measure: Callable[[], Mapping[str, Any]] = dict
    """further columns, computed when called"""
    absent: str = ""
    """why this family has no such part; then nothing is computed"""
