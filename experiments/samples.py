"""What does the model say, to the same prompts, at each dose of dW?

Question:   how do the answers of the base and of the steered model read, side by side?
Prediction: none; this script shows, the other ones measure.
Rule:       none. A seed draws the prompts from the test split, one a cluster, and decoding is
            greedy, so that neither prompts nor answers are picked.

    python experiments/samples.py
    python experiments/samples.py --model smollm2 --data truthfulqa:TruthfulQA.csv \\
        --adapters artifacts/adapters --families lora

Prompts are the open questions of the data (questions.jsonl), else its items, asked for an open
answer. Where items have two replies, the margin at each dose stands beside the answer: the log odds
of the reply that shows the behaviour.
"""

from wsrun.script import guarded

from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path

from wscore import tensors_sha256
from wsrun.adapters.configs import check_family
from wsrun.data.items import items_sha256
from wsrun.models.load import limit_threads, load_model
from wsrun.report.answer_section import MARGIN, answer_tables
from wsrun.report.console import console, progress
from wsrun.report.tables import check_writable, provenance, write_table
from wsrun.steer.interventions import WeightDelta
from wsrun.study.next_command import say_next
from wsrun.study.options import Common, check_once
from wsrun.study.samples import (
    ALPHAS,
    answers_by_change,
    askable,
    draw_prompts,
    margins,
    sample_table,
)
from wsrun.study.session import read_pairs

NAME = "samples"


@dataclass(frozen=True)
class Config:
    """Options of samples."""

    model: str = "data/organism"
    """model folder, GGUF file, smollm2 or hub name"""
    data: str = "data/organism"
    """folder with questions.jsonl or items, or a public set such as truthfulqa:PATH"""
    adapters: Path = Path("data/organism/adapters")
    """folder with <family>-s<seed>/pos and /neg, trained on that model (t0_train writes one)"""
    families: tuple[str, ...] = ("lora",)
    """adapter families whose dW steers"""
    seeds: tuple[int, ...] = (0,)
    """whose adapters"""
    alphas: tuple[float, ...] = ALPHAS
    """coefficients alpha of dW; 0 is the base"""
    n: int = 4
    """how many prompts"""
    prompt_seed: int = 0
    """seed that draws the prompts"""
    max_new_tokens: int = 64
    """longest answer; a longer one is cut there and ends with an ellipsis"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""
    dtype: str = "float32"
    """dtype of the model"""
    device: str = "cpu"
    """device of the model"""


def main(cfg: Config) -> None:
    """Draw prompts, answer them at every dose, print the answers below each, write the table."""
    check(cfg)
    prompts = draw_prompts(askable(cfg.data), cfg.n, cfg.prompt_seed)
    model, tok = load_model(cfg.model, cfg.dtype, cfg.device)
    limit_threads(model)
    common = {n: getattr(cfg, n) for n in ("families", "seeds", "adapters", "model")}
    pairs = read_pairs(model, Common(**common))
    changes = {key: WeightDelta(pair.dW) for key, pair in pairs.items()}
    runs = len(changes) * sum(map(bool, cfg.alphas)) + (0.0 in cfg.alphas)
    with progress("answering", runs) as step:
        answers = answers_by_change(
            model, tok, prompts, changes, cfg.alphas, cfg.max_new_tokens, step
        )
    found = margins(model, tok, prompts, changes, cfg.alphas)
    table = sample_table(cfg.model, prompts, answers, found)
    record = provenance(
        asdict(cfg),
        base=tensors_sha256(dict(model.named_parameters())),
        items=items_sha256(prompts),
        deltas={f"{f}-s{s}": tensors_sha256(p.dW) for (f, s), p in pairs.items()},
        prompts=[p.id for p in prompts],
    )
    path = write_table(table, cfg.out / f"{NAME}.parquet", record)
    for block in answer_tables(table):
        console.print(block, highlight=False)
    if found:
        console.print(f"\nnumbers: {MARGIN}", highlight=False)
    console.print(f"\ntable {path}", highlight=False)
    say_next(cfg, "t2_dilemmas", "how large the effect is at each dose")


def check(cfg: Config) -> None:
    """Refuse options that cannot work before anything is loaded."""
    for family in cfg.families:
        check_family(family)
    lists = {"families": cfg.families, "seeds": cfg.seeds, "alphas": cfg.alphas}
    check_once(NAME, lists)
    if not all(map(isfinite, cfg.alphas)) or not any(cfg.alphas):
        raise ValueError(f"{NAME}: --alphas must be finite, and one of them not 0")
    if cfg.n < 1 or cfg.max_new_tokens < 1:
        raise ValueError(f"{NAME}: --n and --max-new-tokens must be at least 1")
    check_writable(cfg.out)


if __name__ == "__main__":
    guarded(main, Config)
