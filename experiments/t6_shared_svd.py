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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import polars as pl

from wscore import (
    BasinDivergence,
    Basis,
    DeltaLike,
    SharedCore,
    Verdict,
    drop,
    keep,
    match_norm,
    only,
    overlap,
    own_basis,
    random_basis,
    scale,
    select,
    shared_basis,
    verdict,
    writes_residual,
)
from wsrun.models.load import d_model
from wsrun.report import figures
from wsrun.report.console import console, effects, guarded
from wsrun.score.sweep import Variant
from wsrun.study.ablation import Options, Parts, check, spread_sentence, summarise
from wsrun.study.next_command import say_next
from wsrun.study.session import draw, load, read_pairs, record, run, share, write

EXPERIMENT = "t6_shared_svd"
NAMES = {
    "keep_shared": "kept: shared subspace",
    "drop_shared": "removed: shared subspace",
    "keep_own": "kept: own top directions",
    "drop_own": "removed: own top directions",
    "keep_random_matched": "kept: random subspace, same norm",
}
BASES = ("shared", "shared_incl", "own", "seeds", "across")
SHOWN = ["full", "residual_full", "zero", *(f"{p}_{b}" for b in BASES for p in ("keep", "drop"))]
SHOWN += ["keep_random", "keep_random_matched"]
Deltas = Mapping[tuple[str, int], DeltaLike]  # (family, seed) -> dW


@dataclass(frozen=True)
class Config(Options):
    """Options of T6."""

    K: tuple[int, ...] = (8, 32, 64)
    """sizes of the subspace, one or several"""


def main(cfg: Config) -> None:
    """Read deltas, score every variant once, write rows and summary, print the verdicts."""
    check(cfg, "t6")
    if len(cfg.families) < 2:
        raise ValueError("t6: leaving a family out needs two families or more; give --families")
    if not cfg.K or min(cfg.K) < 1 or len(set(cfg.K)) < len(cfg.K):
        asked = " ".join(map(str, cfg.K))
        raise ValueError(f"t6: --K {asked} asked; K must be 1 or more, and name each one once")
    share(cfg)
    at = load(cfg)
    width = d_model(at.model)
    if max(cfg.K) > width:
        raise ValueError(f"t6: --K {max(cfg.K)} asked; d_model of {cfg.model!r} is {width}")
    pairs = read_pairs(at.model, cfg)
    whole = {key: pair.dW for key, pair in pairs.items()}
    residual = {key: select(d, writes_residual) for key, d in whole.items()}
    bases = {key: stacks(residual, *key) for key in residual}
    per_K = {key: 6 + 2 * len(found) for key, found in bases.items()}
    runs = sum((3 + n * len(cfg.K)) * len(cfg.alphas) + cfg.nulls for n in per_K.values())
    notes: dict = {}
    rows = run(cfg, EXPERIMENT, at, variants(cfg, whole, residual, bases, notes, width), runs)
    if rows is None:  # a shard
        return
    table = summarise(cfg, rows, notes, "residual_full")
    table = table.with_columns(
        # null draws have the residual part's spectrum: full has more tensors, zero none of it
        pl.when(~pl.col("variant").is_in(["full", "zero"])).then("null_percentile"),
        k_over_d=pl.col("k") / width,
    )
    found = {d: decide(cfg, table, d) for d in table["dataset"].unique().sort()}
    said = {d: {claim: v._asdict() for claim, v in claims.items()} for d, claims in found.items()}
    path = write(cfg, EXPERIMENT, rows, table, record(cfg, at, pairs, verdicts=said))
    report(cfg, table, found, width)
    draw(
        figures.points,
        table.filter(pl.col("alpha") == cfg.rule_alpha),
        path,
        "Does a subspace found from other adapter families carry a family's effect?",
        variants=NAMES,
        whole="residual_full",
        thresholds=(cfg.keep_at_least, cfg.drop_at_most),
        k=max(cfg.K),
    )
    say_next(cfg, "t7_sites", "the same question of layers and modules")


def stacks(residual: Deltas, family: str, seed: int) -> dict[str, list[DeltaLike]]:
    """Whose deltas each held-out basis comes from, on this family's tensors: *_shared the other
    families of the same seed, *_seeds its own other seeds, *_across the others of other seeds.
    A delta that lacks some of the tensors is left out."""
    names = list(residual[family, seed])
    found: dict[str, list[DeltaLike]] = {"shared": [], "seeds": [], "across": []}
    for (f, s), d in residual.items():
        if all(n in d for n in names) and (f, s) != (family, seed):
            kind = "shared" if s == seed else "seeds" if f == family else "across"
            found[kind].append(only(d, names))
    if not found["shared"]:
        raise ValueError(f"t6: no other family changes all tensors of {family}; add --families")
    return {kind: deltas for kind, deltas in found.items() if deltas}


