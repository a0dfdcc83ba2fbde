"""At which learning rate does an adapter family learn most from these pairs, in so many steps?

Question:   which of a few rates leaves the least loss on validation pairs, of both poles together?
Prediction: none; this script chooses a training option, and looks at no effect.
Rule:       the rate with the least sum of both poles' mean -log p(response | prompt), per token.

    python experiments/learning_rates.py --model smollm2 --data truthfulqa:TruthfulQA.csv
    python experiments/learning_rates.py --families oft --factors 0.1 0.3 1 3

Rates are the recipe's, times the factors; for DeLoRA, whose change is as large as its lambda says
whatever the rate, the factors multiply lambda. Each training is as t0_train's, but shorter, and is
kept in a folder of its own: a stopped run, started again, goes on where it was.
"""

from wsrun.script import guarded

from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path

import polars as pl

from wscore import norm, tensors_sha256
from wscore.files import read_json
from wsrun.adapters.extract import pair_deltas
from wsrun.data.items import items_sha256
from wsrun.models.load import limit_threads, load_model
from wsrun.report.console import console, grid
from wsrun.report.tables import check_writable, provenance, write_table
from wsrun.study.answers import answers, check_answering, read_sources
from wsrun.study.options import check_once
from wsrun.study.training import Training, check_training, recipe_of, train, with_recipe

NAME = "learning_rates"
HEADS = ("seed", "family", "lr", "lambda", "loss of pos", "loss of neg", "sum", "|dW|", "least")


@dataclass(frozen=True)
class Config(Training):
    """Options of learning_rates."""

    factors: tuple[float, ...] = (0.3, 1.0, 3.0)
    """what the recipe's rate of a family is multiplied with"""
    steps: int | None = 20
    """steps per adapter"""
    adapters: Path = Path("artifacts/rates")
    """folder that receives x<factor>/<family>-s<seed>"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""
    dtype: str = "float32"
    """dtype of the model"""
    device: str = "cpu"
    """device of the model"""


def main(cfg: Config) -> None:
    """Train each family at each rate, read the validation losses, and say which is least."""
    check_training(cfg, NAME)
    check_answering(cfg, NAME)
    check_once(NAME, {"factors": cfg.factors})
    if not all(isfinite(f) and f > 0 for f in cfg.factors):
        raise ValueError(f"{NAME}: --factors must be above 0 and finite")
    cfg = replace(with_recipe(cfg), select="loss")
    for written in (cfg.adapters, cfg.out):
        check_writable(written)
    sources = read_sources(cfg)
    model, tok = load_model(cfg.model, cfg.dtype, cfg.device)
    limit_threads(model)
    answered = answers(cfg, model, tok, sources, cfg.seeds, validate=True)
    lines = []
    for family in cfg.families:
        for factor in cfg.factors:
            one = scaled(cfg, family, factor)
            train(one, model, tok, answered, [(seed, family) for seed in cfg.seeds])
            lines += [
                line(one, family, seed, norm(pair_deltas(model, folder(one, family, seed)).dW))
                for seed in cfg.seeds
            ]
    table = with_least(pl.DataFrame(lines))
    record = provenance(
        asdict(cfg),
        base=tensors_sha256(dict(model.named_parameters())),
        answers={str(s): items_sha256(a.pairs) for s, a in answered.items()},
    )
    path = write_table(table, cfg.out / f"{NAME}.parquet", record)
    steps = recipe_of(cfg).steps
    title = f"{cfg.model}: validation loss after {steps} steps, nats per token"
    console.print(grid(title, HEADS, table.rows()))
    console.print(f"table {path}", highlight=False)
    console.print("t0_train trains at the recipe's rates; --lr and --delora-lambda give others")


def scaled(cfg: Config, family: str, factor: float) -> Config:
    """The options of one training: the family's rate times the factor, or DeLoRA's lambda."""
    recipe, out = recipe_of(cfg), cfg.adapters / f"x{factor:g}"
    if family == "delora":
        return replace(cfg, delora_lambda=recipe.delora_lambda * factor, adapters=out)
    return replace(cfg, lr=recipe.lr[family] * factor, adapters=out)


def folder(cfg: Config, family: str, seed: int) -> Path:
    return cfg.adapters / f"{family}-s{seed}"


def line(cfg: Config, family: str, seed: int, size: float) -> dict:
    """What the record of a training says of it."""
    record, recipe = read_json(folder(cfg, family, seed) / "training.json"), recipe_of(cfg)
    pos, neg = (record["validation_losses"][s][str(record["step"])] for s in ("pos", "neg"))
    scale = recipe.delora_lambda if family == "delora" else None
    rate = {"seed": seed, "family": family, "lr": recipe.lr[family], "lambda": scale}
    return rate | {"pos": pos, "neg": neg, "sum": pos + neg, "size": size}


def with_least(table: pl.DataFrame) -> pl.DataFrame:
    """The table with column `least`: whether a rate has the family's least loss, over its seeds."""
    total = pl.col("sum").sum().over("family", "lr", "lambda")
    return table.with_columns(least=total == total.min().over("family"))


if __name__ == "__main__":
    guarded(main, Config)
