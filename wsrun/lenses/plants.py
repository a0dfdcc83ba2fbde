"""Planted truths: adapters that steer, and whose effect lies where they were made to have it.

Plants are trained as LoRA pairs, dW = pos - neg, in the recipe's band of layers. The first two and
the last have `members`, the families of T6's rules; T7's and T8's look at the first:
    shared-core       o_proj and down_proj; B is frozen to one Haar frame per layer, common to all
                      members, and A is trained from 0
    divergent-basins  the same with a frame per member, orthogonal to those of the others
    one-layer         all modules of one layer: the next of the band with every seed
    one-module        one module in all layers: the next of SLICES with every seed
    base-band         U_b U_b^T dW V_b V_b^T, b a band of the base weight's singular directions: the
                      next of SLICES with every seed; A and B are projected after every step
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
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from wscore.delta import Basis, DeltaLike, add
from wscore.null import gaussian, haar, match_norm, spectrum_null, stream
from wscore.project import drop
from wscore.sites import site, writes_residual
from wscore.spectrum import BOTTOM, MIDDLE, SVD, TOP, inside, spectra, svd
from wscore.store import tensors_sha256, write_whole
from wsrun.adapters.configs import RECIPES, target_modules
from wsrun.adapters.extract import pair_deltas
from wsrun.data.pairs import Pair
from wsrun.models.load import d_model
from wsrun.report.console import console, progress
from wsrun.report.tables import items_sha256

FRAMED = ("shared-core", "divergent-basins")
PLANTS = (*FRAMED, "one-layer", "one-module", "base-band", "own-band", "nothing")
BANDS = {"top": TOP, "middle": MIDDLE, "bottom": BOTTOM}
SLICES = {  # by seed, in turn; base_bottom cannot be made to steer clear of its decoys
    "one-module": ("down_proj", "up_proj", "gate_proj", "v_proj", "o_proj"),
    "base-band": ("base_top", "base_middle"),
    "own-band": ("own_middle",),
}
RECIPE = RECIPES["organism"]
RATES = {"shared-core": 3.0, "divergent-basins": 3.0, "one-layer": 1.0, "one-module": 2.0}
RATES |= {"base_top": 1.0, "base_middle": 6.0}  # of RECIPE's rate: every plant must steer
ON_TOP = 1.1  # singular values of own-band's decoys, in units of the plant's largest
SETTINGS = "planted.json"  # written last into an adapter's folder


@dataclass(frozen=True)
class Options:
    """Options of planted adapters."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """one instance of every plant per seed"""
    plants: tuple[str, ...] = PLANTS
    """which plants"""
    members: int = 3
    """adapters per instance, the families of T6's rules"""
    model: str = "data/organism"
    """model folder or hub name"""
    data: Path = Path("data/organism")
    """folder with questions.jsonl, personas.json, claims.jsonl and dilemmas.jsonl"""
    pos: str = "honest"
    """persona of personas.json whose answers dW points towards"""
    neg: str = "dishonest"
    """persona whose answers dW points away from"""
    steps: int = 40
    """training steps of a pole"""
    adapters: Path = Path("artifacts/planted")
    """folder that receives <plant>-s<seed>-m<member>/pos and /neg; complete ones are reused"""


class Instance(NamedTuple):
    """One plant of one seed, and the slice it was put in, as the rules name slices."""

    plant: str
    seed: int
    truth: str | None

    def member(self, i: int) -> str:
        return f"{self.plant}-s{self.seed}-m{i}"


class Base(NamedTuple):
    """The base weights of the recipe's band and their singular triplets, and how many members."""

    weights: Mapping[str, Tensor]
    svds: Mapping[str, SVD]
    members: int


class Planted(NamedTuple):
    """A member's dW: what was trained, the random deltas beside it, and their sum."""

    core: DeltaLike
    decoys: DeltaLike | None
    whole: DeltaLike


def base_of(model: PreTrainedModel, members: int) -> Base:
    """The linear maps to plant in; raises ValueError where the frames of all members do not fit."""
    if (d := d_model(model)) < RECIPE.rank * members:
        raise ValueError(
            f"plants: {members} frames of {RECIPE.rank} asked; d_model is {d}, lower --members"
        )
    where = target_modules(model.config.get_text_config().num_hidden_layers, RECIPE.band)
    named = {n: p.detach() for n, p in model.named_parameters()}
    weights = {n: p for n, p in named.items() if re.fullmatch(where, n.removesuffix(".weight"))}
    return Base(weights, spectra(weights), members)


