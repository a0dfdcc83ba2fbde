"""Planted truths: adapters that steer, and whose effect lies where they were made to have it.

Plants are trained as LoRA pairs, dW = pos - neg, in the recipe's band of layers, up to the last
step of the recipe: pos and neg of its rank r give dW rank 2 r at most. Those with `members` are the
families of T6's rules; T7's and T8's look at the first member:
    shared-core       o_proj and down_proj; B is frozen to one Haar frame of r directions per layer,
                      common to all members, and A is trained from 0
    divergent-basins  the same with a frame per member, orthogonal to those of the others
    crossed-core      the frame of a shared core, which every second member writes by o_proj alone
                      and the others by down_proj alone: only both stacked show it to all
    one-layer         all modules of one layer: the next of the band with every seed
    one-module        one module in all layers: the next of its slices with every seed
    base-band         U_b U_b^T dW V_b V_b^T, b a band of the base weight's singular directions: the
                      next of its slices with every seed; A and B are projected after every step
    own-band          the one-layer dW of the seed with its decoys, under larger ones: its upper
                      half then lies in the middle band of dW's own singular directions
    nothing           spectrum_null of the one-layer dW of the seed with decoys, drawn per member
Decoys (decoys.py) are added to dW, so that no slice stands out by its norm. A plant is one entry of
PLANTS: what it trains, under which constraint, beside which decoys, and which claims it makes true.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from peft import PeftModel

from wscore import SVD, Basis, DeltaLike, add, drop, spectrum_null, stream, writes_residual
from wscore.null import haar
from wscore.sites import site
from wsrun.lenses import decoys
from wsrun.lenses.coordinates import DISJOINT
from wsrun.lenses.decoys import block, slices_of
from wsrun.lenses.weights import Base


class Instance(NamedTuple):
    """One plant of one seed, and the slice it was put in, as the lenses name slices."""

    plant: str
    seed: int
    truth: str | None

    def member(self, i: int) -> str:
        return f"{self.plant}-s{self.seed}-m{i}"

    def random_seed(self, member: int) -> int:
        """Of a member's decoys, apart from the seeds of null draws."""
        return 1_000_000 + 1000 * self.seed + member


class Planted(NamedTuple):
    """A member's dW: what was trained, the random deltas beside it, and their sum."""

    core: DeltaLike
    decoys: DeltaLike | None
    whole: DeltaLike


Constraint = Callable[[PeftModel], Callable[[], None] | None]


@dataclass(frozen=True)
class Plant:
    """How adapters are made to have their effect in one place, and what is then true."""

    true: tuple[str, ...] = ()
    """the claims that are true of it; where there are none, all are false"""
    false: tuple[str, ...] = ()
    """claims that are not true of it; whether others are is unknown"""
    several: bool = False
    """whether it has members, else it is one adapter"""
    apart: bool = False
    """whether each member has a frame of its own, else all have one"""
    slices: Callable[[Base], Sequence[str | None]] = lambda base: (None,)
    """where it is put, by seed in turn"""
    rates: Mapping[str | None, float] = field(default_factory=lambda: {None: 1.0})
    """slice, None for any other -> learning rate in units of the recipe's: every plant steers"""
    targets: Callable[[Instance, Base, int], list[str]] = lambda at, base, i: in_slice(at, base)
    """the parameters that a member trains"""
    constraint: Callable[[Instance, Base, int], Constraint | None] = lambda at, base, i: None
    """the `prepare` of train_adapter that holds it; None where its targets are enough"""
    decoys: Callable[[Instance, Base, int, DeltaLike], DeltaLike] = lambda at, base, i, core: core
    """random deltas beside what a member was trained to"""
    source: str | None = None
    """the plant whose adapters it is made of; None for its own"""
    trained: bool = True
    """whether the adapters themselves are used, not random deltas with their spectrum"""

    def rate(self, truth: str | None) -> float:
        return self.rates[truth if truth in self.rates else None]

    def makes(self, claim: str) -> bool | None:
        """Whether a claim is true of it; None where that is unknown."""
        false = not self.true or claim in self.false
        return True if claim in self.true else False if false else None


def instance(plant: str, seed: int, base: Base) -> Instance:
    """A plant of a seed."""
    slices = PLANTS[plant].slices(base)
    return Instance(plant, seed, slices[seed % len(slices)])


def source(at: Instance, base: Base) -> Instance:
    """The instance whose adapters are used."""
    return instance(PLANTS[at.plant].source or at.plant, at.seed, base)


def members(at: Instance, base: Base) -> range:
    return range(base.members if PLANTS[at.plant].several else 1)


def plant(at: Instance, cores: Sequence[DeltaLike], base: Base) -> list[Planted]:
    """The members of an instance, from what those of its source were trained to."""
    if PLANTS[at.plant].trained:
        return [with_decoys(at, i, core, base) for i, core in enumerate(cores)]
    whole = with_decoys(source(at, base), 0, cores[0], base).whole
    nulls = (spectrum_null(whole, 2 * at.random_seed(i)) for i in members(at, base))
    return [Planted(null, None, null) for null in nulls]


def with_decoys(at: Instance, member: int, core: DeltaLike, base: Base) -> Planted:
    beside = PLANTS[at.plant].decoys(at, base, member, core)
    return Planted(core, beside, add(core, beside, disjoint=True))


# Where a plant is trained


def in_slice(at: Instance, base: Base) -> list[str]:
    return [n for n in base.weights if at.truth in slices_of(n)]


