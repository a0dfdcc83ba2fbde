"""Several data sets under one model: the test items of each, and what these can read on it."""

from collections.abc import Sequence

from wsrun.report.console import console
from wsrun.study.options import Common
from wsrun.study.session import Session
from wsrun.study.start import checked_reads, load_session, read_asked


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
