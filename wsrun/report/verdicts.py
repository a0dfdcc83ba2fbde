"""What the rules of the scripts said, read from the provenance of their tables as sentences."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import polars as pl

from wscore.effect import Outcome
from wscore.spread import wilson

OUTCOMES = get_args(Outcome)


class RuleResult(NamedTuple):
    """What a rule of a script says of a claim on a data set; family None: of every family."""

    dataset: str
    claim: str
    family: str | None
    outcome: str
    sentence: str
    part: str | None = None


def verdict_table(results: Iterable[RuleResult]) -> pl.DataFrame:
    """One line a result, with the columns of RuleResult."""
    schema = dict.fromkeys(RuleResult._fields, pl.String)
    return pl.DataFrame(list(results), schema=schema, orient="row")


class Said(NamedTuple):
    """What a rule said: about what, the outcome, the sentence, and the part it names."""

    about: tuple[str, ...]
    outcome: str | None
    sentence: str
    part: str | None = None


def verdicts(meta: Mapping[str, Any]) -> list[Said]:
    """What the rules said, from `verdicts` in the provenance, however it is nested."""
    return list(_walk(meta.get("verdicts", []), ()))


def _walk(found: Any, about: tuple[str, ...]) -> Iterator[Said]:
    if isinstance(found, str):
        yield Said(about, None, found)
    elif isinstance(found, Mapping) and {"outcome", "sentence"} <= set(found):
        yield Said(about, found["outcome"], found["sentence"], found.get("part"))
    elif isinstance(found, Mapping):
        for name, inner in found.items():
            yield from _walk(inner, (*about, str(name)))
    elif isinstance(found, Sequence):
        at = next((i for i, x in enumerate(found) if isinstance(x, str) and x in OUTCOMES), None)
        if at is None or at + 1 >= len(found):
            for inner in found:
                yield from _walk(inner, about)
        else:
            part = found[at + 2] if len(found) > at + 2 else None
            yield Said((*about, *map(str, found[:at])), found[at], found[at + 1], part)


def parts(meta: Mapping[str, Any], table: pl.DataFrame) -> list[str]:
    """The verdicts of an analysis: one sentence a claim, with what single families say."""
    claims: dict[tuple, list[Said]] = {}
    for v in verdicts(meta):
        claims.setdefault(v.about[:2] if len(v.about) == 3 else (v.about, v.sentence), []).append(v)
    said = []
    for found in claims.values():
        whole = next((v for v in found if v.about[2:] in ((), ("all",))), None)
        single = [v for v in found if v is not whole]
        about = ", ".join(found[0].about[:2])
        text = [] if whole is None else [*filter(None, [whole.outcome]), whole.sentence]
        text = ": ".join([about, *text] if about else text)
        text += "" if whole is None else _shares(table, whole)
        said.append(text + _families(table, single))
    return said


def headline(meta: Mapping[str, Any]) -> str:
    """supported: claims, shared core; refuted: ...: the verdicts in one line, families pooled."""
    found = [v for v in verdicts(meta) if len(v.about) < 3 or v.about[2] == "all"]
    each = []
    for outcome in OUTCOMES:
        of = ["/".join(v.about[:2]) or v.sentence for v in found if v.outcome == outcome]
        each += [f"{outcome}: {', '.join(of)}"] if of else []
    return "; ".join(each)


def _families(table: pl.DataFrame, found: Sequence[Said]) -> str:
    """; by family: supported in ia3 (attention: 0.98 kept, 0.02 left), refuted in lora, dora."""
    each = []
    for outcome in OUTCOMES:
        of = [v for v in found if v.outcome == outcome]
        names = ", ".join(v.about[2] + _shares(table, v) for v in of)
        each += [f"{outcome} in {names}"] if of else []
    return f"; by family: {', '.join(each)}" if each else ""


def _shares(table: pl.DataFrame, v: Said) -> str:
    """The retained shares of the part a claim names: lowest to highest over families and sizes."""
    name = "shared" if v.about[-1:] == ("shared core",) else v.part
    if not v.about or not name or "retained" not in table.columns:
        return ""
    lines, each = table.filter(dataset=v.about[0]), []
    if v.about[2:] not in ((), ("all",)):
        lines = lines.filter(family=v.about[2])
    for part, word in (("keep", "kept"), ("drop", "left")):
        found = lines.filter(variant=f"{part}_{name}")["retained"].drop_nulls().sort()
        ends = dict.fromkeys(f"{found[i]:.2f}" for i in (0, -1)) if len(found) else ()
        each += [f"{' to '.join(ends)} {word}"] if ends else []
    return f" ({name}: {', '.join(each)})" if each else ""


def planted(table: pl.DataFrame) -> list[str]:
    """Detections and false positives of the rules on planted truths, with Wilson's interval."""
    said = []
    for expected, what in (
        ("supported", "true claims that were found"),
        ("not supported", "false claims that were supported"),
    ):
        of = table.filter(expected=expected)
        if n := len(of):
            hits = int(of["agree"].sum())
            rate = (hits if expected == "supported" else n - hits) / n
            lo, hi = wilson(rate, n)
            said.append(f"{what}: {round(rate * n)} of {n}, {rate:.2f} [{lo:.2f}, {hi:.2f}]")
    for r in table.filter(agree=False).iter_rows(named=True):
        where = f"{r['plant']}, seed {r['seed']}, {r['rule']}"
        said.append(f"disagrees with the truth: {where}: {r['outcome']}; {r['sentence']}")
    return said
