"""Decision rules: claims about parts of dW, thresholds written before the run.

A rule is a frozen dataclass whose fields are its thresholds; `verdict(table, rule)` applies it.
No rule says anything of a part while the whole does no more than random deltas do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

from wscore.stats.shares import (
    Share,
    Shares,
    at_least,
    at_most,
    exact_shares,
    not_ready_reason,
    shares,
)
from wscore.stats.verdicts import Outcome, Verdict


class Part(NamedTuple):
    """A candidate: the variants that keep it, drop it, and keep random directions of its size."""

    name: str
    keep: str
    drop: str
    control: str
    k: int | None = None

    def shares(self, got: Shares, family: str) -> tuple[Share, Share]:
        """What keep and drop retain."""
        keep, drop = ((family, variant, self.k) for variant in (self.keep, self.drop))
        return got.get(keep, Share()), got.get(drop, Share())


class Condition(NamedTuple):
    """One comparison of a part in one family; holds is None where its interval does not tell."""

    text: str
    holds: bool | None
    is_control: bool


Read = dict[Part, dict[str, list[Condition]]]  # part -> family -> its conditions, keep first


class PartRule:
    """exists a part, for all families: keep(part) >= keep_at_least, drop(part) <= drop_at_most,
    and control(part) <= keep_at_least where the table has that line.

    What differs between kinds of parts, nested (`SharedCore`) or disjoint (`Locus`): which they
    are, what else decides before and after, and the words.
    """

    keep_at_least: float
    drop_at_most: float
    families: tuple[str, ...] | None
    whole: str
    above_nulls: float

    def decide(self, table: pl.DataFrame) -> Verdict:
        got = shares(table) | exact_shares(table)
        families = self.families or tuple(table["family"].unique().drop_nulls().sort())
        if early := not_ready_reason(table, self.whole, families, self.above_nulls):
            return early
        read = {p: {f: self.conditions(got, p, f) for f in families} for p in self.parts(got)}
        if early := self.before(got, read, families):
            return early
        flat = {p: [c for each in of.values() for c in each] for p, of in read.items()}
        if met := [p for p in read if all(c.holds for c in flat[p])]:
            return self.supported(met, families)
        return self.otherwise(got, read, families) or self.closest(flat)

    def conditions(self, got: Shares, part: Part, family: str) -> list[Condition]:
        t, low = self.keep_at_least, self.drop_at_most
        tests: list[tuple[str, Callable, str, float]] = [
            (part.keep, at_least, ">=", t),
            (part.drop, at_most, "<=", low),
        ]
        if (family, part.control, part.k) in got:
            tests.append((part.control, at_most, "<=", t))
        out = []
        for variant, test, sign, limit in tests:
            share = got.get((family, variant, part.k), Share())
            text = f"{family} {variant} retains {share}, not clearly {sign} {limit:g}"
            out.append(Condition(text, test(share.lo, share.hi, limit), variant == part.control))
        return out

    def parts(self, got: Shares) -> list[Part]:
        raise NotImplementedError

    def before(self, got: Shares, read: Read, families: Sequence[str]) -> Verdict | None:
        """What decides whether a part meets all conditions or not."""
        raise NotImplementedError

    def supported(self, parts: list[Part], families: Sequence[str]) -> Verdict:
        raise NotImplementedError

    def otherwise(self, got: Shares, read: Read, families: Sequence[str]) -> Verdict | None:
        """What decides where no part meets all conditions, None where nothing does."""
        raise NotImplementedError

    def closest(self, flat: dict[Part, list[Condition]]) -> Verdict:
        """The part that misses the fewest conditions, and which."""
        raise NotImplementedError


@dataclass(frozen=True)
class SharedCore(PartRule):
    """exists K, for all families: keep(K) >= keep_at_least and drop(K) <= drop_at_most.

    A K at which a random subspace of that size keeps as much supports nothing (K = d_model keeps
    everything); the table's `random` lines tell, where it has them.
    Refuted by one family whose keep is below drop_at_most at the largest K while its drop is at
    least keep_at_least; not identifiable where both are, since then each half is enough.
    """

    keep_at_least: float = 0.7
    drop_at_most: float = 0.3
    families: tuple[str, ...] | None = ("lora", "dora", "pissa", "delora", "oft")
    keep: str = "keep_shared"
    drop: str = "drop_shared"
    random: str = "keep_random"
    whole: str = "residual_full"
    above_nulls: float = 100.0

    def __post_init__(self) -> None:
        if self.families == ():
            raise ValueError("SharedCore: `families` must be at least one, got none; name them")

    def parts(self, got: Shares) -> list[Part]:
        ks = {k for _, v, k in got if v in (self.keep, self.drop) and k is not None}
        return [Part(f"K = {k}", self.keep, self.drop, self.random, k) for k in sorted(ks)]

    def before(self, got: Shares, read: Read, families: Sequence[str]) -> Verdict | None:
        if read:
            return None
        return Verdict(
            "undetermined",
            f"no line of {self.keep} or {self.drop} at any K for {', '.join(families)}",
        )

    def supported(self, parts: list[Part], families: Sequence[str]) -> Verdict:
        return Verdict(
            "supported",
            f"at K = {' and '.join(str(p.k) for p in parts)}, {self.keep} retains >= "
            f"{self.keep_at_least:g} and {self.drop} <= {self.drop_at_most:g} of "
            f"the effect in every family of {', '.join(families)}",
        )

    def otherwise(self, got: Shares, read: Read, families: Sequence[str]) -> Verdict | None:
        for outcome, why, names in self._obstacles(got, [*read][-1], families):
            if names:
                return Verdict(outcome, f"{why} for {', '.join(names)}")
        return None

    def _obstacles(
        self, got: Shares, part: Part, families: Sequence[str]
    ) -> list[tuple[Outcome, str, list[str]]]:
        """(outcome, why, families) at the largest K, in order: the first with a family decides."""
        t, low, both = self.keep_at_least, self.drop_at_most, f"{self.keep} and {self.drop}"
        at = f"at {part.name}, the largest,"
        counter, absent, noise, either = [], [], [], []
        for f in families:
            x, y = part.shares(got, f)
            kept, left = at_least(x.lo, x.hi, t), at_least(y.lo, y.hi, t)
            if any((f, variant, part.k) not in got for variant in (self.keep, self.drop)):
                absent.append(f)
            elif None in (x.lo, y.lo):
                noise.append(f)
            counter += [f"{f} ({x}, {y})"] if left and at_least(x.lo, x.hi, low) is False else []
            either += [f"{f} ({x}, {y})"] if left and kept else []
        unclear: Outcome = "undetermined"
        refuted = f"{at} {self.keep} retains < {low:g} and {self.drop} >= {t:g} of the effect"
        unknown = "the full effect is at noise and its shares are unknown"
        same = f"not identifiable under this basis: {both} both retain >= {t:g} {at}"
        return [
            ("refuted", refuted, counter),
            (unclear, f"no line of {both} {at}", absent),
            (unclear, unknown, noise),
            (unclear, same, either),
        ]

    def closest(self, flat: dict[Part, list[Condition]]) -> Verdict:
        unmet = {p: [c.text for c in each if not c.holds] for p, each in flat.items()}
        part = min(reversed(unmet), key=lambda p: len(unmet[p]))
        rest = f"; and {len(unmet[part]) - 3} more" if len(unmet[part]) > 3 else ""
        texts = "; ".join(unmet[part][:3])
        return Verdict("undetermined", f"closest at {part.name}, where {texts}{rest}")


@dataclass(frozen=True)
class Locus(PartRule):
    """exists a slice, for all families: keep(slice) >= keep_at_least, drop(slice) <= drop_at_most.

    `slices` are disjoint parts of one partition (the layers, the modules, the bands of a spectrum);
    the table names their lines keep_<slice>, drop_<slice> and, where it has them, control_<slice>:
    random directions with the slice's own rank and norm, which must not keep as much.
    Refuted as distributed where several slices each retain keep_at_least in every family, and where
    every slice fails clearly in some family. A slice in which a family changes nothing (a line
    whose status is not "scored") keeps 0 and leaves 1 there, exactly.
    """

    slices: tuple[str, ...]
    keep_at_least: float = 0.7
    drop_at_most: float = 0.3
    families: tuple[str, ...] | None = None
    whole: str = "full"
    above_nulls: float = 100.0

    def __post_init__(self) -> None:
        if not self.slices or self.families == ():
            empty = "families" if self.slices else "slices"
            raise ValueError(f"Locus: `{empty}` must be at least one, got none; name them")

    def parts(self, got: Shares) -> list[Part]:
        return [Part(s, f"keep_{s}", f"drop_{s}", f"control_{s}") for s in self.slices]

    def before(self, got: Shares, read: Read, families: Sequence[str]) -> Verdict | None:
        if at_noise := [f for f in families if got.get((f, self.whole, None), Share()).lo is None]:
            return Verdict(
                "undetermined",
                f"the effect of {self.whole} is at noise for {', '.join(at_noise)}, "
                "and its shares are unknown",
            )
        enough = [p.name for p, of in read.items() if all(c[0].holds for c in of.values())]
        if len(enough) < 2:
            return None
        sentence = f"each of {', '.join(enough)} alone retains >= {self.keep_at_least:g}"
        return Verdict("refuted", f"distributed: {sentence}")

    def supported(self, parts: list[Part], families: Sequence[str]) -> Verdict:
        name = parts[0].name
        return Verdict(
            "supported",
            f"{name} alone retains >= {self.keep_at_least:g} and without it <= "
            f"{self.drop_at_most:g} of the effect is left in {', '.join(families)}",
            name,
        )

    def otherwise(self, got: Shares, read: Read, families: Sequence[str]) -> Verdict | None:
        flat = {p: [c for each in of.values() for c in each] for p, of in read.items()}
        failed = {p: _failed(each) for p, each in flat.items()}
        if not all(failed.values()):
            return None
        best = min(failed, key=lambda p: len(failed[p]))
        return Verdict(
            "refuted",
            f"no single slice of {', '.join(self.slices)}; closest is {best.name}, where "
            + "; ".join(failed[best][:2]),
        )

    def closest(self, flat: dict[Part, list[Condition]]) -> Verdict:
        open_ = {p: each for p, each in flat.items() if not _failed(each)}
        unmet = {p: [c.text for c in each if not c.holds] for p, each in open_.items()}
        best = min(unmet, key=lambda p: len(unmet[p]))
        texts = "; ".join(unmet[best][:3])
        return Verdict("undetermined", f"closest is {best.name}, where {texts}")


def _failed(conditions: list[Condition]) -> list[str]:
    """What is clearly false; a control that keeps too much makes a slice useless, not wrong."""
    return [c.text for c in conditions if c.holds is False and not c.is_control]
