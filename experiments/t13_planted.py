"""Do the rules of T6, T7 and T8 find what was planted, and stay silent where nothing was?

Question:   on adapters whose truth is fixed by construction and whose effect is real, does each
            rule support the claim that is true, naming the right slice, and no claim that is false?
Prediction: every rule detects its own plant in most seeds, and none is supported on random deltas.
Rule:       a rule passes its control where it agrees with the truth in every seed; the detection
            rate and the false-positive rate are reported with Wilson's 95 % interval.

    python experiments/t13_planted.py

Plants (wsrun/plants.py says how each is made): shared-core and divergent-basins, several adapters
that write one subspace, or one each; one-layer, one-module, base-band and own-band, one adapter in
one slice; nothing, random deltas. Random decoys of equal norm lie beside every plant; whether they
alone have an effect is measured and printed. A supported claim that names another slice than the
planted one is no detection.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import polars as pl

from wscore.basis import overlap, own_basis, random_basis, shared_basis
from wscore.delta import DeltaLike
from wscore.effect import Rule, Verdict, effect_table, null_percentile, verdict
from wscore.locus import Locus
from wscore.null import spectrum_null
from wscore.project import drop, keep
from wscore.rules import BasinDivergence, SharedCore
from wscore.sites import select, writes_residual
from wscore.spectrum import crop, crop_rest, spectra
from wscore.spread import wilson
from wscore.store import tensors_sha256
from wsrun.adapters.configs import LINEAR
from wsrun.adapters.train import train_adapter
from wsrun.data.items import load_items
from wsrun.data.pairs import load_questions, make_pairs
from wsrun.data.personas import load_personas
from wsrun.lenses.plants import (
    BANDS,
    FRAMED,
    PLANTS,
    Base,
    Instance,
    Options,
    Planted,
    base_of,
    instance,
    members,
    read,
    slices_of,
    train,
)
from wsrun.models.load import limit_threads, load_model
from wsrun.report import figures
from wsrun.report.console import console, grid, guarded, progress
from wsrun.report.tables import check_writable, items_sha256, plain, provenance, write_table
from wsrun.score.sweep import Variant, sweep
from wsrun.study.ablation import Parts
from wsrun.study.session import draw

EXPERIMENT = "t13_planted"
RULES = ("shared core", "basin divergence", "layers", "modules", "own bands", "base bands")
TRUE = {"shared-core": "shared core", "divergent-basins": "basin divergence", "one-layer": "layers"}
TRUE |= {"one-module": "modules", "base-band": "base bands", "own-band": "own bands"}
FALSE = {"shared-core": ("basin divergence",), "divergent-basins": ("shared core",)}
FALSE |= {"nothing": RULES}  # whether other claims are true of a plant is unknown
WHOLES = {"outputs": "residual_full", "places": "full"}  # method -> what its shares are shares of
Truths = Mapping[Instance, Sequence[Planted]]  # instance -> its members


@dataclass(frozen=True)
class Config(Options):
    """Options of t13_planted."""

    K: tuple[int, ...] = (8, 16)
    """sizes of T6's subspaces"""
    nulls: int = 20
    """null deltas per whole"""
    resamples: int = 2000
    """bootstrap resamples"""
    out: Path = Path("artifacts/tables")
    """folder that receives the tables and the figure"""
    parts: Path = Path("artifacts/parts")
    """folder of finished results: a stopped run, started again, goes on where it was"""


