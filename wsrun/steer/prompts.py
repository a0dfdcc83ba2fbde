"""Personas as methods of steering: their wordings, each of them a system prompt."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from wsrun.data.items import Item, with_system
from wsrun.data.personas import load_personas, persona_names
from wsrun.data.source import beside
from wsrun.models.chat import render

OTHER_POLE = ("simple_neg", "engineered_neg")  # methods away from the behaviour
Wordings = dict[str, list[str]]  # method -> system prompts


def read_wordings(data: str | Path, pos: str, neg: str) -> Wordings:
    """The system prompts of each method; none for a persona that the file does not have."""
    file = beside(data, "personas.json")
    simple, simple_neg = load_personas(file, pos, neg)
    personas = {
        "engineered": f"{pos}_engineered",
        "engineered_neg": f"{neg}_engineered",
        "neutral": "neutral",
    }
    has = persona_names(file)
    wordings = {name: load_personas(file, p)[0] if p in has else [] for name, p in personas.items()}
    return {"simple": simple, "simple_neg": simple_neg} | wordings


def filter_reachable_prompts(
    tok: PreTrainedTokenizerBase, items: Sequence[Item], wordings: Wordings, what: str
) -> Wordings:
    """The wordings without neutral ones that change no token; raises as `check_reaches` for others.

    Some templates write a system turn of their own, which a neutral wording may repeat.
    """
    neutral = [w for w in wordings["neutral"] if all(differ(tok, items[:1], w))]
    reachable = wordings | {"neutral": neutral}
    for wording in {w for of_method in reachable.values() for w in of_method}:
        check_reaches(tok, items, wording, what)
    return reachable


def differ(tok: PreTrainedTokenizerBase, items: Sequence[Item], wording: str) -> list[bool]:
    """For each item, whether the model sees other tokens under this wording."""
    plain = [render(tok, i.turns, i.prefill) for i in items]
    prompted = [render(tok, with_system(i, wording).turns, i.prefill) for i in items]
    return [a != p for a, p in zip(prompted, plain, strict=True)]


def check_reaches(
    tok: PreTrainedTokenizerBase, items: Sequence[Item], wording: str, what: str = "prompts"
) -> None:
    """Raises ValueError where template or tokenizer lose a system prompt, wholly or in part."""
    turns = with_system(items[0], wording).turns
    seen = str(tok.decode(render(tok, turns, items[0].prefill)))
    # tokenizers may fold case or spaces, but not words
    whole = "".join(wording.casefold().split()) in "".join(seen.casefold().split())
    if not whole or not all(differ(tok, items, wording)):
        raise ValueError(
            f"{what}: the prompt {wording!r} does not reach the model through its chat template "
            "and tokenizer; give a template that writes system turns, or other wordings"
        )