def writing(at: Instance, base: Base, member: int) -> list[str]:
    return [n for n in base.weights if writes_residual(site(n))]


def one_writer(at: Instance, base: Base, member: int) -> list[str]:
    module = ("o_proj", "down_proj")[member % 2]
    return [n for n in base.weights if site(n).proj == module]


def layers(base: Base) -> list[str]:
    return [f"layer_{n}" for n in sorted({site(name).layer for name in base.weights})]


# One frame of output directions


def frame(at: Instance, base: Base, member: int | None = None) -> Basis:
    """A member's output directions, one Haar frame per layer; None: those of all members."""
    lo, hi = (0, base.members) if member is None else (member, member + 1)
    lo, hi = (lo, hi) if PLANTS[at.plant].apart else (0, 1)
    out, r = {}, base.recipe.rank
    for name in writing(at, base, 0):
        w, draw = base.weights[name], stream(at.seed, f"{at.plant}/layer {site(name).layer}")
        out[name] = haar(len(w), r * base.members, w, draw)[:, r * lo : r * hi]
    return out


def in_frame(at: Instance, base: Base, member: int) -> Constraint:
    return partial(freeze_outputs, frame(at, base, member))


def freeze_outputs(directions: Basis, model: PeftModel) -> None:
    """B = directions, frozen; A = 0, trained."""
    for name, A, B in factors(model):
        A.data.zero_()
        B.data.copy_(directions[name])
        B.requires_grad_(False)


def outside_frames(at: Instance, base: Base, member: int, core: DeltaLike) -> DeltaLike:
    return decoys.outside(core, frame(at, base), at.random_seed(member))


def crossed(at: Instance, base: Base, member: int, core: DeltaLike) -> DeltaLike:
    """Decoys outside the frame in what the member trains, and in the layer's other writer."""
    other = {n: base.weights[n] for n in writing(at, base, member)}
    beside = drop(decoys.twins(core, other, 0, at.random_seed(member)), frame(at, base))
    return {**outside_frames(at, base, member, core), **beside}


# One band of the base weight


def in_band(at: Instance, base: Base, member: int) -> Constraint:
    return partial(confine, base.svds, str(at.truth).removeprefix("base_"))


def confine(svds: Mapping[str, SVD], band: str, model: PeftModel) -> Callable[[], None]:
    """B <- U_b U_b^T B and A <- A V_b V_b^T, now and whenever the returned function is called."""
    bases_and_factors = [
        (*(t.to(B) for t in block(svds[name], band)), A, B) for name, A, B in factors(model)
    ]

    def project() -> None:
        for U, Vt, A, B in bases_and_factors:
            B.data.copy_(U @ (U.T @ B.data))
            A.data.copy_((A.data @ Vt.T) @ Vt)

    project()
    return project


def in_other_bands(at: Instance, base: Base, member: int, core: DeltaLike) -> DeltaLike:
    others = [b for b in DISJOINT if f"base_{b}" != at.truth]
    return decoys.other_bands(core, base.svds, others, at.random_seed(member))


# One layer, one module


def in_other_layers(at: Instance, base: Base, member: int, core: DeltaLike) -> DeltaLike:
    return decoys.twins(core, base.weights, 1, at.random_seed(member))


def in_other_modules(at: Instance, base: Base, member: int, core: DeltaLike) -> DeltaLike:
    return decoys.twins(core, base.weights, 0, at.random_seed(member))


def above_and_beside(at: Instance, base: Base, member: int, core: DeltaLike) -> DeltaLike:
    above = decoys.on_top(core, at.random_seed(member))
    return {**in_other_layers(at, base, member, core), **above}


def factors(model: PeftModel) -> Iterator[tuple[str, torch.nn.Parameter, torch.nn.Parameter]]:
    """(parameter name of the base, A [r, d_in], B [d_out, r]) of a LoRA model."""
    named = dict(model.named_parameters())
    for name, B in named.items():
        if ".lora_B." in name:
            of = name.removeprefix("base_model.model.").partition(".lora_B.")[0]
            yield f"{of}.weight", named[name.replace(".lora_B.", ".lora_A.")], B


FRAMED = Plant(
    several=True, rates={None: 3.0}, targets=writing, constraint=in_frame, decoys=outside_frames
)
PLANTS: dict[str, Plant] = {
    "shared-core": replace(
        FRAMED, true=("shared core", "stacked core"), false=("basin divergence",)
    ),
    "divergent-basins": replace(
        FRAMED, true=("basin divergence",), false=("shared core", "stacked core"), apart=True
    ),
    "crossed-core": replace(
        FRAMED, true=("stacked core",), false=("shared core",), targets=one_writer, decoys=crossed
    ),
    "one-layer": Plant(("layers",), slices=layers, decoys=in_other_layers),
    "one-module": Plant(
        ("modules",),
        slices=lambda base: ("down_proj", "up_proj", "gate_proj", "v_proj", "o_proj"),
        rates={None: 2.0},
        decoys=in_other_modules,
    ),
    "base-band": Plant(
        ("base bands",),
        slices=lambda base: ("base_top", "base_middle"),  # the bottom cannot outdo its decoys
        rates={"base_top": 1.0, "base_middle": 6.0},
        targets=lambda at, base, i: list(base.weights),
        constraint=in_band,
        decoys=in_other_bands,
    ),
    "own-band": Plant(
        ("own bands",),
        slices=lambda base: ("own_middle",),
        decoys=above_and_beside,
        source="one-layer",
    ),
    "nothing": Plant(several=True, source="one-layer", trained=False),
}
