"""Do the rules of T6, T7 and T8 find what was planted, and stay silent where nothing was?

Question:   on adapters whose truth is fixed by construction and whose effect is real, does each
            rule support the claim that is true, naming the right slice, and no claim that is false?
Prediction: every rule detects its own plant in most seeds, and none is supported on random deltas.
Rule:       a rule passes its control where it agrees with the truth in every seed; the detection
            rate and the false-positive rate are reported with Wilson's 95 % interval.

    python experiments/t13_planted.py

Plants, trained as LoRA pairs, pos - neg, in the recipe's band of layers. The first two and the last
have `members`, the families of T6's rules; T7's and T8's look at the first:
    shared-core       o_proj and down_proj; B is frozen to one Haar frame per layer, common to all
                      members, and A is trained from 0
    divergent-basins  the same with a frame per member, orthogonal to those of the others
    one-layer         all modules of one layer: the next of the band with every seed
    one-module        one module in all layers: the next of --modules with every seed
    base-band         U_b U_b^T dW V_b V_b^T, b a band of the base weight's singular directions: the
                      next of --bands with every seed; A and B are projected after every step
    own-band          the one-layer dW of the seed with its decoys, under larger ones (below): its
                      upper half then lies in the middle band of dW's own singular directions
    nothing           spectrum_null of the one-layer dW of the seed with decoys, drawn per member
Decoys are added to dW, so that no slice stands out by its norm: random directions with the singular
values of a planted tensor, rescaled to its norm.
    shared-core, divergent-basins   in the same tensor, outside the frame (of all members)
    one-layer         in every module of every other layer: those of its namesake in the planted one
    one-module        in every other module: those of the planted one of that layer
    base-band         in the block of each other band of the same tensor, U_b' R V_b'^T
    own-band          in the planted tensors, outside their row and column spaces: as many random
                      directions as the plant has, each with 1.1 times its largest singular value
A supported claim that names another slice than the planted one is no detection. Whether the decoys
alone have an effect is measured and printed.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import polars as pl
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import (
    BOTTOM,
    MIDDLE,
    SVD,
    TOP,
    BasinDivergence,
    Basis,
    Delta,
    Locus,
    Rule,
    SharedCore,
    Verdict,
    add,
    crop,
    crop_rest,
    difference,
    drop,
    effect_table,
    keep,
    layers,
    norm,
    null_percentile,
    omit,
    overlap,
    own_basis,
    projections,
    random_basis,
    select,
    shared_basis,
    site,
    spectra,
    spectrum_null,
    stream,
    svd,
    tensors_sha256,
    verdict,
    writes_residual,
)
from wscore.null import haar
from wscore.spectrum import inside
from wscore.store import write_whole
from wsrun import figures
from wsrun.adapters import LINEAR, RECIPES, pair_deltas, target_modules, train_adapter
from wsrun.analysis import draw
from wsrun.console import console, grid, guarded, progress
from wsrun.items import load_items, load_personas
from wsrun.models import d_model, limit_threads, load_model
from wsrun.pairs import Pair, load_questions, make_pairs
from wsrun.score import Variant, sweep
from wsrun.tables import check_writable, items_sha256, plain, provenance, write_table

EXPERIMENT = "t13_planted"
PLANTS = ("shared-core", "divergent-basins", "one-layer", "one-module", "base-band", "own-band")
PLANTS += ("nothing",)
ON_TOP = 1.1  # singular values of own-band's decoys, in units of the plant's largest
RULES = ("shared core", "basin divergence", "layers", "modules", "own bands", "base bands")
BANDS = {"top": TOP, "middle": MIDDLE, "bottom": BOTTOM}
RATES = {  # learning rates in units of the recipe's: every plant must steer
    "shared-core": 3.0,
    "divergent-basins": 3.0,
    "one-layer": 1.0,
    "one-module": 2.0,
    "base-band": 1.0,
    "base_middle": 6.0,
}
SUM_TOLERANCE = 1e-5  # kept + rest against the whole, relative
CLAIMS = {  # (plant, rule) -> whether the rule's claim is true; the others' truth is unknown
    ("shared-core", "shared core"): True,
    ("shared-core", "basin divergence"): False,
    ("divergent-basins", "shared core"): False,
    ("divergent-basins", "basin divergence"): True,
    ("one-layer", "layers"): True,
    ("one-module", "modules"): True,
    ("base-band", "base bands"): True,
    ("own-band", "own bands"): True,
} | {("nothing", rule): False for rule in RULES}
CLAIM = {"supported": "true", "not supported": "false", None: "open"}
SETTINGS = "planted.json"  # written last into an adapter's folder


@dataclass(frozen=True)
class Config:
    """Options of t13_planted."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """one instance of every plant per seed"""
    plants: tuple[str, ...] = PLANTS
    """which plants"""
    members: int = 3
    """adapters per instance, the families of T6's rules"""
    modules: tuple[str, ...] = ("down_proj", "up_proj", "gate_proj", "v_proj", "o_proj")
    """module of one-module, by seed"""
    bands: tuple[str, ...] = ("top", "middle")
    """band of base-band, by seed"""
    K: tuple[int, ...] = (8, 16)
    """sizes of T6's subspaces"""
    model: str = "data/organism"
    """model folder or hub name"""
    data: Path = Path("data/organism")
    """folder with questions.jsonl, personas.json, claims.jsonl and dilemmas.jsonl"""
    dataset: str = "claims"
    """data set of the verdicts: claims or dilemmas"""
    dilemmas: int | None = 20
    """how many of the dilemmas to score, the first by dilemma_idx; None for all"""
    pos: str = "honest"
    """persona of personas.json whose answers dW points towards"""
    neg: str = "dishonest"
    """persona whose answers dW points away from"""
    recipe: str = "organism"
    """training recipe: paper, fork or organism"""
    steps: int = 40
    """training steps of a pole"""
    nulls: int = 20
    """null deltas per whole"""
    resamples: int = 2000
    """bootstrap resamples"""
    adapters: Path = Path("artifacts/planted")
    """folder that receives <plant>-s<seed>-m<member>/pos and /neg; complete ones are reused"""
    out: Path = Path("artifacts/tables")
    """folder that receives the tables and the figure"""
    dtype: str = "float32"
    """dtype of the model"""
    device: str = "cpu"
    """device of the model"""


