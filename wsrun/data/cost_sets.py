"""Public sets of what steering costs elsewhere: --costs NAME:PATH.

As those of named.py they are not part of this project; docs/data.md says what is wrong with them.
"""

import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, TypeVar

from wscore.files import quoted
from wsrun.data import arc, blimp, wikitext
from wsrun.data.multiple_choice import Question
from wsrun.data.plain import PlainText
from wsrun.data.records import check_unique
from wsrun.data.replies import Reply
from wsrun.data.rows import file_of

Entry = Reply | PlainText | Question
E = TypeVar("E", bound=Entry)


class Found(NamedTuple):
    """What a set holds, and a sentence for whatever was left out of it."""

    entries: Sequence[PlainText | Question]
    left_out: tuple[str, ...] = ()


class CostSet(NamedTuple):
    """A public set: how it is read, its licence, where it is had, and its columns."""

    read: Callable[[Path], Found]
    licence: str
    source: str
    columns: str


COST_SETS = {
    "arc": CostSet(
        lambda path: Found(*arc.read_questions(file_of(path, *arc.FILES))),
        "CC-BY-SA-4.0",
        "ARC-Easy-Test.jsonl of AI2's ARC-V1-Feb2018 (Clark et al. 2018, arXiv 1803.05457)",
        f"the columns {', '.join(arc.COLUMNS)}",
    ),
    "blimp": CostSet(
        lambda path: Found(*blimp.read_questions(path)),
        "CC-BY-4.0",
        "a jsonl file of github.com/alexwarstadt/blimp, or a folder of them (Warstadt et al. 2020, "
        "arXiv 1912.00582)",
        f"the columns {', '.join(blimp.COLUMNS)}",
    ),
    "wikitext": CostSet(
        lambda path: Found(wikitext.read_texts(file_of(path, *wikitext.FILES))),
        "CC-BY-SA",
        "wiki.valid.tokens of WikiText-2 (Merity et al. 2016, arXiv 1609.07843)",
        "an article after a line like ' = Title = '",
    ),
}


def read_cost_sets(texts: Sequence[str] | None) -> dict[str, Found]:
    """{NAME: what it holds} of every "NAME:PATH" of --costs.

    Raises ValueError for none, an unknown NAME, one that is named twice, a PATH with nothing there,
    and what its reader refuses.
    """
    found: dict[str, Found] = {}
    if texts is not None and not texts:
        raise ValueError(f"--costs names no set; give NAME:PATH, {_KNOWN}, or leave it out")
    for text in texts or ():
        name, path = _named(text)
        if name in found:
            raise ValueError(f"--costs names {name} twice; name each set once, or join its files")
        try:
            found[name] = COST_SETS[name].read(path)
            check_unique((e.item for e in found[name].entries), path)
        except ValueError as error:
            raise ValueError(f"--costs {name}: {error}") from error
    return found


def _named(text: str) -> tuple[str, Path]:
    name, colon, rest = text.partition(":")
    if not colon or name not in COST_SETS:
        raise ValueError(f"--costs {quoted(text)} is no NAME:PATH of a known set; {_KNOWN}")
    cost_set = COST_SETS[name]
    if not rest or not os.path.exists(rest):
        raise ValueError(
            f"--costs {name}: no file or folder {quoted(rest)}; get {cost_set.source}, licence "
            f"{cost_set.licence}, with {cost_set.columns}"
        )
    return name, Path(rest)


def drawn(entries: Sequence[E], limit: int | None) -> list[E]:
    """`limit` of the entries, drawn by the sha256 of their names, in their order; None for all."""
    if limit is None:
        return [*entries]
    if limit < 1:
        raise ValueError(f"--cost-limit must be at least 1, got {limit}")
    names = sorted((e.item for e in entries), key=lambda name: sha256(name.encode()).hexdigest())
    kept = {*names[:limit]}
    return [e for e in entries if e.item in kept]


_KNOWN = f"known are {', '.join(COST_SETS)}"
