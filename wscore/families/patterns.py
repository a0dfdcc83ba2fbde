"""Regular expressions from adapter files: used only where matching them surely ends.

Python's matcher tries the ways in which a pattern can fit one after the other, and a pattern from a
file may have exponentially many. What may repeat here are single steps, so that the ways are the
choices times a power of a name's length, and both are bounded.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from math import comb, prod
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from wscore.families.base import check, refuse
from wscore.files import reason

MOST_LETTERS = 100_000
MOST_REPEATS = 3
"""unbounded repeats one after the other that no text of two letters or more comes after"""
MOST_ANCHORED = 10
"""unbounded repeats in all"""
MOST_WAYS = 2_000_000
"""ways to fit a name of 40 letters, by a rough count"""

REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT)
SINGLE = (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN, op.CATEGORY)
Tokens = list[int]
"""steps: n > 0 is n letters of text, 0 one letter of several, -1 a repeat, -m one of m choices"""


def check_pattern(pattern: Any, where: str, frame: str = "({})") -> None:
    """Raises ValueError for what is no pattern, alone and in its frame, or might match forever."""
    shown = f"{where} has the pattern {reason(repr(pattern), 80)}"
    check(isinstance(pattern, str), f"{where} is {reason(repr(pattern), 80)}; give a pattern")
    check(len(pattern) <= MOST_LETTERS, f"{shown} of {len(pattern)} letters; list the modules")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what a later Python will read otherwise
            re.compile(frame.format(pattern))
            tokens = _tokens(parser.parse(pattern))
    except (re.error, OverflowError, RecursionError, Warning) as error:
        refuse(f"{shown}, which is no regular expression ({reason(error, 80)}); correct it")
    except _Endless as error:
        refuse(f"{shown}, which may take forever to match ({error}); list the modules by name")
    repeats, loose = tokens.count(-1), _loose(tokens)
    ways = _choices(tokens) * comb(40, min(loose, 20))
    check(
        repeats <= MOST_ANCHORED and loose <= MOST_REPEATS and ways <= MOST_WAYS,
        f"{shown}, which may take forever to match ({repeats} repeats, {_choices(tokens):.0e} "
        "choices); list the modules by name",
    )


class _Endless(Exception):
    """Why a pattern may have exponentially many ways to fit."""


def _tokens(pattern: Any) -> Tokens:
    """The costliest way through a pattern."""
    return [token for code, at in pattern for token in _step(code, at)]


def _step(code: Any, at: Any) -> Iterator[int]:
    if code == op.LITERAL:
        yield 1
    elif code in SINGLE:
        yield 0
    elif code == op.BRANCH:
        yield from _costliest(at[1])
    elif code in REPEATS:
        yield from _repeat(*at)
    elif code == op.SUBPATTERN:
        yield from _tokens(at[-1])
    elif code == op.ATOMIC_GROUP:
        yield from _tokens(at)
    elif code in (op.ASSERT, op.ASSERT_NOT):
        yield from (min(token, 0) for token in _tokens(at[1]))
    elif code != op.AT:
        raise _Endless(f"it uses {str(code).lower()}")


def _repeat(least: int, most: int, body: Any) -> Iterator[int]:
    inner = _tokens(body)
    if most <= 1:
        yield from inner if least else [-2, *(min(token, 0) for token in inner)]
    elif any(code not in SINGLE for code, _ in _flat(body)):
        raise _Endless("a repeat holds a choice or a repeat")
    elif least == most and most <= MOST_LETTERS:
        yield from inner * min(most, 2)
    else:
        yield -1


def _flat(pattern: Any) -> Iterator[tuple[Any, Any]]:
    """The steps of a pattern, those of groups in their place."""
    for code, at in pattern:
        yield from _flat(at[-1]) if code == op.SUBPATTERN else [(code, at)]


def _costliest(branches: list[Any]) -> Tokens:
    """The number of choices, and the branch with most repeats or what text each at least has."""
    texts = [_literal(branch) for branch in branches]
    known = [text for text in texts if text is not None]
    if len(known) == len(texts):  # only a text and its beginnings can fit in one place
        count = Counter(known)
        ways = max(sum(count[text[:i]] for i in range(len(text) + 1)) for text in count)
        least = min(map(len, known))
        return [-ways, least] if ways > 1 else [least]
    tokens = [_tokens(branch) for branch in branches]
    worst = max(tokens, key=lambda x: (_loose(x), x.count(-1), _choices(x)))
    least = min(map(_text, tokens))
    return [-len(tokens), *(worst if min(worst, default=0) < 0 else [least])]


def _literal(pattern: Any) -> str | None:
    """The one text that a pattern fits, None for other patterns."""
    steps = list(_flat(pattern))
    return "".join(chr(at) for _, at in steps) if all(c == op.LITERAL for c, _ in steps) else None


def _choices(tokens: Tokens) -> int:
    """How many combinations of choices there are."""
    return prod(-token for token in tokens if token < -1)


def _text(tokens: Tokens) -> int:
    """Length of the longest text that must be there."""
    longest = run = 0
    for token in tokens:
        run = run + token if token > 0 else 0
        longest = max(longest, run)
    return longest


def _loose(tokens: Tokens) -> int:
    """Repeats that are not followed, before the next one, by text of two letters or more."""
    places = [i for i, token in enumerate(tokens) if token == -1]
    ends = [*places[1:], len(tokens)]
    return sum(_text(tokens[i:j]) < 2 for i, j in zip(places, ends, strict=False))