def main(cfg: Config) -> None:
    """Train what is missing, plant, score every part once, apply every rule, count."""
    check(cfg)
    every = load_items(cfg.data, "test", cfg.dilemmas)
    items = [i for i in every if i.dataset == cfg.dataset]
    personas = load_personas(cfg.data / "personas.json", cfg.pos, cfg.neg)
    questions = load_questions(cfg.data / "questions.jsonl", "train")
    model, tok = load_model(cfg.model, cfg.dtype, cfg.device)
    limit_threads(model)
    base = band_weights(model, cfg)
    found = instances(cfg, base)
    pairs = make_pairs(model, tok, questions, *personas, seed=0)
    train(cfg, model, tok, pairs, base, found)
    planted = {at: read(cfg, model, at, base) for at in found}
    notes: dict = {}
    variants = (v for at in found for v in parts(cfg, at, base, planted[at], notes))
    runs = sum(count(cfg, at, planted[at][0].whole) for at in found)
    console.print(f"{cfg.model}: {len(items)} {cfg.dataset}, {len(found)} instances, {runs} runs")
    context = {"experiment": EXPERIMENT, "model": cfg.model, "behaviour": cfg.pos}
    with progress("scoring", 1 + runs) as step:
        rows = sweep(model, tok, items, variants, [1.0], context=context, progress=step)
    table = summary(cfg, rows, notes)
    judged = judge(cfg, found, planted, table)
    counts = confusion(judged)
    made = provenance(
        plain(asdict(cfg)),
        base=tensors_sha256(dict(model.named_parameters())),
        items=items_sha256(items),
        deltas={
            at.member(i): tensors_sha256(m.whole)
            for at, members in planted.items()
            for i, m in enumerate(members)
        },
    )
    tables = {"rows": rows, "": table, "verdicts": judged, "confusion": counts}
    paths = [
        write_table(t, cfg.out / f"{EXPERIMENT}{name and '.'}{name}.parquet", made)
        for name, t in tables.items()
    ]
    report(cfg, found, table, judged, counts)
    draw(figures.confusion, counts, paths[-1], "Do the rules find what was planted, and only that?")
    console.print(f"adapters {cfg.adapters}, tables {cfg.out / EXPERIMENT}*.parquet")


