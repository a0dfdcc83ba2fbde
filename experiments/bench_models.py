"""What memory and time does a model of a known size take, to train a pair and to score a variant?

Question:   what do Qwen3-0.6B, Gemma-3-1B and Qwen3-4B need for what SmolLM2 does here?
Prediction: memory is that of the weights and of one group of logits; time grows with parameters.

    python experiments/bench_models.py
    python experiments/bench_models.py --shapes 0.6b --dtype float32 --model smollm2

Models have random weights of the named shape, at two depths; what is printed for the whole model is
the line through both. Each work runs in a fresh process of one thread: `load`, the model alone;
`train`, LoRA by recipe `smollm2`, a batch of 16 answers a step; `score`, one steered variant of
questions with two answers each. `cpu_seconds` are those of one step, or of 100 questions under one
variant; `seconds` those of the whole process. Texts are given pairs of answers, under the tokenizer
of --model: the embedded model's makes twice the tokens of a language model's.
"""

from wsrun.script import guarded

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from wsrun.adapters.configs import RECIPES
from wsrun.adapters.train import train_adapter
from wsrun.data.pairs import load_pairs
from wsrun.data.source import load_items
from wsrun.models.load import DTYPES, load_tokenizer
from wsrun.report.console import progress
from wsrun.report.tables import check_writable
from wsrun.score.sweep import sweep
from wsrun.study.profile import (
    GIB,
    SHAPES,
    finish,
    line_through,
    random_change,
    random_model,
    run_alone,
    timed,
)

NAME = "bench_models"
PAIRS = "data/english/pairs.jsonl"


@dataclass(frozen=True)
class Config:
    """Options of bench_models."""

    shapes: tuple[str, ...] = tuple(SHAPES)
    """whose shapes: 0.6b, gemma-1b, 4b"""
    depths: tuple[int, int] = (10, 20)
    """layers of the two models that are measured of each shape"""
    model: str = "data/organism"
    """whose tokenizer"""
    questions: int = 8
    """how many questions to score"""
    steps: int = 3
    """training steps; the first one is left out of the mean"""
    dtype: str = "bfloat16"
    """dtype of the base weights; adapters are trained in float32"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""


def main(cfg: Config) -> None:
    """Measure every work at both depths, and print the line through them at the whole depth."""
    check(cfg)
    lines = []
    with progress("works", len(cfg.shapes) * len(cfg.depths) * len(WORKS)) as step:
        for shape in cfg.shapes:
            for name, work in WORKS.items():
                found = {}
                for depth in cfg.depths:
                    found[depth] = run_alone(work, cfg, shape, depth)
                    step(f"{name} {shape}, {depth} layers")
                lines.append({"shape": shape, "work": name} | whole(shape, found))
    title = f"{cfg.dtype}, one thread: at whole depth, by the line through {cfg.depths} layers"
    finish(cfg, NAME, title, lines)


def check(cfg: Config) -> None:
    """Raises ValueError for options that cannot work."""
    if unknown := [s for s in cfg.shapes if s not in SHAPES]:
        raise ValueError(f"bench: --shapes are {', '.join(SHAPES)}, got {unknown[0]!r}")
    if not 3 < cfg.depths[0] < cfg.depths[1]:
        raise ValueError(f"bench: --depths needs two numbers that rise from 4, got {cfg.depths}")
    if cfg.dtype not in DTYPES or cfg.steps < 2 or cfg.questions < 1:
        raise ValueError(
            f"bench: --dtype is one of {', '.join(DTYPES)}, --steps 2 or more, --questions 1 or "
            f"more; got {cfg.dtype}, {cfg.steps}, {cfg.questions}"
        )
    check_writable(cfg.out)


def whole(shape: str, found: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Every measure at the shape's whole depth."""
    depth = SHAPES[shape]["num_hidden_layers"]
    keys = next(iter(found.values()))
    return {key: line_through({n: of[key] for n, of in found.items()}, depth) for key in keys}


def load(cfg: Config, shape: str, depth: int) -> dict[str, float]:
    """The model alone: its parameters, in thousand millions, and the memory of its weights."""
    parameters = list(random_model(shape, cfg.dtype, num_hidden_layers=depth).parameters())
    numbers, size = sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters)
    return {"parameters_1e9": numbers / 1e9, "weights_gib": size / GIB}


def train(cfg: Config, shape: str, depth: int) -> dict[str, float]:
    """One step of training LoRA on a batch, the mean of all but the first."""
    model, tok = random_model(shape, cfg.dtype, num_hidden_layers=depth), load_tokenizer(cfg.model)
    pairs = load_pairs(PAIRS, "honest")

    def steps(n: int) -> float:
        recipe = replace(RECIPES["smollm2"], steps=n)
        with TemporaryDirectory() as out:
            run = partial(train_adapter, model, tok, pairs, "pos", "lora", recipe, Path(out) / "a")
            return timed(run)[0]

    first = steps(1)
    return {"cpu_seconds": (steps(cfg.steps) - first) / (cfg.steps - 1)}


def score(cfg: Config, shape: str, depth: int) -> dict[str, float]:
    """One variant of the questions, the base not counted, in seconds for 100 questions."""
    model, tok = random_model(shape, cfg.dtype, num_hidden_layers=depth), load_tokenizer(cfg.model)
    items = load_items(f"pairs:{PAIRS}", "test", limit=cfg.questions)
    change = random_change(model, 0)

    def variants(n: int) -> float:
        swept: Any = {f"change {i}": change for i in range(n)}
        return timed(lambda: sweep(model, tok, items, swept, [1.0]))[0]

    questions = len({i.id for i in items})
    return {"cpu_seconds": (variants(2) - variants(1)) * 100 / questions}


WORKS = {f.__name__: f for f in (load, train, score)}


if __name__ == "__main__":
    guarded(main, Config)
