"""How much faster is one sweep than the plain loop over variants, with the same numbers?

Question:   what do the levers of `sweep` save on the variant lists of T6 and T7, and how much of
            the machine's matrix-multiply peak does the arithmetic that remains reach?
Prediction: at least 8x on T7's list and 5x on T6's, numbers equal to 1e-4.
Rule:       ratios of times measured in one run, on one list, on the same rows.

    python experiments/bench_sweep.py                       # the organism
    python experiments/bench_sweep.py --shape 0.6b          # a random model of Qwen3-0.6B's shape
    python experiments/bench_sweep.py --shape 0.6b --device cuda --dtype bfloat16 --rows 192

Times on a CPU are CPU seconds of the process, so that other processes matter less. The plain loop
is what a script does that calls transformers directly: for every variant and for alpha = 0 again
beside it, render and tokenize all items, batches of 8 in the order given, logits of the whole
vocabulary at every position. Both ways steer by the same function. Then each lever of the
sweep is switched off alone. The lists are those of one family (T7) and of two (T6). The larger
shape has random rank-8 changes of its middle layers and is asked about English dilemmas; it takes
every `thin`-th slice of T7's list, without single cells and with two nulls in place of twenty, and
`--memory` asks instead for the peak of resident memory of the sweep alone, in a fresh process that
reads the model from disk, as a multiple of its weights.
"""

import runpy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import torch
from torch.utils.flop_counter import FlopCounterMode

from wscore import Factored, Factors, norm, select, stream, writes_residual
from wsrun.data.items import Item, load_dilemmas, load_items
from wsrun.models.chat import choice_ids, render
from wsrun.models.load import (
    DTYPES,
    d_model,
    keep_freed_memory,
    limit_threads,
    load_model,
    load_tokenizer,
)
from wsrun.models.tiny import tiny_qwen3
from wsrun.report.console import console, grid, guarded, progress
from wsrun.report.tables import check_writable, plain, provenance, write_table
from wsrun.score.scorer import Levers, choice_scores
from wsrun.score.sweep import sweep
from wsrun.score.variants import Variant
from wsrun.steer.weights import steered
from wsrun.study.profile import GIB, alone
from wsrun.study.session import read_pairs

