"""Items under one tokenizer: rendered once, for all that is asked of them (readings.py)."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from wsrun.data.items import Item, check_items
from wsrun.data.replies import encoded_reply
from wsrun.models.chat import Choices, choice_ids, render
from wsrun.score.readings import Asked, Plan


def plan(tok: PreTrainedTokenizerBase, items: Sequence[Item]) -> Plan:
    """The items under one tokenizer; raises ValueError for unusable items."""
    items = check_items(items)
    words = {i.choices for i in items if not i.replies}
    choices = {w: Choices(*map(tuple, choice_ids(tok, w))) for w in words}
    return Plan(items, [_sequences(tok, i, choices.get(i.choices)) for i in items])


def _sequences(tok: PreTrainedTokenizerBase, item: Item, choices: Choices | None) -> list[Asked]:
    if item.replies is None:
        ids = render(tok, item.turns, item.prefill)
        return [Asked(ids, [len(ids) - 1], choices)]
    encoded = (encoded_reply(tok, item.turns, reply, item.id) for reply in item.replies)
    return [
        Asked(ids[:-1], [*range(start - 1, len(ids) - 1)], targets=tuple(ids[start:]))
        for ids, start in encoded
    ]