def check(cfg: Config) -> None:
    """Refuse options that cannot work before anything is loaded."""
    known = {
        "--plants": (cfg.plants, PLANTS),
        "--modules": (cfg.modules, LINEAR),
        "--bands": (cfg.bands, BANDS),
        "--dataset": ((cfg.dataset,), ("claims", "dilemmas")),
        "--recipe": ((cfg.recipe,), RECIPES),
    }
    for flag, (asked, names) in known.items():
        if not asked or set(asked) - set(names) or len(set(asked)) < len(asked):
            raise ValueError(
                f"t13: {flag} {' '.join(asked) or 'nothing'} asked; "
                f"name each one once, out of {', '.join(names)}"
            )
    for flag, values, least in (
        ("--seeds", cfg.seeds, 0),
        ("--K", cfg.K, 1),
        ("--members", (cfg.members,), 2),
        ("--steps", (cfg.steps,), 1),
        ("--nulls", (cfg.nulls,), 1),
        ("--resamples", (cfg.resamples,), 1),
    ):
        if not values or min(values) < least or len(set(values)) < len(values):
            asked = " ".join(map(str, values)) or "nothing"
            raise ValueError(f"t13: {flag} {asked} asked; each value once, {least} or more")
    if cfg.nulls > 50:
        raise ValueError(f"t13: --nulls {cfg.nulls} asked; a member has 50 streams of its own")
    for folder in (cfg.adapters, cfg.out):
        check_writable(folder)


class Instance(NamedTuple):
    """One plant of one seed, and the slice it was put in, as the rules name slices."""

    plant: str
    seed: int
    truth: str | None

    def member(self, i: int) -> str:
        return f"{self.plant}-s{self.seed}-m{i}"


class Base(NamedTuple):
    """The base weights of the band, and their singular triplets."""

    weights: Mapping[str, Tensor]
    svds: Mapping[str, SVD]


class Planted(NamedTuple):
    """A member's dW: what was trained, the random deltas beside it, and their sum."""

    core: Delta
    decoys: Delta | None
    whole: Delta


def instances(cfg: Config, base: Base) -> list[Instance]:
    """Every plant of every seed; layers, modules and bands follow in turn."""
    slices = {
        "one-layer": layers_of(base),
        "one-module": cfg.modules,
        "base-band": [f"base_{band}" for band in cfg.bands],
        "own-band": ["own_middle"],
    }
    return [turn(p, seed, slices.get(p, [])) for p in cfg.plants for seed in cfg.seeds]


def turn(plant: str, seed: int, slices: Sequence[str]) -> Instance:
    return Instance(plant, seed, slices[seed % len(slices)] if slices else None)


def layers_of(base: Base) -> list[str]:
    return sorted({slices_of(n)[0] for n in base.weights})


def band_weights(model: PreTrainedModel, cfg: Config) -> Base:
    """The linear maps of the recipe's band, by parameter name."""
    depth, rank = model.config.get_text_config().num_hidden_layers, RECIPES[cfg.recipe].rank
    if (d := d_model(model)) < max(*cfg.K, rank * cfg.members):
        raise ValueError(
            f"t13: --K {max(cfg.K)} and {cfg.members} frames of {rank} asked; d_model is {d}"
        )
    where = target_modules(depth, RECIPES[cfg.recipe].band)
    named = {n: p.detach() for n, p in model.named_parameters()}
    weights = {n: p for n, p in named.items() if re.fullmatch(where, n.removesuffix(".weight"))}
    return Base(weights, spectra(weights))


def targets(at: Instance, base: Base) -> list[str]:
    """The parameters that the plant trains."""
    if at.plant in ("shared-core", "divergent-basins"):
        return [n for n in base.weights if writes_residual(site(n))]
    return [n for n in base.weights if at.plant == "base-band" or at.truth in slices_of(n)]


def slices_of(name: str) -> tuple[str, str]:
    """The layer and the module of a parameter, as rules name slices."""
    return f"layer_{site(name).layer}", site(name).proj


def frame(at: Instance, member: int | None, base: Base, cfg: Config) -> Basis:
    """Frozen output directions: one Haar frame per layer; None: those of all members."""
    rank, several = RECIPES[cfg.recipe].rank, at.plant == "divergent-basins"
    start, stop = 0, rank * (cfg.members if several else 1)
    if several and member is not None:
        start, stop = rank * member, rank * (member + 1)
    out = {}
    for name in targets(at, base):
        w, draw = base.weights[name], stream(at.seed, f"{at.plant}/layer {site(name).layer}")
        out[name] = haar(len(w), rank * cfg.members, w, draw)[:, start:stop]
    return out