def main(cfg: Config) -> None:
    """Train what is missing, plant, score every part once, apply every rule, count."""
    check(cfg)
    items = [i for i in load_items(cfg.data, "test") if i.dataset == "claims"]
    personas = load_personas(cfg.data / "personas.json", cfg.pos, cfg.neg)
    questions = load_questions(cfg.data / "questions.jsonl", "train")
    model, tok = load_model(cfg.model)
    limit_threads(model)
    base = base_of(model, cfg.members)
    found = [instance(plant, seed, base) for plant in cfg.plants for seed in cfg.seeds]
    pairs = make_pairs(model, tok, questions, *personas, seed=0)
    train(cfg, partial(train_adapter, model, tok, pairs, base_name=cfg.model), pairs, base, found)
    planted = {at: read(cfg, model, at, base) for at in found}
    runs, notes = sum(count(cfg, ms) for ms in planted.values()), {}
    console.print(f"{cfg.model}: {len(items)} claims, {len(found)} instances, {runs} runs")
    tag = {"experiment": EXPERIMENT, "model": cfg.model, "behaviour": cfg.pos}
    with progress("scoring", 1 + runs) as step:
        todo = variants(cfg, base, planted, notes)
        rows = sweep(model, tok, items, todo, [1.0], context=tag, results=cfg.parts, progress=step)
    table = summary(cfg, rows, notes)
    verdicts = judge(base, planted, table)
    counts = confusion(verdicts)
    dW = {at.member(i): m.whole for at, ms in planted.items() for i, m in enumerate(ms)}
    hashes = {name: tensors_sha256(d) for name, d in dW.items()}
    weights = tensors_sha256(dict(model.named_parameters()))
    made = provenance(plain(asdict(cfg)), base=weights, items=items_sha256(items), deltas=hashes)
    tables = {".rows": rows, "": table, ".verdicts": verdicts, ".confusion": counts}
    paths = [write_table(t, cfg.out / f"{EXPERIMENT}{n}.parquet", made) for n, t in tables.items()]
    report(found, table, verdicts, counts)
    question = "Do the rules find what was planted, and only that?"
    note = "Blank: the rule was not run there, as it compares several adapters. "
    draw(figures.confusion, counts, paths[-1], question, note=note)
    console.print(f"adapters {cfg.adapters}, tables {cfg.out / EXPERIMENT}*.parquet")


def check(cfg: Config) -> None:
    """Refuse options that cannot work before anything is loaded."""
    for flag, asked, known in (
        ("--plants", cfg.plants, PLANTS),
        ("--seeds", cfg.seeds, range(10**6)),
        ("--K", cfg.K, range(1, 10**6)),
        ("--members", (cfg.members,), range(2, 20)),
        ("--steps", (cfg.steps,), range(1, 10**6)),
        ("--nulls", (cfg.nulls,), range(1, 51)),  # a member has 50 streams of its own
        ("--resamples", (cfg.resamples,), range(1, 10**9)),
    ):
        if not asked or len(set(asked)) < len(asked) or any(x not in known for x in asked):
            said = " ".join(map(str, asked)) or "nothing"
            given = f"{known[0]} to {known[-1]}" if isinstance(known, range) else ", ".join(known)
            raise ValueError(f"t13: {flag} {said} asked; give each value once, out of {given}")
    for folder in (cfg.adapters, cfg.out, cfg.parts):
        check_writable(folder)


def variants(cfg: Config, base: Base, planted: Truths, notes: dict) -> Iterator[Variant]:
    """Every part of every instance that a rule asks for, and null deltas of each whole."""
    for at, ms in planted.items():
        deltas = [select(m.whole, writes_residual) for m in ms] if len(ms) > 1 else []
        for i, d in enumerate(deltas):
            of = Parts(at.member(i), at.seed, d, notes)
            for v in (*outputs(cfg, of, i, deltas), *nulls(cfg, of, i)):
                yield replace(v, method="outputs")
        of = Parts(at.member(0), at.seed, ms[0].whole, notes)
        for v in (*places(base, of, ms[0]), *nulls(cfg, of, 0)):
            yield replace(v, method="places")


def nulls(cfg: Config, of: Parts, member: int) -> Iterator[Variant]:
    """Random deltas with the singular values of a member's whole."""
    for i in range(cfg.nulls):
        null = spectrum_null(of.whole, 1000 * of.seed + 50 * member + i)
        yield of.one(f"spectrum_null#{i:02d}", null)


def outputs(cfg: Config, of: Parts, i: int, deltas: Sequence[DeltaLike]) -> Iterator[Variant]:
    """T6 on a member's residual-writing tensors: shared, own and random output directions."""
    d, others = deltas[i], [d for j, d in enumerate(deltas) if j != i]
    yield of.one("residual_full", d)
    for k in cfg.K:
        basis, own = shared_basis(others, k), own_basis(d, k)
        yield from of.pair("shared", keep(d, basis), drop(d, basis), k)
        found = [x for b in others for x in overlap(own, own_basis(b, k)).values()]
        chance = fmean(b.shape[1] / b.shape[0] for b in own.values())
        facts = {"overlap": fmean(found), "overlap_random": chance}
        yield of.one("keep_own", keep(d, own), k, **facts)
        yield of.one("keep_random", keep(d, random_basis(basis, 1000 * of.seed + i)), k)


def places(base: Base, of: Parts, m: Planted) -> Iterator[Variant]:
    """T7 and T8 on a member: the whole, its plant, its decoys, and every slice."""
    yield of.one("full", m.whole)
    yield of.one("plant", m.core)
    if m.decoys:
        yield of.one("decoys", m.decoys)
    for name, kept, rest in cuts(base, m.whole):
        yield from of.pair(name, kept, rest)
        yield of.control(name, kept)


