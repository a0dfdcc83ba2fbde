"""An intervention whose change is made once, for all the alphas that it is asked at."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from wsrun.steer.edits import Edit
from wsrun.steer.interventions import Change, Intervention


@dataclass(frozen=True, eq=False)
class Held(Intervention):
    """Another intervention with its change made and hashed once, and kept as long as this is.

    The tensors of `of` must not change meanwhile.
    """

    of: Intervention

    @cached_property
    def _delta(self) -> Change:
        return self.of.delta()

    @cached_property
    def _fingerprint(self) -> dict[str, str]:
        return super().fingerprint()

    @property
    def method(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.of.method

    @property
    def has_dose(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.of.has_dose

    def delta(self) -> Change:
        return self._delta

    def edits(self) -> Mapping[int, Edit]:
        return self.of.edits()

    def system(self) -> str | None:
        return self.of.system()

    def fingerprint(self) -> dict[str, str]:
        return self._fingerprint