def variants(
    cfg: Config,
    whole: Deltas,
    residual: Deltas,
    bases: Mapping[tuple[str, int], Mapping[str, Sequence[DeltaLike]]],
    notes: dict,
    width: int,
) -> Iterator[Variant]:
    """Every part of every dW; notes its share of the residual-writing energy, and overlaps."""
    own = {(key, k): own_basis(d, k) for key, d in residual.items() for k in cfg.K}
    for key, d in residual.items():
        parts = Parts(*key, d, notes)
        yield Variant("full", whole[key], family=key[0], seed=key[1])
        yield parts.one("residual_full", d)
        yield parts.one("zero", scale(0.0, d))
        for k in cfg.K:
            found = {kind: shared_basis(deltas, k) for kind, deltas in bases[key].items()}
            found["shared_incl"] = shared_basis([*bases[key]["shared"], d], k)
            for name, basis in found.items():
                yield from parts.pair(name, keep(d, basis), drop(d, basis), k)
            basis, facts = own[key, k], overlaps({x: b for (x, n), b in own.items() if n == k}, key)
            facts["overlap_random"] = mean_random(basis, width)
            yield from parts.pair("own", keep(d, basis), drop(d, basis), k, **facts)
            random = keep(d, random_basis(found["shared"], key[1]))
            yield parts.one("keep_random", random, k)
            yield parts.one("keep_random_matched", match_norm(random, keep(d, found["shared"])), k)
        yield from parts.nulls(cfg)


def overlaps(own: Mapping[tuple[str, int], Basis], key: tuple[str, int]) -> dict[str, float | None]:
    """Mean overlap of one delta's own top directions with those of other families of its seed, and
    with those of its family's other seeds, over deltas and tensors."""
    mean: dict[str, float | None] = {}
    for name, same in (("overlap", 1), ("overlap_seeds", 0)):  # what the other has in common
        found = [
            x
            for other, basis in own.items()
            if other != key and other[same] == key[same]
            for x in shared_overlaps(own[key], basis)
        ]
        mean[name] = fmean(found) if found else None
    return mean


def shared_overlaps(a: Basis, b: Basis) -> list[float]:
    """The overlap of each tensor that both bases have directions for."""
    names = [n for n in a if n in b and min(a[n].shape[1], b[n].shape[1])]
    return (
        list(overlap({n: a[n] for n in names}, {n: b[n] for n in names}).values()) if names else []
    )


def mean_random(basis: Basis, width: int) -> float:
    """What random subspaces of these sizes overlap on average: E = k / d_model."""
    return fmean(b.shape[1] / width for b in basis.values())


def decide(cfg: Config, table: pl.DataFrame, dataset: str) -> dict[str, Verdict]:
    """The verdicts of both rules on one dataset at the rule's alpha."""
    lines = table.filter((pl.col("dataset") == dataset) & (pl.col("alpha") == cfg.rule_alpha))
    core = SharedCore(keep_at_least=cfg.keep_at_least, drop_at_most=cfg.drop_at_most)
    return {
        "shared core": verdict(lines, core),
        "basin divergence": verdict(lines, BasinDivergence()),
    }


def report(cfg: Config, table: pl.DataFrame, found: Mapping, width: int) -> None:
    """Print the parts at the rule's alpha, what the overlaps and the spread are, the verdicts."""
    shown = table.filter((pl.col("alpha") == cfg.rule_alpha) & pl.col("variant").is_in(SHOWN))
    shown = shown.sort("dataset", "family", "k", pl.col("variant").cast(pl.Enum(SHOWN)))
    for (dataset,), part in shown.group_by("dataset", maintain_order=True):
        title = f"{dataset}, alpha = {cfg.rule_alpha:g}, d_model = {width}"
        console.print(effects(part, title, ("family", "variant", "k", "k_over_d", "energy")))
    own = shown.filter(variant="keep_own").group_by("k").agg(pl.col("^overlap.*$").mean()).sort("k")
    for k, families, seeds, random in own.select(
        "k", "overlap", "overlap_seeds", "overlap_random"
    ).iter_rows():
        of_seeds = "" if seeds is None else f", two seeds of one family {seeds:.2f}"
        console.print(
            f"own top-{k} directions of two families overlap {families:.2f}{of_seeds} "
            f"(random subspaces of the same sizes: {random:.2f})"
        )
    for dataset, claims in found.items():
        lines = shown.filter((pl.col("dataset") == dataset) & (pl.col("k") == max(cfg.K)))
        name = f"{dataset}, keep_shared at K = {max(cfg.K)}"
        console.print(spread_sentence(lines, "keep_shared", name))
        for claim, v in claims.items():
            console.print(f"[bold]{dataset}, {claim}: {v.outcome}[/]: {v.sentence}")


if __name__ == "__main__":
    guarded(main, Config)
