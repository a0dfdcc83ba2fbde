"""What models are asked and trained on: items, personas, questions and pairs, neutral texts.

Readers, checks and the cache of generated answers; nothing here scores or trains.
"""

from wsrun.data.answering import NoPairs, make_pairs
from wsrun.data.items import (
    Dilemmas,
    Item,
    items_sha256,
    load_claims,
    load_dilemmas,
    read_dilemmas,
    with_system,
)
from wsrun.data.pairs import Pair, load_pairs, load_questions
from wsrun.data.pairs_cache import GeneratedPairs, cached_pairs
from wsrun.data.personas import load_personas, persona_names
from wsrun.data.replies import Reply, load_neutral
from wsrun.data.source import load_items

__all__ = [
    "Dilemmas", "GeneratedPairs", "Item", "NoPairs", "Pair", "Reply", "cached_pairs",
    "items_sha256", "load_claims", "load_dilemmas", "load_items", "load_neutral", "load_pairs",
    "load_personas", "load_questions", "make_pairs", "persona_names", "read_dilemmas",
    "with_system",
]  # fmt: skip
