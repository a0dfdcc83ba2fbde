"""Do other servers say what wsrun says of a steered model?

Question:   how far are margins of exports in other servers from wsrun's, and which answers differ?
Prediction: transformers, PEFT and lm-eval differ by the rounding of float32; llama.cpp on a
            quantised base by as much as without the LoRA, on the same base in float32 by little.
Rule:       none; per server and alpha the largest difference in nats, and how many equal answers.

    python experiments/bench_serving.py --data truthfulqa:TruthfulQA.csv

margin = log p(best answer) - log p(best incorrect one), of the same tokens everywhere. merged holds
one alpha, the last of --alphas; PEFT and llama.cpp take it as a scale. What llama.cpp's precision
does is its line at alpha = 0, and those of the same base in float32 with a cache of 32 bits.
"""

from wsrun.script import guarded

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import polars as pl
from transformers import PreTrainedModel

from wscore import DeltaLike
from wsrun.data.source import load_items
from wsrun.export.gguf_lora import FILE, save_gguf_lora
from wsrun.export.lora import save_lora
from wsrun.export.merged import save_merged
from wsrun.models.gguf import gguf_file
from wsrun.models.load import limit_threads, load_model
from wsrun.report.console import console
from wsrun.report.tables import check_writable
from wsrun.steer.interventions import WeightDelta
from wsrun.study import serving
from wsrun.study.options import Common, check_once
from wsrun.study.profile import finish
from wsrun.study.serving import Questions, Served
from wsrun.study.session import read_pairs

NAME = "bench_serving"
SERVERS = ("merged", "peft", "lmeval", "llamacpp")
PACKAGES = {"lmeval": "lm_eval", "llamacpp": "llama_cpp"}


@dataclass(frozen=True)
class Config:
    """Options of bench_serving."""

    model: str = "smollm2"
    """model folder, GGUF file, smollm2 or hub name"""
    data: str = "truthfulqa:TruthfulQA.csv"
    """items with two replies, such as truthfulqa:PATH"""
    adapters: Path = Path("data/smollm2/adapters")
    """folder with <family>-s<seed>/pos and /neg"""
    family: str = "lora"
    """adapter family"""
    limit: int = 40
    """how many test questions"""
    alphas: tuple[float, ...] = (-1.0, 0.5, 1.0)
    """coefficients of dW; the last one is merged"""
    servers: tuple[Literal["merged", "peft", "lmeval", "llamacpp"], ...] = SERVERS
    """which servers; one that is not installed is named and left out"""
    lmeval_python: str = sys.executable
    """Python that has lm_eval"""
    llama_python: str = sys.executable
    """Python that has llama_cpp"""
    gguf: Path | None = None
    """base for llama.cpp; the file of --model if that is one"""
    max_new_tokens: int = 32
    """longest answer"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""


def main(cfg: Config) -> None:
    """Export, ask wsrun and every server the same, and print how far they are apart."""
    check(cfg)
    if not (items := [i for i in load_items(cfg.data, "test", limit=cfg.limit) if i.replies]):
        raise ValueError(f"{NAME}: --data {cfg.data!r} has no items of two replies; give some")
    model, tok = load_model(cfg.model)
    limit_threads(model)
    common = Common(model=cfg.model, adapters=cfg.adapters, families=(cfg.family,), seeds=(0,))
    (pair,) = read_pairs(model, common).values()
    asked = serving.Questions(tok, items[: cfg.limit], cfg.max_new_tokens)
    own = serving.by_wsrun(model, asked, WeightDelta(pair.dW), (0.0, *cfg.alphas))
    wanted = {s.alpha: s for s in own}
    with TemporaryDirectory() as work:
        found = list(served(cfg, model, pair.dW, asked, Path(work)))
    lines = [line(s, wanted[s.alpha]) for s in found]
    finish(cfg, NAME, f"{len(asked.items)} questions, margins in nats", lines)


def check(cfg: Config) -> None:
    """Raises ValueError for options that cannot work."""
    check_once(NAME, {"alphas": cfg.alphas, "servers": cfg.servers})
    if not all(isfinite(a) and a for a in cfg.alphas) or min(cfg.limit, cfg.max_new_tokens) < 1:
        raise ValueError(
            f"{NAME}: --alphas must be finite and not 0, --limit and --max-new-tokens at least 1"
        )
    check_writable(cfg.out)


def served(
    cfg: Config, model: PreTrainedModel, dW: DeltaLike, asked: Questions, work: Path
) -> Iterator[Served]:
    """What each server says that is there; one that is not is named with what to do."""
    last, pythons = cfg.alphas[-1], {"lmeval": cfg.lmeval_python, "llamacpp": cfg.llama_python}
    why = {s: serving.lacking(pythons[s], PACKAGES[s]) for s in cfg.servers if s in PACKAGES}
    base = cfg.gguf or gguf_file(cfg.model)
    if not base and "llamacpp" in why:
        why["llamacpp"] = f"{cfg.model!r} is no GGUF file; give --gguf"
    for name in filter(why.get, why):
        console.print(f"{name} is left out: {why[name]}")
    there = {s for s in cfg.servers if not why.get(s)}
    if there & {"merged", "lmeval"}:
        save_merged(cfg.model, dW, last, work / "merged", dtype="float32")
    if "merged" in there:
        yield serving.by_transformers(work / "merged", asked, last)
    if "peft" in there:
        save_lora(model, dW, work / "lora")
        yield from serving.by_peft(model, work / "lora", asked, cfg.alphas)
    if "lmeval" in there:
        yield serving.by_lm_eval(cfg.lmeval_python, work / "merged", work, asked, last)
    if base and "llamacpp" in there:
        save_gguf_lora(model, dW, work / "gguf", base_gguf=base)
        whole = serving.dequantised(base, work / "float32.gguf")
        ask = partial(serving.by_llama_cpp, cfg.llama_python, work, asked, work / "gguf" / FILE)
        kind, doses = base.stem.rpartition(".")[2], (0.0, *cfg.alphas)
        yield from ask(base, f"llama.cpp, {kind}", doses)
        yield from ask(whole, "llama.cpp, float32", doses, cache=32)


def line(one: Served, own: Served) -> dict[str, Any]:
    """How far the margins are from wsrun's own, and how many answers are equal."""
    gaps = pl.Series(one.margins) - pl.Series(own.margins)
    equal = sum(a == b for a, b in zip(one.answers, own.answers, strict=True))
    return {
        "server": one.server, "alpha": one.alpha,
        "mean_margin": sum(one.margins) / len(one.margins), "mean_difference": gaps.mean(),
        "largest_difference": gaps.abs().max(), "equal_answers": equal,
    }  # fmt: skip


if __name__ == "__main__":
    guarded(main, Config)
