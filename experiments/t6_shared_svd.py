"""Do adapter families share one output subspace that carries the behaviour?

Question:   is there, per layer, a K-dimensional subspace of the residual stream, found from OTHER
            families' dW, whose part of a family's dW keeps the steering effect, and without which
            the effect is gone?
Prediction: keep(shared, K) retains most of the effect at K well below d_model, more than a random
            subspace of that size.
Rule:       supported if at one K keep(shared) retains >= 0.7 and drop(shared) <= 0.3 in every
            family of lora, dora, pissa, delora, oft; refuted if for some family, at the largest K,
            keep retains < 0.3 while drop retains >= 0.7; both >= 0.7: not identifiable under this
            basis; each comparison by its 95 % interval; else undetermined.

    python experiments/t6_shared_svd.py --K 32

Only tensors that write to the residual stream enter (o_proj, down_proj); `full` is the whole dW.
The basis used for a family leaves that family out (variants *_shared; *_shared_incl puts it in),
takes the families that change all of its tensors, and deltas enter it with unit norm. Parts are
reported beside the family's own top-K directions, random subspaces (raw and norm-matched to the
shared part), and 20 null deltas with the singular values of the residual part in random directions;
`null %` ranks an effect among theirs. K counts only where a random subspace does not keep as much.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from math import isfinite
from pathlib import Path

import polars as pl

from wscore import (
    Delta,
    SharedCore,
    add,
    difference,
    drop,
    effect_table,
    keep,
    match_norm,
    norm,
    null_percentile,
    overlap,
    own_basis,
    random_basis,
    scale,
    select,
    shared_basis,
    spectrum_null,
    tensors_sha256,
    verdict,
    writes_residual,
)
from wscore.effect import KEYS
from wsrun.adapters import FAMILIES, check_family, pair_deltas
from wsrun.console import console, effects, guarded, progress
from wsrun.items import load_items
from wsrun.models import d_model, limit_threads, load_model
from wsrun.score import Variant, sweep
from wsrun.tables import check_writable, items_sha256, plain, provenance, write_table

EXPERIMENT = "t6_shared_svd"
SHOWN = ["full", "residual_full", "zero"]
SHOWN += [f"{part}_{of}" for of in ("shared", "shared_incl", "own") for part in ("keep", "drop")]
SHOWN += ["keep_random", "keep_random_matched"]


@dataclass(frozen=True)
class Config:
    """Options of T6."""

    K: tuple[int, ...] = (8, 32, 64)
    """sizes of the subspace, one or several"""
    families: tuple[str, ...] = tuple(FAMILIES)
    """adapter families to analyse, at least two"""
    model: str = "data/organism"
    """model folder or hub name"""
    data: Path = Path("data/organism")
    """folder with claims.jsonl and dilemmas.jsonl"""
    adapters: Path = Path("data/organism/adapters")
    """folder with <family>-s<seed>/pos and /neg, trained on that model (t0_train writes one)"""
    dilemmas: int | None = 20
    """how many of the dilemmas to score, the first by dilemma_idx; None for all"""
    alphas: tuple[float, ...] = (1.0,)
    """doses, such as -1 1 2; the verdict is taken at `rule_alpha`"""
    rule_alpha: float = 1.0
    """dose of the verdict and of the null draws"""
    nulls: int = 20
    """null deltas per family: same singular values, random directions"""
    seed: int = 0
    """which seed's adapters, and the seed of random bases, nulls and resamples"""
    resamples: int = 2000
    """bootstrap resamples"""
    keep_at_least: float = 0.7
    """threshold of the rule on the kept part"""
    drop_at_most: float = 0.3
    """threshold of the rule on what is left without it"""
    behaviour: str = "honest"
    """name of the behaviour in the table"""
    out: Path = Path("artifacts/tables")
    """folder that receives the tables"""
    dtype: str = "float32"
    """dtype of the model"""
    device: str = "cpu"
    """device of the model"""