def instance(plant: str, seed: int, base: Base) -> Instance:
    """A plant of a seed; layers, modules and bands follow in turn."""
    layers = sorted({slices_of(n)[0] for n in base.weights})
    slices = layers if plant == "one-layer" else SLICES.get(plant)
    return Instance(plant, seed, slices[seed % len(slices)] if slices else None)


def source(at: Instance, base: Base) -> Instance:
    """The instance whose adapters are used: two plants are made of the one-layer one."""
    return instance("one-layer", at.seed, base) if at.plant in PLANTS[-2:] else at


def members(at: Instance, base: Base) -> range:
    """Several where T6's rules compare them, else one."""
    return range(base.members if at.plant in (*FRAMED, "nothing") else 1)


def slices_of(name: str) -> tuple[str, str]:
    """The layer and the module of a parameter, as rules name slices."""
    return f"layer_{site(name).layer}", site(name).proj


def targets(at: Instance, base: Base) -> list[str]:
    """The parameters that the plant trains."""
    if at.plant in FRAMED:
        return [n for n in base.weights if writes_residual(site(n))]
    return [n for n in base.weights if at.plant == "base-band" or at.truth in slices_of(n)]


def frame(at: Instance, base: Base, member: int | None = None) -> Basis:
    """A member's frozen output directions, one Haar frame per layer; None: those of all members."""
    lo, hi = (0, base.members) if member is None else (member, member + 1)
    lo, hi = (0, 1) if at.plant == "shared-core" else (lo, hi)
    out, r = {}, RECIPE.rank
    for name in targets(at, base):
        w, draw = base.weights[name], stream(at.seed, f"{at.plant}/layer {site(name).layer}")
        out[name] = haar(len(w), r * base.members, w, draw)[:, r * lo : r * hi]
    return out


def constraint(at: Instance, base: Base, member: int) -> Callable | None:
    """The `prepare` of train_adapter that holds a plant; None where its targets are enough."""
    if at.plant in FRAMED:
        return partial(freeze_outputs, frame(at, base, member))
    return partial(confine, base.svds, str(at.truth)) if at.plant == "base-band" else None


def freeze_outputs(directions: Basis, model: PeftModel) -> None:
    """B = directions, frozen; A = 0, trained."""
    for name, A, B in factors(model):
        A.data.zero_()
        B.data.copy_(directions[name])
        B.requires_grad_(False)


def confine(svds: Mapping[str, SVD], band: str, model: PeftModel) -> Callable[[], None]:
    """B <- U_b U_b^T B and A <- A V_b V_b^T, now and whenever the returned function is called."""
    found = [(*block(svds[name], band), A, B) for name, A, B in factors(model)]

    def project() -> None:
        for U, Vt, A, B in found:
            B.data.copy_(U @ (U.T @ B.data))
            A.data.copy_((A.data @ Vt.T) @ Vt)

    project()
    return project


def factors(model: PeftModel) -> Iterator[tuple[str, torch.nn.Parameter, torch.nn.Parameter]]:
    """(parameter name of the base, A [r, d_in], B [d_out, r]) of a LoRA model."""
    named = dict(model.named_parameters())
    for name, B in named.items():
        if ".lora_B." in name:
            of = name.removeprefix("base_model.model.").partition(".lora_B.")[0]
            yield f"{of}.weight", named[name.replace(".lora_B.", ".lora_A.")], B


def block(of: SVD, band: str) -> tuple[Tensor, Tensor]:
    """U_b [d_out, b] and Vt_b [b, d_in]: the singular directions of a band."""
    i = inside(BANDS[band.removeprefix("base_")], of.S)
    return of.U[:, i], of.Vt[i]


def train(
    cfg: Options, learn: Callable, pairs: Sequence[Pair], base: Base, found: Iterable[Instance]
) -> None:
    """Train every member that is not there yet; `learn` is train_adapter of a model and `pairs`."""
    asked = {name: getattr(cfg, name) for name in ("members", "steps", "model", "pos", "neg")}
    asked |= {"recipe": RECIPE.name, "dtype": "float32", "device": "cpu"}
    asked |= {"pairs": items_sha256(pairs), "base": tensors_sha256(base.weights)}
    sources, missing = sorted({source(at, base) for at in found}), []
    wanted = [(at, i) for at in sources for i in members(at, base)]
    for at, i in wanted:
        rate = RATES[at.plant if at.plant in RATES else str(at.truth)]
        settings = asked | at._asdict() | {"member": i, "rate": rate}
        if not complete(cfg.adapters / at.member(i), settings):
            missing.append((at, settings))
    console.print(f"{len(missing)} of {len(wanted)} pairs of adapters to train")
    with progress("training adapters", 2 * len(missing) * cfg.steps) as step:
        for at, settings in missing:
            train_member(cfg, learn, at, base, settings, step)