def factors(model: PeftModel) -> Iterator[tuple[str, torch.nn.Parameter, torch.nn.Parameter]]:
    """(parameter name of the base, A [r, d_in], B [d_out, r]) of a LoRA model."""
    named = dict(model.named_parameters())
    for name, B in named.items():
        if ".lora_B." in name:
            of = name.removeprefix("base_model.model.").partition(".lora_B.")[0]
            yield f"{of}.weight", named[name.replace(".lora_B.", ".lora_A.")], B


def freeze_outputs(directions: Basis) -> Callable[[PeftModel], None]:
    """B = directions, frozen; A = 0, trained."""

    def prepare(model: PeftModel) -> None:
        for name, A, B in factors(model):
            A.data.zero_()
            B.data.copy_(directions[name])
            B.requires_grad_(False)

    return prepare


def confine(svds: Mapping[str, SVD], band: str) -> Callable[[PeftModel], Callable[[], None]]:
    """B <- U_b U_b^T B and A <- A V_b V_b^T, now and after every step."""

    def prepare(model: PeftModel) -> Callable[[], None]:
        found = [(*block(svds[name], band), A, B) for name, A, B in factors(model)]

        def project() -> None:
            for U, Vt, A, B in found:
                B.data.copy_(U @ (U.T @ B.data))
                A.data.copy_((A.data @ Vt.T) @ Vt)

        project()
        return project

    return prepare


def block(of: SVD, band: str) -> tuple[Tensor, Tensor]:
    """U_b [d_out, b] and Vt_b [b, d_in]: the singular directions of a band."""
    i = inside(BANDS[band], of.S)
    return of.U[:, i], of.Vt[i]


def plant(at: Instance, member: int, core: Delta, base: Base, cfg: Config) -> Planted:
    """The trained dW with its decoys."""
    decoys = dict(decoy_parts(at, core, base, cfg, _seed(at, member)))
    return Planted(core, decoys, add(core, decoys))


def _seed(at: Instance, member: int) -> int:
    return 1_000_000 + 1000 * at.seed + member  # apart from the seeds of null draws