def partitions(names: Mapping) -> dict[str, list[str]]:
    """rule -> its slices: layers, modules, bands of dW's own and of the base's spectrum."""
    found = {slices_of(n) for n in names}
    return {
        "layers": sorted({layer for layer, _ in found}),
        "modules": [p for p in LINEAR if any(p == module for _, module in found)],
        "own bands": [f"own_{b}" for b in BANDS],
        "base bands": [f"base_{b}" for b in BANDS],
    }


def cuts(base: Base, whole: DeltaLike) -> Iterator[tuple[str, DeltaLike, DeltaLike]]:
    """(slice, what is in it, the rest) for every slice of every partition."""
    slices, own, of = partitions(whole), spectra(whole), base.svds
    for name in slices["layers"] + slices["modules"]:
        kept = {n: w for n, w in whole.items() if name in slices_of(n)}
        yield name, kept, {n: w for n, w in whole.items() if n not in kept}
    for name, b in BANDS.items():
        yield f"own_{name}", crop(whole, b, svds=own), crop_rest(whole, b, svds=own)
        yield f"base_{name}", crop(whole, b, "base", svds=of), crop_rest(whole, b, "base", svds=of)


def count(cfg: Config, ms: Sequence[Planted]) -> int:
    """How many variants an instance has."""
    slices = sum(map(len, partitions(ms[0].whole).values()))
    each = 1 + 4 * len(cfg.K) + cfg.nulls
    return 2 + bool(ms[0].decoys) + 3 * slices + cfg.nulls + (len(ms) > 1) * len(ms) * each


def summary(cfg: Config, rows: pl.DataFrame, notes: Mapping) -> pl.DataFrame:
    """One line per family, method, variant and k, with shares of the method's own whole."""
    keys, tables = ["family", "variant", "k"], []
    for method in [m for m in WHOLES if m in set(rows["method"])]:
        of = rows.filter(pl.col("method").is_in(["base", method]))
        tables.append(effect_table(of, full=WHOLES[method], resamples=cfg.resamples))
    lines = [dict(zip(keys, key, strict=False)) | facts for key, facts in notes.items()]
    facts = pl.DataFrame(lines, infer_schema_length=None).cast({"k": pl.Int64})
    table = null_percentile(pl.concat(tables))
    return table.join(facts, on=keys, how="left", nulls_equal=True, maintain_order="left")


def rules(at: Instance, base: Base, names: Mapping) -> Mapping[str, Rule]:
    """Every rule that concerns the instance, thresholds at their defaults."""
    of = tuple(at.member(i) for i in members(at, base))
    first = {r: Locus(tuple(s), families=of[:1]) for r, s in partitions(names).items()}
    both = {
        "shared core": SharedCore(families=of),
        "basin divergence": BasinDivergence(families=of),
    }
    return first if len(of) == 1 else both | first


def judge(base: Base, planted: Truths, table: pl.DataFrame) -> pl.DataFrame:
    """One line per instance and rule: the verdict, the truth, and whether they agree."""
    lines = []
    for at, ms in planted.items():
        of = table.filter(pl.col("family").str.starts_with(at.member(0)[:-1]))
        for name, rule in rules(at, base, ms[0].whole).items():
            method = "places" if isinstance(rule, Locus) else "outputs"
            lines.append(judged(at, name, verdict(of.filter(method=method), rule)))
    return pl.DataFrame(lines, infer_schema_length=None)


def judged(at: Instance, rule: str, v: Verdict) -> dict[str, object]:
    """A verdict beside the truth; a true claim about slices counts where it names the right one."""
    true, supported = TRUE.get(at.plant) == rule, v.outcome == "supported"
    known = true or rule in FALSE.get(at.plant, ())
    found = supported and v.part == at.truth
    return {
        **at._asdict(),
        "rule": rule,
        "expected": ("supported" if true else "not supported") if known else None,
        "outcome": v.outcome,
        "named": v.part,
        "agree": (found if true else not supported) if known else None,
        "sentence": v.sentence,
    }


