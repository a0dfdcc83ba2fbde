"""Scoring: the sweep over variants, its two engines, batching, stored results, doses, capability.

What is scored comes from wsrun.data, what is changed from wsrun.steer; wsrun.report writes tables.
"""

import sys
from types import ModuleType
from typing import Any

from wsrun.score.cached import CachedEngine, verify_logits
from wsrun.score.capability import Capability, costs
from wsrun.score.doses import Divergence, Match, matched, read_match
from wsrun.score.plain import PlainEngine
from wsrun.score.readings import choice_scores
from wsrun.score.scorer import Levers, choose_engine
from wsrun.score.sweep import score, sweep
from wsrun.score.variants import Dose, Variant

__all__ = [
    "CachedEngine", "Capability", "Divergence", "Dose", "Levers", "Match", "PlainEngine",
    "Variant", "choice_scores", "choose_engine", "costs", "matched", "read_match", "score",
    "sweep", "verify_logits",
]  # fmt: skip


class _Room(ModuleType):
    """`from wsrun import score` names the room and its function alike: the room can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.score(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
