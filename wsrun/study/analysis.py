"""What an analysis of the parts of dW is: its options, and which lenses cut which tensors."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from wscore import Where
from wsrun.study.options import Common


@dataclass(frozen=True)
class Options(Common):
    """Options of every analysis of the parts of dW; the verdict is taken at `rule_alpha`."""

    rule_alpha: float = 1.0
    """alpha of the verdict, of the null draws and of the figures"""
    nulls: int = 20
    """null deltas per family and seed: same singular values, random directions"""
    keep_at_least: float = 0.7
    """threshold of the rule on the kept part"""
    drop_at_most: float = 0.3
    """threshold of the rule on what is left without it"""
    full: bool = False
    """print every line instead of the short table"""

    @property
    def limits(self) -> tuple[float, float]:
        return self.keep_at_least, self.drop_at_most


@dataclass(frozen=True)
class Study:
    """What an analysis cuts and how, and what is shown of it."""

    name: str
    """of the script and its tables"""
    lenses: tuple[str, ...]
    head: Callable[[str], str | None]
    """a cut's name -> its head in the short table, None where it is not shown there"""
    spread: str
    """the variant whose spread over seeds and families is printed"""
    figures: Callable[[Any, pl.DataFrame, Path, list[str]], Iterable[str]]
    """(options, lines at the rule's alpha, path of the table, names of cuts) -> what was drawn"""
    next: tuple[str, str]
    """the script to run next, and why"""
    where: Where | None = None
    """the tensors that are cut; None for all of dW"""
    whole: str = "full"
    """the name of all that is cut"""
    K: tuple[int, ...] = ()
    """sizes of subspaces"""
    svd_cache: Path | None = None
    """where the singular value decompositions of the base are kept; None where none is needed"""
    columns: Callable[[pl.DataFrame], pl.DataFrame] = lambda table: table
    """last touch on the summary"""
    notes: Callable[[pl.DataFrame], Iterable[Any]] = lambda table: ()
    """what else is printed of one data set at the rule's alpha"""
