"""Verdicts: what a rule says of a table, in three values and a sentence."""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import polars as pl

Outcome = Literal["supported", "refuted", "undetermined"]


class Verdict(NamedTuple):
    """What a rule says of a table: the outcome, the claim in a sentence, and the part it names."""

    outcome: Outcome
    sentence: str
    part: str | None = None


@runtime_checkable
class Rule(Protocol):
    """A claim with its thresholds as fields, written before the run; one `decide` per claim."""

    def decide(self, table: pl.DataFrame) -> Verdict: ...


def verdict(table: pl.DataFrame, rule: Rule) -> Verdict:
    """supported | refuted | undetermined: `rule` read off the lines of an `effect_table`."""
    return rule.decide(table)