def confusion(verdicts: pl.DataFrame) -> pl.DataFrame:
    """One line per (plant, rule): outcomes counted, and the rate of agreement with the truth.

    `misplaced` are those of `supported` that name another slice than the planted one; lo and hi are
    Wilson's. Lines whose truth is unknown have no `agree`.
    """
    outcomes = {o: (pl.col("outcome") == o).sum() for o in ("supported", "refuted", "undetermined")}
    misplaced = (pl.col("outcome") == "supported") & (pl.col("expected") == "supported")
    table = verdicts.group_by("plant", "rule", "expected", maintain_order=True).agg(
        seeds=pl.len(),
        **outcomes,
        misplaced=(misplaced & ~pl.col("agree")).sum(),
        agree=pl.when(pl.col("agree").is_not_null().all()).then(pl.col("agree").sum()),
    )
    both = table.select("agree", "seeds").iter_rows()
    spans = [(None, None) if agree is None else wilson(agree / n, n) for agree, n in both]
    ends = pl.DataFrame(spans, schema={"lo": pl.Float64, "hi": pl.Float64}, orient="row")
    return table.with_columns(rate=pl.col("agree") / pl.col("seeds")).hstack(ends)


def report(
    found: list[Instance], table: pl.DataFrame, verdicts: pl.DataFrame, counts: pl.DataFrame
) -> None:
    """Print whether plants steer, the confusion table, the rates, and every disagreement."""
    effects = [effect_line(at, table) for at in found]
    heads = ["plant", "seed", "slice", "whole: effect", "null %", "plant: effect", "decoys: effect"]
    console.print(grid("claims: first member, alpha = 1", [*heads, "real"], effects))
    real = [line[-1] for line in effects if line[0] != "nothing"]
    gate = "(interval above 0, above every null draw, in every whole a true claim is about)"
    console.print(f"{real.count('no')} of {len(real)} planted instances do not steer {gate}")
    console.print(kept_grid(table))
    heads = ["supported", "misplaced", "refuted", "undetermined"]
    claims, lines = {"supported": "true", "not supported": "false", None: "open"}, []
    for r in counts.iter_rows(named=True):
        ends = ["-"] * 2 if r["agree"] is None else [f"{r['agree']}/{r['seeds']}", span(r, "rate")]
        lines.append([r["plant"], r["rule"], claims[r["expected"]], *(r[h] for h in heads), *ends])
    heads = ["plant", "rule", "claim", *heads, "agree", "rate [95 %]"]
    console.print(grid("verdicts over seeds", heads, lines))
    kinds = {"detection": ("supported", True), "false positives": ("not supported", False)}
    for title, (expected, agree) in kinds.items():
        if n := len(of := verdicts.filter(expected=expected)):
            lo, hi = wilson((hits := len(of.filter(agree=agree))) / n, n)
            console.print(f"{title}: {hits} of {n}, {hits / n:.2f} [{lo:.2f}, {hi:.2f}]")
    for r in verdicts.filter(agree=False).iter_rows(named=True):
        console.print(
            f"{r['plant']} seed {r['seed']} ({r['truth'] or 'no slice'}), {r['rule']}: "
            f"[bold]{r['outcome']}[/], not {r['expected']}: {r['sentence']}"
        )


def effect_line(at: Instance, table: pl.DataFrame) -> list:
    """Whether an instance's plant steers, in one line of the report."""
    of = table.filter(pl.col("family").str.starts_with(at.member(0)[:-1]))
    first = {r["variant"]: r for r in of.filter(method="places").iter_rows(named=True)}
    wholes = WHOLES.values() if at.plant in FRAMED else ("full",)
    whole = of.filter(pl.col("variant").is_in(list(wholes)))
    real = (whole["lo"] > 0).all() and (whole["null_percentile"] == 100).all()
    texts = [span(first[v], "effect", "+") if v in first else None for v in ("plant", "decoys")]
    rank, real = min(whole["null_percentile"]), "yes" if real else "no"
    return [*at, span(first["full"], "effect", "+"), rank, *texts, real]


def kept_grid(table: pl.DataFrame):
    """The range of `retained`, mean energy and overlap of T6's and T8's parts."""
    shown = ("keep_shared", "drop_shared", "keep_own", "keep_own_top", "keep_own_middle")
    of = table.filter(pl.col("variant").is_in(shown)).with_columns(
        plant=pl.col("family").str.replace(r"-s\d+-m\d+$", "").cast(pl.Enum(PLANTS))
    )
    lines = of.group_by("plant", "variant", "k").agg(
        pl.col("retained").min().alias("least"),
        pl.col("retained").max().alias("most"),
        pl.col("^(energy|overlap.*)$").mean(),
    )
    title = "retained by some parts, over instances and members"
    return grid(title, lines.columns, lines.sort("plant", "variant", "k").rows())


def span(r: Mapping, name: str, sign: str = "") -> str:
    """A number of a line with its interval."""
    return f"{r[name]:{sign}.2f} [{r['lo']:{sign}.2f}, {r['hi']:{sign}.2f}]"


if __name__ == "__main__":
    guarded(main, Config)