def main(cfg: Config) -> None:
    """Read deltas, score every variant once, write rows and summary, print the verdict."""
    check(cfg)
    items = load_items(cfg.data, "test", cfg.dilemmas)
    model, tok = load_model(cfg.model, cfg.dtype, cfg.device)
    limit_threads(model)
    width = d_model(model)
    if max(cfg.K) > width:
        raise ValueError(f"t6: --K {max(cfg.K)} asked; d_model of {cfg.model!r} is {width}")
    deltas = {}
    with progress("reading adapters", len(cfg.families)) as step:
        for family in cfg.families:
            folder = cfg.adapters / f"{family}-s{cfg.seed}"
            pair = pair_deltas(model, folder)
            if pair.family != family:
                raise ValueError(f"t6: {str(folder)!r} holds {pair.family} adapters; rename it")
            deltas[family] = pair.dW
            step(family)
        residual = {f: select(d, writes_residual) for f, d in deltas.items()}
    for family in cfg.families:
        same_targets(residual, family)
    energies: dict[tuple, float] = {}
    context = {"experiment": EXPERIMENT, "model": cfg.model, "behaviour": cfg.behaviour}
    per_family = (3 + 8 * len(cfg.K)) * len(cfg.alphas) + cfg.nulls
    runs = 1 + per_family * len(cfg.families)
    console.print(f"{cfg.model}: {len(items)} items, {len(cfg.families)} families, {runs} runs")
    with progress("scoring", runs) as step:
        rows = sweep(
            model,
            tok,
            items,
            variants(cfg, deltas, energies),
            cfg.alphas,
            context=context,
            progress=step,
        )
    table = summarise(cfg, rows, energies, width)
    verdicts = {d: decide(cfg, table, d) for d in table["dataset"].unique().sort()}
    record = provenance(
        plain(asdict(cfg)),
        base=tensors_sha256(dict(model.named_parameters())),
        items=items_sha256(items),
        deltas={f: tensors_sha256(d) for f, d in deltas.items()},
        overlaps={k: mean_overlap(residual, k, width) for k in cfg.K},
        verdicts={d: v._asdict() for d, v in verdicts.items()},
    )
    write_table(rows, cfg.out / f"{EXPERIMENT}.rows.parquet", record)
    path = write_table(table, cfg.out / f"{EXPERIMENT}.parquet", record)
    report(cfg, table, record, width)
    console.print(f"summary table {path}, item rows {path.with_suffix('.rows.parquet')}")
    console.print(
        f"next: python experiments/t0_train.py --model {cfg.model} --data {cfg.data} "
        f"--seeds {cfg.seed + 1}, then here --seed {cfg.seed + 1} --adapters artifacts/adapters"
    )


def check(cfg: Config) -> None:
    """Refuse options that cannot work before anything is loaded."""
    for family in cfg.families:
        check_family(family)
    if len(set(cfg.families)) < 2:
        raise ValueError("t6: leaving a family out needs two families or more; give --families")
    for name, values in (("--families", cfg.families), ("--K", cfg.K), ("--alphas", cfg.alphas)):
        if len(set(values)) < len(values):
            raise ValueError(f"t6: {name} {' '.join(map(str, values))} asked; name each one once")
    if not cfg.K or min(cfg.K) < 1:
        raise ValueError(f"t6: --K {' '.join(map(str, cfg.K))} asked; K must be 1 or more")
    if cfg.resamples < 1:
        raise ValueError(f"t6: --resamples {cfg.resamples} asked; it must be 1 or more")
    if cfg.rule_alpha not in cfg.alphas or cfg.rule_alpha == 0:
        raise ValueError(f"t6: --rule-alpha {cfg.rule_alpha:g} must be one of --alphas and not 0")
    if not all(isfinite(a) for a in cfg.alphas):
        raise ValueError("t6: --alphas must be finite doses")
    if not 0 <= cfg.drop_at_most <= cfg.keep_at_least <= 1:
        raise ValueError("t6: thresholds need 0 <= --drop-at-most <= --keep-at-least <= 1")
    if cfg.nulls < 0:
        raise ValueError(f"t6: --nulls {cfg.nulls} asked; it must be 0 or more")
    check_writable(cfg.out)


def variants(
    cfg: Config, deltas: Mapping[str, Delta], energies: dict[tuple, float]
) -> Iterator[Variant]:
    """Every part of every family's dW; notes its share of the residual-writing energy."""
    residual = {f: select(d, writes_residual) for f, d in deltas.items()}
    for family, whole in residual.items():

        def variant(
            name: str, part: Delta, k: int | None = None, alphas=None, of=(family, whole)
        ) -> Variant:
            energies[of[0], name, k] = (norm(part) / norm(of[1])) ** 2
            return Variant(name, part, family=of[0], k=k, seed=cfg.seed, alphas=alphas)

        yield Variant("full", deltas[family], family=family, seed=cfg.seed)
        yield variant("residual_full", whole)
        yield variant("zero", scale(0.0, whole))
        others = same_targets(residual, family)
        for k in cfg.K:
            shared = shared_basis(others, k)
            bases = {
                "shared": shared,
                "shared_incl": shared_basis([*others, whole], k),
                "own": own_basis(whole, k),
            }
            for name, basis in bases.items():
                kept, dropped = keep(whole, basis), drop(whole, basis)
                check_parts(kept, dropped, whole)
                yield variant(f"keep_{name}", kept, k)
                yield variant(f"drop_{name}", dropped, k)
            random = keep(whole, random_basis(shared, cfg.seed))
            yield variant("keep_random", random, k)
            yield variant("keep_random_matched", match_norm(random, keep(whole, shared)), k)
        for i in range(cfg.nulls):
            null = spectrum_null(whole, 1000 * cfg.seed + i)
            yield variant(f"spectrum_null#{i:02d}", null, alphas=(cfg.rule_alpha,))


