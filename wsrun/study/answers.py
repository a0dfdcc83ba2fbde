"""Where paired answers come from: options, and a file or the model itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wsrun.data.pairs import NEW_TOKENS, Pair, load_pairs, load_questions
from wsrun.data.pairs_cache import GeneratedPairs, cached_pairs
from wsrun.data.personas import load_personas
from wsrun.data.source import beside
from wsrun.report.console import console, progress
from wsrun.report.tables import check_writable


@dataclass(frozen=True)
class Answering:
    """Options of where the paired answers come from; the same ones give the same pairs."""

    data: str = "data/organism"
    """folder with questions.jsonl, personas.json, claims.jsonl and dilemmas.jsonl"""
    pos: str = "honest"
    """persona of personas.json whose answers dW points towards"""
    neg: str = "dishonest"
    """persona whose answers dW points away from"""
    pairs_file: Path | None = None
    """jsonl of prompt, response_pos, response_neg, topic, in place of the model's own answers"""
    filter_pairs: bool = False
    """drop pairs that the model's own log-likelihood does not separate"""
    max_new_tokens: int = NEW_TOKENS
    """longest answer; a longer one counts as unfinished and is left out"""
    pairs_cache: Path = Path("artifacts/pairs")
    """cache of generated answers"""


class Sources(NamedTuple):
    """What answers are made from: open questions, and the wordings of both personas."""

    questions: list[dict]
    pos: list[str]
    neg: list[str]


def check_answering(cfg: Answering, what: str) -> None:
    """Refuse options that cannot work before anything is loaded; `what` names the script."""
    if cfg.pos == cfg.neg:
        raise ValueError(f"{what}: --pos and --neg are both {cfg.pos!r}; name two personas")
    if cfg.max_new_tokens < 1:
        raise ValueError(f"{what}: --max-new-tokens must be at least 1, got {cfg.max_new_tokens}")
    if cfg.pairs_file and cfg.filter_pairs:
        raise ValueError(f"{what}: --filter-pairs is for the model's own answers; filter the file")
    if not cfg.pairs_file:
        check_writable(cfg.pairs_cache)


def read_sources(cfg: Answering) -> Sources:
    """Questions of the training split and both personas; raises ValueError where one is missing."""
    personas = load_personas(beside(cfg.data, "personas.json"), cfg.pos, cfg.neg)
    return Sources(load_questions(beside(cfg.data, "questions.jsonl"), "train"), *personas)


def answers(
    cfg: Answering,
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    sources: Sources,
    seeds: Sequence[int],
) -> dict[int, list[Pair]]:
    """{seed: pairs}: the model's own answers under both personas, or those of --pairs-file.

    Says how many questions gave a pair, and what share of the pairs the filter kept.
    """
    if cfg.pairs_file:
        return dict.fromkeys(seeds, load_pairs(cfg.pairs_file))
    made: dict[int, GeneratedPairs] = {}
    with progress("generating pairs", len(seeds)) as step:
        for seed in seeds:
            made[seed] = cached_pairs(
                model, tok, *sources, seed=seed, folder=cfg.pairs_cache,
                max_new_tokens=cfg.max_new_tokens, filtered=cfg.filter_pairs,
            )  # fmt: skip
            step(f"{len(made[seed].pairs)} pairs")
    for seed, generated in made.items():
        console.print(f"answers of seed {seed}: {generated}")
    return {seed: generated.pairs for seed, generated in made.items()}
