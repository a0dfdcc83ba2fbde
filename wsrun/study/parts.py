"""Parts of dW as variants of a sweep, and the columns of the summary that say what they are.

A variant's part is computed when it is scored; its name and number are known before.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import polars as pl

from wscore import DeltaLike, add, difference, norm, scale, spectrum_null
from wsrun.lenses.base import Cut, LensInput
from wsrun.score.variants import Variant
from wsrun.steer.interventions import WeightDelta

SUM_TOLERANCE = 1e-5  # |kept + rest - whole| / |whole|
PART = ("family", "variant", "k")
Facts = dict[tuple[str, str, int | None, int], dict[str, Any]]
"""(family, variant, k, seed) -> columns of the summary"""


class Ablation:
    """The parts of every dW of a run. `facts` and `absent` say what each of them is.

    energy = |part|^2 / |whole|^2, and parts_error = |kept + rest - whole| / |whole|, which stops
    the run above 1e-5.
    """

    def __init__(self) -> None:
        self.facts: Facts = {}
        self.absent: Facts = {}
        self._last: tuple[Any, ...] = (None,)

    def part(
        self,
        at: LensInput,
        name: str,
        make: Callable[[], DeltaLike],
        k: int | None = None,
        alphas: tuple[float, ...] | None = None,
        facts: Mapping[str, Any] | None = None,
        measure: Callable[[], Mapping[str, Any]] = dict,
    ) -> Variant:
        """A single part under its name; `facts` and what `measure` finds become columns."""

        def made() -> DeltaLike:
            delta = make()
            energy = (norm(delta) / _size(at)) ** 2
            known = {**(facts or {}), **measure(), "energy": energy}
            self.facts[at.family, name, k, at.seed] = known
            return delta

        return Variant(name, WeightDelta(made), alphas, at.family, k, at.seed)

    def split(self, at: LensInput, cut: Cut) -> Iterator[Variant]:
        """keep_<name>, drop_<name>, control_<name>, as the cut's roles say; none if absent."""
        several = len(cut.roles) > 1
        for role in cut.roles:
            name, facts = f"{role}_{cut.name}", dict(cut.facts)
            if several:
                facts["keep_or_drop"] = role
            if cut.absent:
                self.absent[at.family, name, cut.k, at.seed] = facts | {"status": cut.absent}
                continue
            make, measure = partial(self._make, at, cut, role), cut.measure
            if several and role != "control":
                measure = partial(self._measure, at, cut)
            yield self.part(at, name, make, cut.k, None, facts, measure)

    def _make(self, at: LensInput, cut: Cut, role: str) -> DeltaLike:
        if role == "control":
            return spectrum_null(self._both(at, cut)[1], 1000 * at.seed + 999)
        return self._both(at, cut)[1 if role == "keep" else 2]

    def _measure(self, at: LensInput, cut: Cut) -> dict[str, Any]:
        return {**cut.measure(), "parts_error": self._both(at, cut)[3]}

    def _both(self, at: LensInput, cut: Cut) -> tuple[Any, ...]:
        """(cut, kept, rest, parts_error) of the last cut asked for; rest only where it counts."""
        if self._last[0] is not cut:
            kept, rest, error = cut.kept(), None, None
            if "drop" in cut.roles:
                rest = cut.rest()
                error = norm(
                    difference(add(kept, rest, disjoint=True), at.dW, missing="zero")
                ) / _size(at)
                if error > SUM_TOLERANCE:
                    raise RuntimeError(
                        f"{cut.name} of {at.family}: kept + rest differs from the whole by {error}"
                    )
            self._last = (cut, kept, rest, error)
        return self._last

    def whole(self, at: LensInput, name: str, factor: float = 1.0) -> Variant:
        """All that is cut, under a name; `factor` times it."""
        return self.part(
            at, name, (lambda: at.dW) if factor == 1 else partial(scale, factor, at.dW)
        )

    def nulls(self, at: LensInput, draws: int, alpha: float) -> Iterator[Variant]:
        """Random deltas with the whole's singular values, at the alpha of the rule."""
        for i in range(draws):
            null = partial(spectrum_null, at.dW, 1000 * at.seed + i)
            yield self.part(at, f"spectrum_null#{i:02d}", null, alphas=(alpha,))


@lru_cache(maxsize=1)
def _size(at: LensInput) -> float:
    return norm(at.dW)


def with_facts(table: pl.DataFrame, ablation: Ablation, keys: Iterable[str]) -> pl.DataFrame:
    """The lines of an effect table with what their parts are, one line per `keys`.

    Numbers are means over seeds, parts_error the largest. Parts that a family does not have get a
    line without numbers whose status says why.
    """
    keys = [*keys]
    table, facts = table.with_columns(status=pl.lit("scored")), _facts(ablation.facts)
    if ablation.absent:
        gone = _facts(ablation.absent)
        groups = table.select(c for c in keys if c not in PART).unique()
        empty = gone.join(groups, how="cross").with_columns(n=pl.lit(0, pl.Int64))
        known = [c for c in empty.columns if c in table.columns]
        table = pl.concat([table, empty.select(known)], how="diagonal_relaxed")
        facts = pl.concat([facts, gone.drop("status")], how="diagonal_relaxed")
    table = table.join(facts, on=PART, how="left", nulls_equal=True, maintain_order="left")
    return table.sort(keys)


def _facts(facts: Facts) -> pl.DataFrame:
    """One line per (family, variant, k) with the facts of its seeds."""
    lines = [
        dict(zip((*PART, "of_seed"), key, strict=True)) | dict(known)
        for key, known in facts.items()
    ]
    table = pl.DataFrame(lines, infer_schema_length=None).cast({"k": pl.Int64})
    columns = [c for c in table.columns if c not in (*PART, "of_seed")]
    return table.group_by(PART, maintain_order=True).agg(
        pl.col(c).max()
        if c == "parts_error"
        else pl.col(c).mean()
        if table[c].dtype.is_float()
        else pl.col(c).first()
        for c in columns
    )