NAME = "bench_sweep"
HERE = Path(__file__).parent
SHAPES: dict[str, dict[str, Any]] = {
    "0.6b": dict(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
}


@dataclass(frozen=True)
class Config:
    """Options of bench_sweep."""

    shape: str = "organism"
    """organism, or a random model of a larger shape: 0.6b"""
    rows: int | None = None
    """how many items; the organism's lists take T6's 120, a larger shape 8, the last ones"""
    lists: tuple[str, ...] = ("T6", "T7")
    """whose lists of variants"""
    thin: int = 1
    """a larger shape takes every so manieth slice of T7's list"""
    threads: int | None = None
    """CPU threads; one for the organism, as many as torch takes for a larger shape"""
    dtype: str = "float32"
    """dtype of a larger shape"""
    device: str = "cpu"
    """device of a larger shape"""
    levers: bool = True
    """also switch off each lever alone"""
    memory: bool = False
    """measure the memory of the sweep on T7's list of a larger shape, and no times"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""


def main(cfg: Config) -> None:
    """Time the plain loop and the sweep on each list, compare their numbers, print the ratios."""
    if cfg.shape != "organism" and cfg.shape not in SHAPES:
        raise ValueError(f"bench: --shape {cfg.shape!r} asked; known are organism, {list(SHAPES)}")
    if (cfg.rows is not None and cfg.rows < 1) or cfg.thin < 1:
        raise ValueError("bench: --rows and --thin must be 1 or more")
    if not cfg.lists or set(cfg.lists) - {"T6", "T7"}:
        raise ValueError(f"bench: --lists {' '.join(cfg.lists)} asked; known are T6 and T7")
    if cfg.memory and (cfg.shape == "organism" or cfg.device != "cpu"):
        raise ValueError("bench: --memory is of a larger shape on the CPU; give --shape 0.6b")
    check_writable(cfg.out)
    if cfg.memory:
        return memory(cfg)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    lists = organism(cfg) if cfg.shape == "organism" else larger(cfg)
    lines = [line for name, *at in lists if name in cfg.lists for line in compare(cfg, name, *at)]
    table = pl.DataFrame(lines, infer_schema_length=None)
    path = write_table(
        table, cfg.out / f"{NAME}.{cfg.shape}.parquet", provenance(plain(asdict(cfg)))
    )
    heads = ("list", "way", "seconds", "plain / way", "max difference", "share of peak")
    console.print(grid(f"{cfg.shape}, {torch.get_num_threads()} threads", heads, table.select(
        "list", "way", "seconds", "ratio", "difference", "of_peak").iter_rows()))  # fmt: skip
    console.print(f"table {path}")


def organism(cfg: Config) -> Iterator[tuple]:
    """(name, model, tokenizer, items, variants) of T6's list for two families, T7's for one."""
    model, tok = load_model("data/organism")
    if not cfg.threads:
        limit_threads(model)
    items = load_items("data/organism", "test", 20)[-(cfg.rows or 0) :]
    t6, t7 = (runpy.run_path(str(HERE / f"{n}.py")) for n in ("t6_shared_svd", "t7_sites"))
    of_t6 = t6["Config"](K=(32,), families=("lora", "oft"))
    whole = {key: pair.dW for key, pair in read_pairs(model, of_t6).items()}
    residual = {key: select(d, writes_residual) for key, d in whole.items()}
    bases = {key: t6["stacks"](residual, *key) for key in residual}
    yield "T6", model, tok, items, list(t6["variants"](of_t6, whole, residual, bases, {}, 160))
    lora = {key: d for key, d in whole.items() if key[0] == "lora"}
    cuts = t7["slices"]({n for d in lora.values() for n in d}, True)
    yield "T7", model, tok, items, list(t7["variants"](t7["Config"](), lora, cuts, {}))


def larger(cfg: Config) -> Iterator[tuple]:
    """(name, model, tokenizer, items, variants) of both lists on a random model, thinned."""
    model = random_model(cfg)
    for name in cfg.lists:
        tok, items, variants = listed(cfg, name, model)
        yield name, model, tok, items, list(variants)


def random_model(cfg: Config) -> Any:
    model: Any = tiny_qwen3(0, initializer_range=0.02, **SHAPES[cfg.shape])
    return model.to(cfg.device, DTYPES[cfg.dtype])


def listed(cfg: Config, name: str, model: Any) -> tuple[Any, list[Item], Iterator[Variant]]:
    """(tokenizer, items, variants) of T6's or T7's list on a larger shape."""
    items = load_dilemmas("data/english/dilemmas.jsonl")
    if (rows := cfg.rows or 8) > len(items):
        raise ValueError(f"bench: --rows {rows} asked; there are {len(items)} dilemma rows")
    items = items[-rows:]
    whole = {("random", seed): random_change(model, seed) for seed in range(1 + (name == "T6"))}
    if name == "T7":
        t7 = runpy.run_path(str(HERE / "t7_sites.py"))
        cuts = t7["slices"](set(whole["random", 0]), False)[:: cfg.thin]
        variants = t7["variants"](t7["Config"](nulls=2), whole, cuts, {})
    else:
        t6 = runpy.run_path(str(HERE / "t6_shared_svd.py"))
        whole = {(f"random {seed}", 0): d for (_, seed), d in whole.items()}
        residual = {key: select(d, writes_residual) for key, d in whole.items()}
        bases = {key: t6["stacks"](residual, *key) for key in residual}
        of_t6 = t6["Config"](K=(32,), nulls=2)
        variants = t6["variants"](of_t6, whole, residual, bases, {}, d_model(model))
    return load_tokenizer("data/organism"), items, variants


def memory(cfg: Config) -> None:
    """The peak of a process that reads the model from disk and sweeps T7's list once."""
    with TemporaryDirectory(dir=cfg.out) as folder:
        model = random_model(cfg)
        weights = sum(p.nbytes for p in model.parameters()) / GIB
        model.save_pretrained(folder)
        load_tokenizer("data/organism").save_pretrained(folder)
        del model
        lines = [
            {"work": name, **alone(job, cfg, folder, threads=cfg.threads or 1)}
            for name, job in (("import", imported), ("load", loaded), ("sweep", swept_from_disk))
        ]
    table = pl.DataFrame(lines).with_columns(
        weights_gib=pl.lit(weights), multiple=pl.col("peak_gib") / weights
    )
    path = write_table(
        table, cfg.out / f"{NAME}.{cfg.shape}.memory.parquet", provenance(plain(asdict(cfg)))
    )
    heads = ("work", "seconds", "peak GiB", "weights GiB", "peak / weights")
    console.print(grid(f"{cfg.shape}, a process each", heads, table.iter_rows()))
    console.print(f"table {path}")


def imported(cfg: Config, folder: str) -> None:
    """Nothing: what Python and the packages take."""


def loaded(cfg: Config, folder: str) -> None:
    """Only the model."""
    load_model(folder, cfg.dtype)


def swept_from_disk(cfg: Config, folder: str) -> None:
    """The model, and the sweep of T7's list on it."""
    keep_freed_memory()
    model, _ = load_model(folder, cfg.dtype)
    tok, items, variants = listed(cfg, "T7", model)
    context = {"experiment": NAME, "model": cfg.shape, "behaviour": "honest"}
    sweep(model, tok, items, variants, (1.0,), context=context)


def random_change(model: Any, seed: int) -> Factored:
    """A rank-8 change of all linear maps in the layers from 0.3 to 0.8 of the depth, 1 % of |W|."""
    n, out = model.config.num_hidden_layers, {}
    for name, w in model.named_parameters():
        parts = name.split(".")
        if "layers" in parts and w.ndim == 2 and 0.3 <= int(parts[2]) / n < 0.8:
            random = stream(seed, name)
            factors = Factors(
                *(torch.randn(shape, generator=random) for shape in ((len(w), 8), (8, w.shape[1])))
            )
            size = 0.01 * float(w.float().norm()) / norm(Factored({name: factors}))
            out[name] = (size * factors.L, factors.R)
    return Factored(out)


def compare(
    cfg: Config, name: str, model: Any, tok: Any, items: Sequence[Item], variants: list[Variant]
) -> Iterator[dict[str, Any]]:
    """One line per way of scoring one list: seconds, ratio to the plain loop, difference."""
    ways: dict[str, Callable[[], pl.DataFrame]] = {}
    ways["plain loop"] = lambda: plain_loop(model, tok, items, variants)

    def swept(**off: bool) -> Callable[[], pl.DataFrame]:
        context = {"experiment": NAME, "model": cfg.shape, "behaviour": "honest"}
        return lambda: sweep(
            model, tok, items, variants, (1.0,), context=context, levers=Levers(**off)
        ).filter(alpha=1.0)

    ways["sweep"] = swept()
    if cfg.levers:
        ways |= {f"sweep without {f.name}": swept(**{f.name: False}) for f in fields(Levers)}
        ways["sweep without any"] = swept(**{f.name: False for f in fields(Levers)})
    first, base = None, 0.0
    peak = matmul_peak(model)
    with progress(f"{name}: {len(variants)} variants, {len(items)} items", len(ways)) as step:
        for way, run in ways.items():
            clock = time.process_time if cfg.device == "cpu" else time.perf_counter
            start = clock()
            found = run()["margin"]
            seconds = clock() - start
            first, base = (found, seconds) if first is None else (first, base)
            yield {
                "list": name, "way": way, "seconds": seconds, "ratio": base / seconds,
                "difference": float((found - first).abs().max()),  # type: ignore[arg-type]
                "of_peak": operations(run) / seconds / peak if way == "sweep" else None,
            }  # fmt: skip
            step(way)


@torch.no_grad()
def plain_loop(
    model: Any, tok: Any, items: Sequence[Item], variants: list[Variant]
) -> pl.DataFrame:
    """Every variant at alpha = 0 and alpha = 1: render, tokenize, full logits, batches of 8."""
    rows = []
    for variant in variants:
        change = variant.change()
        for alpha in (0.0, 1.0):
            with steered(model, change, alpha):
                for i in range(0, len(items), 8):
                    margin, _ = plain_batch(model, tok, items[i : i + 8])
                    rows += [(variant.name, alpha, m) for m in margin.tolist()]
    table = pl.DataFrame(rows, schema=["variant", "alpha", "margin"], orient="row")
    return table.filter(alpha=1.0)


def plain_batch(model: Any, tok: Any, items: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor]:
    """Margins and masses of a few items, right-padded, from the logits of every position."""
    sequences = [render(tok, i.turns, i.prefill) for i in items]
    width = max(map(len, sequences))
    ids = torch.tensor([s + [0] * (width - len(s)) for s in sequences], device=model.device)
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences])
    logits = model(input_ids=ids, attention_mask=mask.to(model.device), use_cache=False).logits
    last = [len(s) - 1 for s in sequences]
    return choice_scores(logits[torch.arange(len(items)), last].float().cpu(), choice_ids(tok))


def operations(run: Callable[[], Any]) -> float:
    """Floating point operations of a run, as torch counts them: two per multiply-add of a matrix
    product, attention's where torch knows them, nothing else."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def matmul_peak(model: Any, n: int = 1024) -> float:
    """The best of a few square matrix products on this machine, operations a second."""
    a = torch.randn(n, n, device=model.device, dtype=model.dtype)
    best = 0.0
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    for _ in range(20):
        start = clock()
        b = a @ a
        float(b[0, 0])  # waits for the device
        best = max(best, 2 * n**3 / (clock() - start))
    return best


if __name__ == "__main__":
    guarded(main, Config)
