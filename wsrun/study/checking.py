"""The instrument check from its options to its table, its printed lines and its sentences."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from wscore import tensors_sha256
from wsrun.data.items import items_sha256
from wsrun.data.personas import load_personas
from wsrun.data.source import beside, read_items
from wsrun.models.load import limit_threads, load_model
from wsrun.report.console import console, grid, progress
from wsrun.report.tables import check_writable, provenance, write_table
from wsrun.study.instrument import check, passes

NAME = "check"
HEADS = ("data set", "n", "mass", "accuracy", "poles apart", "bias apart", "hint apart", "reads")


@dataclass(frozen=True)
class CheckOptions:
    """Options of the check."""

    model: str = "data/organism"
    """model folder, GGUF file, smollm2 or hub name"""
    data: str = "data/organism"
    """folder with claims.jsonl, dilemmas.jsonl and personas.json, or a public set NAME:PATH"""
    split: str = "test"
    """which items"""
    dilemmas: int | None = 20
    """how many of the dilemmas, the first by dilemma_idx; None for all"""
    limit: int | None = None
    """how many clusters of every other data set, drawn by a hash; None for all"""
    pos: str = "honest"
    """persona towards the behaviour"""
    neg: str = "dishonest"
    """persona away from it"""
    wordings: int = 2
    """how many prompts of each persona, the first ones; 0 for none"""
    resamples: int = 2000
    """bootstrap resamples"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""
    cache_dir: Path = Path("artifacts/cache")
    """folder of finished results, which every experiment finds again"""
    dtype: str = "float32"
    """dtype of the model"""
    device: str = "cpu"
    """device of the model"""


def run_check(cfg: CheckOptions) -> None:
    """Score the base, the prompts and what gives the answers away; say what can be read."""
    if cfg.wordings < 0 or cfg.resamples < 1:
        raise ValueError(f"{NAME}: --wordings must be at least 0 and --resamples at least 1")
    check_writable(cfg.out)
    check_writable(cfg.cache_dir)
    items, left_out = read_items(cfg.data, cfg.split, cfg.dilemmas, cfg.limit)
    console.print(*left_out, sep="\n", highlight=False, end="\n" if left_out else "")
    pos, neg = [], []
    if cfg.wordings:
        pos, neg = load_personas(beside(cfg.data, "personas.json"), cfg.pos, cfg.neg)
    personas = pos[: cfg.wordings], neg[: cfg.wordings]
    model, tok = load_model(cfg.model, cfg.dtype, cfg.device)
    limit_threads(model)
    with progress("scoring", passes(personas)) as step:
        result = check(
            model, tok, items, personas, resamples=cfg.resamples, cache_dir=cfg.cache_dir, done=step
        )
    record = provenance(
        asdict(cfg),
        base=tensors_sha256(dict(model.named_parameters())),
        items=items_sha256(items),
    )
    path = write_table(result.table, cfg.out / f"{NAME}.parquet", record)
    console.print(grid(f"{cfg.model}: what can be read", HEADS, map(line, result.table.to_dicts())))
    for sentence in result.sentences:
        console.print(sentence, highlight=False)
    console.print(f"table {path}", highlight=False)


def line(r: Mapping) -> list:
    """What is printed of a data set."""
    spans = [span(r, name) for name in ("accuracy", "poles", "bias", "hint")]
    return [r["dataset"], r["n"], r["mass"], *spans, r["reads"]]


def span(r: Mapping, name: str) -> str | None:
    value, lo, hi = (r.get(f"{name}{end}") for end in ("", "_lo", "_hi"))
    if value is None:
        return None
    return f"{value:.2f}" + ("" if lo is None else f" [{lo:.2f}, {hi:.2f}]")
