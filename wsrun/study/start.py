"""The start of an experiment: the model, its items, and whether these can read it at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from wsrun.data.items import Item
from wsrun.data.personas import load_personas, persona_names
from wsrun.data.source import beside, load_items, read_items
from wsrun.models.load import limit_threads, load_model
from wsrun.report.console import console, progress
from wsrun.study.instrument import check, passes
from wsrun.study.options import Common, Limited
from wsrun.study.session import Session
from wsrun.study.shards import run_on_ray

WORDINGS = 2
"""prompts of each pole that the check tries"""


class Asked(NamedTuple):
    """Items to score, those that the instrument check reads, and what was left out of their set."""

    items: list[Item]
    to_check: list[Item]
    left_out: tuple[str, ...] = ()


def read_asked(cfg: Limited, source: str | Path, dilemmas: int | None = None) -> Asked:
    """The test items of a source. What they can read is checked on all, whatever --limit says."""
    items, left_out = read_items(source, "test", dilemmas, cfg.limit)
    same = cfg.limit == cfg.check_limit
    to_check = items if same else load_items(source, "test", dilemmas, cfg.check_limit)
    return Asked(items, to_check, left_out)


def run_shards(cfg: Common) -> None:
    """With --executor ray, score every shard of this command; the sweep then finds the results."""
    if cfg.executor == "ray":
        run_on_ray(cfg.cache_dir, cfg.device, cfg.workers)


def load_session(cfg: Common, asked: Asked | None = None) -> Session:
    """The test items, or those asked, and the model of the options, checked against them.

    Says what was left out of a public set, and what the items can read on this model.
    """
    asked = asked or read_asked(cfg, cfg.data, cfg.dilemmas)
    for sentence in asked.left_out:
        console.print(sentence, highlight=False)
    model, tok = load_model(cfg.model, cfg.dtype, cfg.device)
    limit_threads(model)
    session = Session(model, tok, asked.items)
    checking = session._replace(items=asked.to_check)
    reads = checked_reads(checking, cfg.data, cfg.pos, cfg.neg, cfg.resamples, cfg.cache_dir)
    return session._replace(reads=reads)


def load_sessions(cfg: Common, sets: Sequence[str], what: str) -> list[Session]:
    """The test items of --data and of each further set; ValueError for two sets of one name."""
    first, *others = (read_asked(cfg, source, cfg.dilemmas) for source in (cfg.data, *sets))
    names = {i.dataset for i in first.items}
    for source, asked in zip(sets, others, strict=True):
        console.print(*asked.left_out, sep="\n", end="\n" * bool(asked.left_out))
        if twice := names & {i.dataset for i in asked.items}:
            raise ValueError(
                f"{what}: --sets gives {sorted(twice)[0]!r} twice, again with {source!r}; "
                "name each set once"
            )
        names |= {i.dataset for i in asked.items}
    found = [load_session(cfg, first)]
    for source, asked in zip(sets, others, strict=True):
        one = found[0]._replace(items=asked.to_check)
        reads = checked_reads(one, source, cfg.pos, cfg.neg, cfg.resamples, cfg.cache_dir)
        found.append(one._replace(items=asked.items, reads=reads))
    return found


def together(found: Sequence[Session]) -> Session:
    """One session of all items, for the record."""
    items = [i for s in found for i in s.items]
    return found[0]._replace(items=items, reads={k: v for s in found for k, v in s.reads.items()})


def load_splits(cfg: Common) -> tuple[Session, Session]:
    """(validation, test): one model, the items of both splits, checked to be disjoint."""
    test = load_session(cfg)
    validation = load_items(cfg.data, "validation", cfg.dilemmas, cfg.limit)
    check_disjoint(validation, test.items)
    return test._replace(items=validation), test


def checked_reads(
    session: Session,
    data: str | Path,
    pos: str,
    neg: str,
    resamples: int = 2000,
    cache_dir: Path | None = None,
) -> dict[str, str]:
    """{data set: a key of `READS`} by the instrument check, whose sentences are printed."""
    prompts = personas(data, pos, neg)
    with progress("checking the instrument", passes(prompts)) as step:
        found = check(
            session.model, session.tok, session.items, prompts,
            resamples=resamples, cache_dir=cache_dir, done=step,
        )  # fmt: skip
    for sentence in found.sentences:
        console.print(sentence, highlight=False)
    return dict(found.table.select("dataset", "reads").iter_rows())


def personas(data: str | Path, pos: str, neg: str) -> tuple[list[str], list[str]]:
    """The first system prompts of both poles; none where the data has no personas of the names."""
    file = beside(data, "personas.json")
    if not file.is_file() or not {pos, neg} <= {*persona_names(file)}:
        return [], []
    of_pos, of_neg = load_personas(file, pos, neg)
    return of_pos[:WORDINGS], of_neg[:WORDINGS]


def check_disjoint(validation: Sequence[Item], test: Sequence[Item]) -> None:
    """Raises ValueError where a claim or dilemma stands in both splits."""
    known = {(i.dataset, i.cluster) for i in validation}
    if both := sorted({(i.dataset, i.cluster) for i in test} & known):
        raise ValueError(
            f"benchmark: {len(both)} clusters are in the validation and in the test split, such as "
            f"{both[0]}; what is selected on an item must not be reported on it"
        )