def same_targets(residual: Mapping[str, Delta], family: str) -> list[Delta]:
    """The other families' deltas on this family's tensors; one that lacks some is left out."""
    names = residual[family]
    found = [
        {n: d[n] for n in names}
        for f, d in residual.items()
        if f != family and all(n in d for n in names)
    ]
    if not found:
        raise ValueError(f"t6: no other family changes all tensors of {family}; add --families")
    return found


def check_parts(kept: Delta, dropped: Delta, whole: Delta) -> None:
    """keep + drop == residual_full within 1e-6, relative, or the run stops."""
    error = norm(difference(add(kept, dropped), whole)) / norm(whole)
    if error > 1e-6:
        raise RuntimeError(f"t6: keep + drop misses the whole by {error:.1e} of its norm")


def mean_overlap(residual: Mapping[str, Delta], k: int, width: int) -> dict[str, float]:
    """Mean overlap of two families' own top-k bases over pairs and tensors, and that of random
    subspaces of the same sizes: E = max(k_a, k_b) / d_model."""
    own = {f: own_basis(d, k) for f, d in residual.items()}
    found, random = [], []
    for a, b in combinations(own, 2):
        names = [n for n in own[a] if n in own[b] and min(own[a][n].shape[1], own[b][n].shape[1])]
        found += overlap(*({n: own[f][n] for n in names} for f in (a, b))).values()
        random += [max(own[a][n].shape[1], own[b][n].shape[1]) / width for n in names]
    return {"found": sum(found) / len(found), "random": sum(random) / len(random)}


def summarise(cfg: Config, rows: pl.DataFrame, energies: dict, width: int) -> pl.DataFrame:
    """One line per dataset, family, variant, k and alpha, with retained shares and percentiles."""
    table = effect_table(rows, KEYS, full="residual_full", resamples=cfg.resamples, seed=cfg.seed)
    shares = pl.DataFrame(
        [(*key, share) for key, share in energies.items()],
        schema={"family": pl.String, "variant": pl.String, "k": pl.Int64, "energy": pl.Float64},
        orient="row",
    )
    table = table.join(
        shares, on=["family", "variant", "k"], how="left", nulls_equal=True, maintain_order="left"
    )
    # null draws have the residual part's spectrum: `full` has more tensors, `zero` none of it
    ranked = pl.when(~pl.col("variant").is_in(["full", "zero"])).then(pl.col("null_percentile"))
    return null_percentile(table).with_columns(
        ranked.alias("null_percentile"), (pl.col("k") / width).alias("k_over_d")
    )


def decide(cfg: Config, table: pl.DataFrame, dataset: str):
    """The verdict of the rule on one dataset at the rule's alpha."""
    lines = table.filter((pl.col("dataset") == dataset) & (pl.col("alpha") == cfg.rule_alpha))
    rule = SharedCore(keep_at_least=cfg.keep_at_least, drop_at_most=cfg.drop_at_most)
    return verdict(lines, rule)


def report(cfg: Config, table: pl.DataFrame, record: Mapping, width: int) -> None:
    """Print the parts at the rule's alpha, then the verdicts."""
    shown = table.filter((pl.col("alpha") == cfg.rule_alpha) & pl.col("variant").is_in(SHOWN))
    shown = shown.sort("dataset", "family", "k", pl.col("variant").cast(pl.Enum(SHOWN)))
    for (dataset,), part in shown.group_by("dataset", maintain_order=True):
        title = f"{dataset}, alpha = {cfg.rule_alpha:g}, d_model = {width}"
        console.print(effects(part, title, ("family", "variant", "k", "k_over_d", "energy")))
    for k, value in record["overlaps"].items():
        console.print(
            f"own top-{k} directions of two families overlap {value['found']:.2f} "
            f"(random subspaces of the same sizes: {value['random']:.2f})"
        )
    for dataset, found in record["verdicts"].items():
        console.print(f"[bold]{dataset}: {found['outcome']}[/]: {found['sentence']}")


if __name__ == "__main__":
    guarded(main, Config)
