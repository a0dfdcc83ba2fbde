"""Statistics: rows to paired effects with intervals, effects to verdicts. No tensors, no models.

schema -> pairing -> effects (bootstrap) -> contrasts, spread, ranking -> shares, rules, basins
"""

from wscore.stats.basins import BasinDivergence
from wscore.stats.contrasts import base_lines, benchmark_table, contrast
from wscore.stats.effects import effect_table, null_percentile, retained
from wscore.stats.pairing import paired
from wscore.stats.ranking import kendall, pairwise_contrasts, ranking, sign_agreement
from wscore.stats.rules import Locus, PartRule, SharedCore
from wscore.stats.schema import CELL, COLUMNS, KEYS, ROW_SCHEMA, SUMMARY_KEYS, TYPES
from wscore.stats.shares import Share, at_least, at_most, shares
from wscore.stats.spread import benjamini_hochberg, seed_spread, wilson
from wscore.stats.verdicts import Outcome, Rule, Verdict, verdict

__all__ = [
    "CELL", "COLUMNS", "KEYS", "ROW_SCHEMA", "SUMMARY_KEYS", "TYPES",
    "BasinDivergence", "Locus", "Outcome", "PartRule", "Rule", "Share", "SharedCore", "Verdict",
    "at_least", "at_most", "base_lines", "benchmark_table", "benjamini_hochberg", "contrast",
    "effect_table", "kendall", "null_percentile", "paired", "pairwise_contrasts", "ranking",
    "retained", "seed_spread", "shares", "sign_agreement", "verdict", "wilson",
]  # fmt: skip
