"""Where paired answers come from: options, and a file, a public set, or the model itself."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wsrun.data.answering import SAMPLED, Decoding, NoPairs
from wsrun.data.named import DATA_SETS, named, named_pairs
from wsrun.data.pairs import (
    Answers,
    Pair,
    load_questions,
    pairs_by_split,
    pairs_of,
    questions_by_split,
    shuffle_poles,
)
from wsrun.data.pairs_cache import cached_pairs
from wsrun.data.personas import load_personas
from wsrun.data.source import beside
from wsrun.models.generate import sampling_fault
from wsrun.report.console import console, progress
from wsrun.report.tables import check_writable
from wsrun.study.options import Answering

REAL = Decoding(temperature=0.7, top_p=0.9, unfinished="cut")
"""how a real model answers where the options do not say: at 1 and 1 a small one rambles"""


class Sources(NamedTuple):
    """What answers are made from: open questions and the wordings of both personas; or given."""

    questions: Sequence[dict] = ()
    validation: Sequence[dict] = ()
    pos: Sequence[str] = ()
    neg: Sequence[str] = ()
    given: Answers | None = None
    where: str = ""
    """where given pairs are from"""


def check_answering(cfg: Answering, what: str) -> None:
    """Refuse options that cannot work before anything is loaded; `what` names the script."""
    if cfg.pos == cfg.neg:
        raise ValueError(f"{what}: --pos and --neg are both {cfg.pos!r}; name two personas")
    how = decoding_of(cfg)
    if fault := sampling_fault(how.temperature, how.top_p, how.max_new_tokens):
        raise ValueError(f"{what}: --{fault[0].replace('_', '-')} {fault[1]}")
    if cfg.filter_pairs and (where := _given_source(cfg)):
        raise ValueError(
            f"{what}: --filter-pairs is for the model's own answers, and these are given by "
            f"{where!r}; filter the file"
        )
    if not cfg.pairs_file:
        check_writable(cfg.pairs_cache)


def is_organism(model: str) -> bool:
    """Whether a model is the embedded one: by the name of its folder, organism."""
    return Path(model).absolute().name == "organism"


def decoding_of(cfg: Answering) -> Decoding:
    """How the model of the options answers: as they say, else SAMPLED for the organism or REAL."""
    usual = SAMPLED if is_organism(cfg.model) else REAL
    given = {n: v for n in Decoding._fields if (v := getattr(cfg, n)) is not None}
    return usual._replace(**given)


def read_sources(cfg: Answering) -> Sources:
    """Given pairs, or the questions and both personas; raises ValueError where one is missing.

    Pairs are given by --pairs-file, and by a public set that has pairs of its own; training takes
    the split train.
    """
    if where := _given_source(cfg):
        found = _given_pairs(where, cfg.pos)
        given = Answers(pairs_of(found, "train", where), found.get("validation", []))
        return Sources(given=given, where=where)
    pos, neg = load_personas(beside(cfg.data, "personas.json"), cfg.pos, cfg.neg)
    path = beside(cfg.data, "questions.jsonl")
    held_out = questions_by_split(path).get("validation", ())
    return Sources(load_questions(path, "train"), held_out, pos, neg)


def _given_source(cfg: Answering) -> str | None:
    """The file or NAME:PATH of pairs that are not the model's own answers."""
    if cfg.pairs_file:
        return str(cfg.pairs_file)
    found = named(str(cfg.data))
    return str(cfg.data) if found and DATA_SETS[found[0]].read_pairs else None


def _given_pairs(where: str, behaviour: str) -> dict[str, list[Pair]]:
    """{split: pairs}; a public set has one behaviour, whatever it is called."""
    if not (found := named(where)):
        return pairs_by_split(where, behaviour)
    name, path = found
    train = named_pairs(where, "train") or []
    read = DATA_SETS[name].read_pairs
    return {"train": train, "validation": read(path, "validation") if read else []}


def answers(
    cfg: Answering,
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    sources: Sources,
    seeds: Sequence[int],
    validate: bool = False,
) -> dict[int, Answers]:
    """{seed: answers}: those given, or the model's own under both personas.

    The model answers the validation questions too only with `validate`. Says how many questions
    gave a pair, why others gave none, and in how many the model itself tells the poles apart.
    """
    if sources.given:
        found = dict.fromkeys(seeds, sources.given)
        console.print(
            f"answers given by {sources.where}: {len(sources.given.pairs)} pairs to train on, "
            f"{len(sources.given.validation)} of the validation split",
            highlight=False,
        )
    else:
        found = {seed: _own(cfg, model, tok, sources, seed, validate) for seed in seeds}
    if cfg.shuffle_poles:
        console.print("poles are swapped for half of the questions: a control without behaviour")
        found = {s: Answers(*(shuffle_poles(part, s) for part in a)) for s, a in found.items()}
    return found


def _own(
    cfg: Answering,
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    sources: Sources,
    seed: int,
    validate: bool,
) -> Answers:
    """The model's own answers of one seed, to all training and, if asked, validation questions."""
    how = decoding_of(cfg)

    def of(questions: Sequence[dict], name: str) -> list[Pair]:
        made = cached_pairs(
            model, tok, questions, sources.pos, sources.neg, how, seed=seed,
            folder=cfg.pairs_cache, progress=lambda what, n: progress(f"{what} of {name}", n),
        )  # fmt: skip
        made = made.filtered() if cfg.filter_pairs else made
        drawn = f"temperature {how.temperature:g}, top-p {how.top_p:g}"
        console.print(f"answers of {name} ({drawn}): {made}", highlight=False)
        return made.pairs

    pairs, held_out = of(sources.questions, f"seed {seed}"), []
    if validate and sources.validation:
        with suppress(NoPairs):
            held_out = of(sources.validation, f"seed {seed}, validation")
    return Answers(pairs, held_out)