def decoy_parts(
    at: Instance, core: Delta, base: Base, cfg: Config, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """(name, random delta), as the docstring of the script lists them."""
    if at.plant in ("shared-core", "divergent-basins"):
        outside = drop(
            {n: like(w, w.shape, n, seed) for n, w in core.items()}, frame(at, None, base, cfg)
        )
        for name, w in outside.items():
            yield name, w * (norm({name: core[name]}) / norm({name: w}))
    elif at.plant == "base-band":
        for name, w in core.items():
            others = [b for b in BANDS if f"base_{b}" != at.truth]
            yield name, sum((in_block(w, base.svds[name], b, name, seed) for b in others), w * 0)
    else:
        same = int(at.plant == "one-layer")  # twins share the module, else the layer
        twins = {slices_of(n)[same]: w for n, w in core.items()}
        for name, weight in base.weights.items():
            if name not in core:
                yield name, like(twins[slices_of(name)[same]], weight.shape, name, seed)


def under(m: Planted, seed: int) -> Planted:
    """A plant whose own tensors get random directions with larger singular values than its own."""
    larger = {}
    for name, w in m.core.items():
        U, S, Vt = svd(w)
        R = torch.randn(w.shape, generator=stream(seed, f"under/{name}"), dtype=w.dtype)
        R = R - U @ (U.T @ R)
        R = svd(R - (R @ Vt.T) @ Vt)
        n = len(S)  # one decoy above each direction of the plant
        larger[name] = ON_TOP * S[0] * R.U[:, :n] @ R.Vt[:n]
    decoys = add(m.decoys, larger) if m.decoys else larger
    return Planted(m.core, decoys, add(m.core, decoys))


def like(w: Tensor, shape: Sequence[int], name: str, seed: int) -> Tensor:
    """Random directions in `shape` with w's singular values, as many as fit, and w's norm."""
    S = svd(w).S[: min(shape)]
    diagonal = torch.zeros(*shape, dtype=w.dtype)
    diagonal[range(len(S)), range(len(S))] = S
    null = spectrum_null({name: diagonal}, seed)
    return null[name] * (norm({name: w}) / norm(null))


def in_block(w: Tensor, of: SVD, band: str, name: str, seed: int) -> Tensor:
    """U_b R V_b^T with R = like(w)."""
    U, Vt = block(of, band)
    U, Vt = U.to(w.dtype), Vt.to(w.dtype)
    return U @ like(w, (U.shape[1], len(Vt)), f"{name}/{band}", seed) @ Vt


def prepare(at: Instance, member: int, base: Base, cfg: Config) -> Callable | None:
    """What holds the plant's constraint while it is trained; None where its targets are enough."""
    if at.plant in ("shared-core", "divergent-basins"):
        return freeze_outputs(frame(at, member, base, cfg))
    return confine(base.svds, band_of(at)) if at.plant == "base-band" else None


def band_of(at: Instance) -> str:
    return str(at.truth).removeprefix("base_")


def settings(
    cfg: Config, at: Instance, member: int, base: Base, pairs: Sequence[Pair]
) -> dict[str, object]:
    """All that decides a trained member; a folder with these settings is reused."""
    asked = ("members", "steps", "recipe", "model", "pos", "neg", "dtype", "device")
    text = json.dumps([vars(p) for p in pairs], sort_keys=True)
    return {
        **{name: getattr(cfg, name) for name in asked},
        **at._asdict(),
        "member": member,
        "rate": rate(at),
        "pairs": sha256(text.encode()).hexdigest(),
        "base": tensors_sha256(base.weights),
    }


def complete(folder: Path, asked: Mapping[str, object]) -> bool:
    """Whether the folder holds both poles, trained under just these settings."""
    try:
        return json.loads((folder / SETTINGS).read_text()) == asked
    except (OSError, ValueError):
        return False


def train(
    cfg: Config,
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    base: Base,
    found: Sequence[Instance],
) -> None:
    """Train every member that is not there yet."""
    wanted = {(source(at, base), i) for at in found for i in members_of(cfg, source(at, base))}
    missing = [
        (at, i)
        for at, i in sorted(wanted)
        if not complete(cfg.adapters / at.member(i), settings(cfg, at, i, base, pairs))
    ]
    console.print(f"{len(missing)} of {len(wanted)} pairs of adapters to train")
    with progress("training adapters", 2 * len(missing) * cfg.steps) as step:
        for at, i in missing:
            train_member(cfg, model, tok, pairs, base, at, i, step)


def source(at: Instance, base: Base) -> Instance:
    """The instance whose adapters are used: two plants are made of the one-layer one."""
    borrows = at.plant in ("own-band", "nothing")
    return turn("one-layer", at.seed, layers_of(base)) if borrows else at


def rate(at: Instance) -> float:
    return RATES.get(str(at.truth), RATES[at.plant])


def train_member(
    cfg: Config,
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    base: Base,
    at: Instance,
    member: int,
    step: Callable[[str], None],
) -> None:
    """Train both poles of one member into its folder, its settings written last."""
    folder, recipe = cfg.adapters / at.member(member), RECIPES[cfg.recipe]
    rates = {f: lr * rate(at) for f, lr in recipe.lr.items()}
    names = [re.escape(n.removesuffix(".weight")) for n in targets(at, base)]
    shutil.rmtree(folder, ignore_errors=True)
    for side in ("pos", "neg"):
        train_adapter(
            model,
            tok,
            pairs,
            side,
            "lora",
            replace(recipe, lr=rates, steps=cfg.steps),
            folder / side,
            seed=1000 * at.seed + member,
            base_name=cfg.model,
            where="|".join(names),
            prepare=prepare(at, member, base, cfg),
            step_done=lambda note: step(f"{folder.name} {note}"),
        )
    text = json.dumps(settings(cfg, at, member, base, pairs), indent=1) + "\n"
    write_whole(folder / SETTINGS, lambda tmp: tmp.write_text(text))


def read(cfg: Config, model: PreTrainedModel, at: Instance, base: Base) -> list[Planted]:
    """The proved deltas of an instance's members, with decoys."""
    of = source(at, base)
    cores = [pair_deltas(model, cfg.adapters / of.member(i)).dW for i in members_of(cfg, of)]
    members = [plant(of, i, core, base, cfg) for i, core in enumerate(cores)]
    if at.plant == "own-band":
        return [under(m, _seed(at, 0)) for m in members]
    if at == of:
        return members
    nulls = [spectrum_null(members[0].whole, 2 * _seed(at, i)) for i in members_of(cfg, at)]
    return [Planted(null, None, null) for null in nulls]


def members_of(cfg: Config, at: Instance) -> range:
    """The members an instance has."""
    return range(cfg.members if compared(at) else 1)


def compared(at: Instance) -> bool:
    """Whether the instance has several members, which T6's rules compare."""
    return at.plant in ("shared-core", "divergent-basins", "nothing")


def outputs(
    cfg: Config, at: Instance, members: Sequence[Planted], notes: dict[tuple, dict]
) -> Iterator[Variant]:
    """T6 on the members' residual-writing tensors: parts, random subspaces, null deltas."""
    parts = [select(m.whole, writes_residual) for m in members]
    own = {k: [own_basis(d, k) for d in parts] for k in cfg.K}
    for i, d in enumerate(parts):
        others = [x for j, x in enumerate(parts) if j != i]
        tell = partial(Variant, method="outputs", family=at.member(i), seed=at.seed)
        yield tell("residual_full", d)
        for k in cfg.K:
            basis = shared_basis(others, k)
            notes[at.member(i), "keep_own", k] = overlaps(own[k], i)
            yield tell("keep_shared", keep(d, basis), k=k)
            yield tell("drop_shared", drop(d, basis), k=k)
            yield tell("keep_own", keep(d, own[k][i]), k=k)
            yield tell("keep_random", keep(d, random_basis(basis, 1000 * at.seed + i)), k=k)
        yield from nulls(cfg, at, i, d, tell)


def overlaps(own: Sequence[Basis], i: int) -> dict[str, float]:
    """Mean overlap of a member's own directions with the other members', and of random ones."""
    found = [x for j, b in enumerate(own) if j != i for x in overlap(own[i], b).values()]
    chance = fmean(b.shape[1] / b.shape[0] for b in own[i].values())
    return {"overlap": fmean(found), "overlap_random": chance}


def nulls(cfg: Config, at: Instance, member: int, d: Delta, tell: Callable) -> Iterator[Variant]:
    """Random deltas with d's singular values."""
    for i in range(cfg.nulls):
        yield tell(f"spectrum_null#{i:02d}", spectrum_null(d, 1000 * at.seed + 50 * member + i))


def places(
    cfg: Config, at: Instance, base: Base, m: Planted, notes: dict[tuple, dict]
) -> Iterator[Variant]:
    """T7 and T8 on the first member: the whole, its plant, its decoys, and every slice."""
    tell = partial(Variant, method="places", family=at.member(0), seed=at.seed)
    yield tell("full", m.whole)
    yield tell("plant", m.core)
    if m.decoys:
        yield tell("decoys", m.decoys)
    for name, (kept, rest) in cuts(base, m.whole).items():
        error = norm(difference(add(kept, rest), m.whole)) / norm(m.whole)
        if error > SUM_TOLERANCE:
            raise RuntimeError(f"{name} of {at.member(0)}: kept + rest misses the whole by {error}")
        energy = (norm(kept) / norm(m.whole)) ** 2
        notes[at.member(0), f"keep_{name}", None] = {"energy": energy}
        yield tell(f"keep_{name}", kept)
        yield tell(f"drop_{name}", rest)
        yield tell(f"control_{name}", spectrum_null(kept, 1000 * at.seed + 999))
    yield from nulls(cfg, at, 0, m.whole, tell)


def cuts(base: Base, whole: Delta) -> dict[str, tuple[Delta, Delta]]:
    """slice -> (kept, rest): layers, modules, bands of dW's own and of the base's spectrum."""
    out = {}
    for layer in sorted({site(n).layer for n in whole}):
        where = layers(layer, layer + 1)
        out[f"layer_{layer}"] = select(whole, where), omit(whole, where)
    for module in (p for p in LINEAR if any(site(n).proj == p for n in whole)):
        where = projections(module)
        out[module] = select(whole, where), omit(whole, where)
    own = spectra(whole)
    for band, b in BANDS.items():
        out[f"own_{band}"] = crop(whole, b, svds=own), crop_rest(whole, b, svds=own)
    for band, b in BANDS.items():
        out[f"base_{band}"] = tuple(f(whole, b, "base", svds=base.svds) for f in (crop, crop_rest))
    return out


def rules(cfg: Config, at: Instance, whole: Delta) -> Mapping[str, Rule]:
    """Every rule that concerns the instance, thresholds at their defaults."""
    families = tuple(at.member(i) for i in range(cfg.members))
    sites = {n: slices_of(n) for n in whole}
    sliced = {
        "layers": sorted({layer for layer, _ in sites.values()}),
        "modules": [p for p in LINEAR if any(p == module for _, module in sites.values())],
        "own bands": [f"own_{b}" for b in BANDS],
        "base bands": [f"base_{b}" for b in BANDS],
    }
    first = {name: Locus(tuple(s), families=families[:1]) for name, s in sliced.items()}
    if not compared(at):
        return first
    core = {"shared core": SharedCore(families=families)}
    return core | {"basin divergence": BasinDivergence(families=families)} | first


def parts(
    cfg: Config, at: Instance, base: Base, members: Sequence[Planted], notes: dict
) -> Iterator[Variant]:
    """Every part of an instance that a rule asks for."""
    if compared(at):
        yield from outputs(cfg, at, members, notes)
    yield from places(cfg, at, base, members[0], notes)


def count(cfg: Config, at: Instance, whole: Delta) -> int:
    """How many variants `parts` yields."""
    sites = [slices_of(n) for n in whole]
    slices = sum(len({s[i] for s in sites}) for i in (0, 1)) + 2 * len(BANDS)
    one = 2 + (at.plant != "nothing") + 3 * slices + cfg.nulls
    each = 1 + 4 * len(cfg.K) + cfg.nulls
    return one + compared(at) * cfg.members * each


def summary(cfg: Config, rows: pl.DataFrame, notes: Mapping[tuple, Mapping]) -> pl.DataFrame:
    """One line per family, method, variant and k, with shares of the method's own whole."""
    lines = []
    for method, whole in (("outputs", "residual_full"), ("places", "full")):
        of = rows.filter(pl.col("method").is_in(["base", method]))
        if of["method"].n_unique() > 1:
            lines.append(effect_table(of, full=whole, resamples=cfg.resamples))
    table = null_percentile(pl.concat(lines))
    keys = {"family": pl.String, "variant": pl.String, "k": pl.Int64}
    facts = dict.fromkeys(("overlap", "overlap_random", "energy"), pl.Float64)
    lines = [dict(zip(keys, key, strict=True)) | dict(x) for key, x in notes.items()]
    return table.join(
        pl.DataFrame(lines, schema=keys | facts),
        on=list(keys),
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )


def judge(
    cfg: Config,
    found: Sequence[Instance],
    planted: Mapping[Instance, Sequence[Planted]],
    table: pl.DataFrame,
) -> pl.DataFrame:
    """One line per instance and rule: the verdict, the truth, and whether they agree."""
    lines = []
    for at in found:
        families = [at.member(i) for i in range(cfg.members)]
        of = table.filter(pl.col("family").is_in(families))
        for name, rule in rules(cfg, at, planted[at][0].whole).items():
            method = "places" if isinstance(rule, Locus) else "outputs"
            v = verdict(of.filter(method=method), rule)
            lines.append(judged(at, name, v))
    return pl.DataFrame(lines, infer_schema_length=None)


def judged(at: Instance, rule: str, v: Verdict) -> dict[str, object]:
    """A verdict beside the truth; a true claim about slices counts where it names the right one."""
    true = CLAIMS.get((at.plant, rule))
    supported = v.outcome == "supported"
    found = supported and v.part == at.truth
    return {
        "plant": at.plant,
        "seed": at.seed,
        "rule": rule,
        "truth": at.truth,
        "expected": None if true is None else "supported" if true else "not supported",
        "outcome": v.outcome,
        "named": v.part,
        "agree": None if true is None else found if true else not supported,
        "sentence": v.sentence,
    }


def confusion(judged: pl.DataFrame) -> pl.DataFrame:
    """One line per (plant, rule): outcomes counted, and the rate of agreement with the truth.

    `misplaced` are those of `supported` that name another slice than the planted one; lo and hi are
    Wilson's. Lines whose truth is unknown have no `agree`.
    """
    outcomes = {o: (pl.col("outcome") == o).sum() for o in ("supported", "refuted", "undetermined")}
    misplaced = (pl.col("outcome") == "supported") & (pl.col("expected") == "supported")
    table = judged.group_by("plant", "rule", "expected", maintain_order=True).agg(
        seeds=pl.len(),
        **outcomes,
        misplaced=(misplaced & ~pl.col("agree")).sum(),
        agree=pl.when(pl.col("agree").is_not_null().all()).then(pl.col("agree").sum()),
    )
    spans = [
        (None, None) if agree is None else wilson(agree, n)
        for agree, n in table.select("agree", "seeds").iter_rows()
    ]
    return table.with_columns(
        rate=pl.col("agree") / pl.col("seeds"),
        lo=pl.Series([lo for lo, _ in spans], dtype=pl.Float64),
        hi=pl.Series([hi for _, hi in spans], dtype=pl.Float64),
    )


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """(p + z^2/2n +- z sqrt(p (1-p)/n + z^2/4n^2)) / (1 + z^2/n), p = hits/n (Wilson 1927)."""
    p, scale = hits / n, 1 + z**2 / n
    middle, half = p + z**2 / (2 * n), z * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def report(
    cfg: Config,
    found: Sequence[Instance],
    table: pl.DataFrame,
    judged: pl.DataFrame,
    counts: pl.DataFrame,
) -> None:
    """Print whether plants steer, the confusion table, the rates, and every disagreement."""
    effects = [effect_line(at, table) for at in found]
    heads = ("plant", "seed", "slice", "whole: effect", "null %", "plant: effect", "decoys: effect")
    console.print(grid(f"{cfg.dataset}: first member, alpha = 1", (*heads, "real"), effects))
    idle = [line for line in effects if line[0] != "nothing" and line[-1] == "no"]
    console.print(
        f"{len(idle)} of {sum(at.plant != 'nothing' for at in found)} planted instances do not "
        "steer (interval above 0, above every null draw, in every whole a true claim is about)"
    )
    kept = kept_lines(table)
    console.print(grid("retained by some parts, over instances and members", kept[0], kept[1:]))
    heads = ("plant", "rule", "claim", "supported", "misplaced", "refuted", "undetermined")
    lines = (
        [r["plant"], r["rule"], CLAIM[r["expected"]], *(r[c] for c in heads[3:]),
         "-" if r["agree"] is None else f"{r['agree']}/{r['seeds']}", span(r)]
        for r in counts.iter_rows(named=True)
    )  # fmt: skip
    console.print(grid("verdicts over seeds", (*heads, "agree", "rate [95 %]"), lines))
    for title, expected, kind in (
        ("detection", "supported", pl.col("agree")),
        ("false positives", "not supported", ~pl.col("agree")),
    ):
        of = judged.filter(expected=expected)
        if len(of):
            hits = int(of.select(kind.sum()).item())
            lo, hi = wilson(hits, len(of))
            console.print(
                f"{title}: {hits} of {len(of)}, {hits / len(of):.2f} [{lo:.2f}, {hi:.2f}]"
            )
    for r in judged.filter(~pl.col("agree")).iter_rows(named=True):
        console.print(
            f"{r['plant']} seed {r['seed']} ({r['truth'] or 'no slice'}), {r['rule']}: "
            f"[bold]{r['outcome']}[/], not {r['expected']}: {r['sentence']}"
        )


def kept_lines(table: pl.DataFrame) -> list[tuple]:
    """Heads and lines: the range of `retained`, mean energy and overlap of T6's and T8's parts."""
    shown = ("keep_shared", "drop_shared", "keep_own", "keep_own_top", "keep_own_middle")
    of = table.filter(pl.col("variant").is_in(shown)).with_columns(
        plant=pl.col("family").str.replace(r"-s\d+-m\d+$", "")
    )
    lines = of.group_by("plant", "variant", "k", maintain_order=True).agg(
        pl.col("retained").min().alias("least"),
        pl.col("retained").max().alias("most"),
        pl.col("energy", "overlap", "overlap_random").mean(),
    )
    lines = lines.sort(pl.col("plant").cast(pl.Enum(PLANTS)), "variant", "k")
    return [tuple(lines.columns), *lines.rows()]


def span(r: Mapping) -> str:
    return "-" if r["rate"] is None else f"{r['rate']:.2f} [{r['lo']:.2f}, {r['hi']:.2f}]"


def effect_line(at: Instance, table: pl.DataFrame) -> list:
    """Whether an instance's plant steers, in one line of the report."""
    of = table.filter(pl.col("family").str.starts_with(f"{at.plant}-s{at.seed}-m"))
    first = {r["variant"]: r for r in of.filter(method="places").iter_rows(named=True)}
    whole = of.filter(
        (pl.col("variant") == "full")
        | ((pl.col("variant") == "residual_full") & (at.plant in PLANTS[:2]))
    )
    real = (whole["lo"] > 0).all() and (whole["null_percentile"] == 100).all()
    texts = [
        f"{first[v]['effect']:+.2f} [{first[v]['lo']:+.2f}, {first[v]['hi']:+.2f}]"
        if v in first
        else None
        for v in ("full", "plant", "decoys")
    ]
    rank = min(whole["null_percentile"])
    return [at.plant, at.seed, at.truth, texts[0], rank, *texts[1:], "yes" if real else "no"]


if __name__ == "__main__":
    guarded(main, Config)