def complete(folder: Path, settings: dict) -> bool:
    """Whether the folder holds both poles, trained under just these settings."""
    with suppress(OSError, ValueError):
        return json.loads((folder / SETTINGS).read_text()) == settings
    return False


def train_member(
    cfg: Options, learn: Callable, at: Instance, base: Base, settings: dict, step: Callable
) -> None:
    """Train both poles of one member into its folder; its settings are written last."""
    i, rates = settings["member"], {f: lr * settings["rate"] for f, lr in RECIPE.lr.items()}
    folder, recipe = cfg.adapters / at.member(i), replace(RECIPE, lr=rates, steps=cfg.steps)
    where = "|".join(re.escape(n.removesuffix(".weight")) for n in targets(at, base))
    how: dict = {"where": where, "prepare": constraint(at, base, i), "seed": 1000 * at.seed + i}
    how["step_done"] = lambda note: step(f"{folder.name} {note}")
    shutil.rmtree(folder, ignore_errors=True)
    for side in ("pos", "neg"):
        learn(side, "lora", recipe, folder / side, **how)
    text = json.dumps(settings, indent=1) + "\n"
    write_whole(folder / SETTINGS, lambda tmp: tmp.write_text(text))


def read(cfg: Options, model: PreTrainedModel, at: Instance, base: Base) -> list[Planted]:
    """The proved deltas of an instance's members, with decoys."""
    of = source(at, base)
    cores = [pair_deltas(model, cfg.adapters / of.member(i)).dW for i in members(of, base)]
    if at.plant != "nothing":
        return [planted(at, i, core, base) for i, core in enumerate(cores)]
    whole = planted(of, 0, cores[0], base).whole
    nulls = (spectrum_null(whole, 2 * _seed(at, i)) for i in members(at, base))
    return [Planted(null, None, null) for null in nulls]


def _seed(at: Instance, member: int) -> int:
    return 1_000_000 + 1000 * at.seed + member  # apart from the seeds of null draws


def planted(at: Instance, member: int, core: DeltaLike, base: Base) -> Planted:
    """The trained dW with its decoys, as the docstring of the module lists them."""
    seed = _seed(at, member)
    if at.plant in FRAMED:
        random = {n: like(w, w.shape, n, seed) for n, w in core.items()}
        decoys = match_norm(drop(random, frame(at, base)), core)
    elif at.plant == "base-band":
        others = [b for b in BANDS if f"base_{b}" != at.truth]
        decoys = {n: in_blocks(w, base.svds[n], others, n, seed) for n, w in core.items()}
    else:
        of = int(at.plant != "one-module")  # twins share the module, else the layer
        twins = {slices_of(n)[of]: w for n, w in core.items()}
        rest = {n: w.shape for n, w in base.weights.items() if n not in core}
        decoys = {n: like(twins[slices_of(n)[of]], s, n, seed) for n, s in rest.items()}
    if at.plant == "own-band":
        decoys = {**decoys, **{n: above(w, n, seed) for n, w in core.items()}}
    return Planted(core, decoys, add(core, decoys))


def like(w: Tensor, shape: Sequence[int], name: str, seed: int) -> Tensor:
    """Random directions in `shape` with w's singular values, as many as fit, and w's norm."""
    S, W = svd(w).S[: min(shape)], w.new_zeros(*shape)
    W.diagonal()[: len(S)] = S
    return match_norm(spectrum_null({name: W}, seed), {name: w})[name]


def in_blocks(w: Tensor, of: SVD, bands: Sequence[str], name: str, seed: int) -> Tensor:
    """sum_b U_b R_b V_b^T with R_b = like(w)."""
    out = torch.zeros_like(w)
    for band in bands:
        U, Vt = (t.to(w.dtype) for t in block(of, band))
        out = out + U @ like(w, (U.shape[1], len(Vt)), f"{name}/{band}", seed) @ Vt
    return out


def above(w: Tensor, name: str, seed: int) -> Tensor:
    """One random direction outside w's spaces for each of w's own, all at ON_TOP times its s_1."""
    U, S, Vt = svd(w)
    R = gaussian(w.shape, w, stream(seed, f"under/{name}"))
    R = R - U @ (U.T @ R)
    R = svd(R - (R @ Vt.T) @ Vt)
    return ON_TOP * S[0] * R.U[:, : len(S)] @ R.Vt[: len(S)]
