"""What a border is to the fuzz run, how a case ends, and ways to damage bytes and values."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

OUTCOMES = ("refused", "right", "untidy", "traceback", "memory", "hang", "wrong")
GOOD = OUTCOMES[:2]
"""a clear sentence, or accepted and right"""
LONGEST = 700  # letters of a message


class Case(NamedTuple):
    """One damaged input: what was done to it, how it is read, what may come back.

    names: at least one of these texts must stand in a refusal, such as the file's name or the
    option's. right: whether a result that was accepted is right; None where nothing may be.
    """

    what: str
    read: Callable[[], Any]
    names: tuple[str, ...]
    right: Callable[[Any], bool] | None = None


class Border(NamedTuple):
    """A place where files or values of users come in: case(random numbers, empty folder) -> Case.

    prepare(folder) makes, once a process, what all cases start from.
    """

    name: str
    prepare: Callable[[Path], Any]
    case: Callable[[random.Random, Path, Any], Case]


class Outcome(NamedTuple):
    """How a case ended, one of OUTCOMES, and what was done and said."""

    kind: str
    what: str
    message: str = ""


def outcome(case: Case) -> Outcome:
    """Read the case and tell how it ended.

    A ValueError is a refusal: clear if it is one printable line, not too long, that names what it
    is about. MemoryError and any other exception are defects.
    """
    try:
        result = case.read()
    except ValueError as error:
        kind = "refused" if type(error) is ValueError or is_ours(error) else "traceback"
        message = str(error)
        return Outcome(kind if kind != "refused" or tidy(message, case) else "untidy",
                       case.what, message)  # fmt: skip
    except MemoryError as error:
        return Outcome("memory", case.what, repr(error))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Outcome("traceback", case.what, f"{type(error).__name__}: {error}")
    right = case.right is not None and case.right(result)
    return Outcome("right" if right else "wrong", case.what, repr(result)[:300])


def is_ours(error: ValueError) -> bool:
    """Whether a subclass of ValueError is one of this project's own."""
    return type(error).__module__.split(".")[0] in ("wscore", "wsrun")


def tidy(message: str, case: Case) -> bool:
    """Whether a refusal is one printable line of a sensible length that names what it is about."""
    named = any(name in message for name in case.names)
    return named and message.isprintable() and 20 < len(message) <= LONGEST


ODD_NUMBERS = (0, -1, 1, 2, 2**31, -(2**63), 10**30, 1.5, -0.0, 1e308, float("nan"), float("inf"))
ODD_TEXTS = ("", "x", " ", "\0", "\n", "é", "\u202e", "[/red]", "{{", "../..", "1", "None",
             "a" * 3000, "(a+)+$", "\ud800")  # fmt: skip


def odd_value(rng: random.Random, old: Any = None) -> Any:
    """A value that is unlikely to be valid: of another type, of another size, empty, nested."""
    deep: Any = []
    for _ in range(rng.choice([2, 50])):
        deep = [deep]
    return rng.choice([
        None, True, False, rng.choice(ODD_NUMBERS), rng.choice(ODD_TEXTS), [], {}, deep,
        [old], {"x": old}, str(old), [old, old], {str(old): 1},
    ])  # fmt: skip


def damaged_value(rng: random.Random, value: Any) -> tuple[Any, str]:
    """(a copy with one node changed, dropped, doubled or added, what was done), for JSON values."""
    places = list(_places(value))
    if not places:
        return odd_value(rng, value), "whole value replaced"
    path = rng.choice(places)
    copy = _copied(value)
    at = copy
    for key in path[:-1]:
        at = at[key]
    key, how = path[-1], rng.choice(["replace", "replace", "replace", "drop", "rename", "swap"])
    where = "/".join(map(str, path))
    if how == "drop":
        del at[key]
        return copy, f"{where} dropped"
    if how == "rename" and isinstance(at, dict):
        at[str(key) + rng.choice(["_", "s", " ", "\u200b"])] = at.pop(key)
        return copy, f"{where} renamed"
    if how == "swap":
        other = rng.choice(places)
        new = value
        for k in other:
            new = new[k]
        at[key] = _copied(new)
        return copy, f"{where} is what {'/'.join(map(str, other))} is"
    at[key] = odd_value(rng, at[key])
    return copy, f"{where} is {at[key]!r}"[:200]


def _places(value: Any, path: tuple = ()) -> Any:
    if not isinstance(value, dict | list):
        return
    for key, x in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        yield from _places(x, (*path, key))


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value


def damaged_bytes(rng: random.Random, raw: bytes) -> tuple[bytes, str]:
    """(the bytes with one place damaged, what was done): a flip, a cut, a hole, more."""
    n = len(raw)
    at, length = rng.randrange(max(n, 1)), rng.choice([1, 4, 64, 4096])
    how = rng.choice(["flip", "flip", "cut", "zero", "remove", "insert", "double", "empty"])
    if how == "flip" and n:
        changed = bytearray(raw)
        changed[at] ^= 1 << rng.randrange(8)
        return bytes(changed), f"a bit of byte {at} of {n} flipped"
    if how == "cut":
        return raw[:at], f"cut after byte {at} of {n}"
    if how == "zero":
        return raw[:at] + bytes(min(length, n - at)) + raw[at + length :], f"zeros from byte {at}"
    if how == "remove":
        return raw[:at] + raw[at + length :], f"{length} bytes removed at byte {at}"
    if how == "insert":
        return raw[:at] + rng.randbytes(length) + raw[at:], f"{length} bytes put in at byte {at}"
    if how == "double":
        return raw + raw, "written twice"
    return b"", "empty"
