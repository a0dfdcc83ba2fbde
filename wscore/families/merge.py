"""Adapter checkpoint -> weight change: reads what PEFT writes, or refuses it.

Works in float64 with the formula of the checkpoint's family, and returns fp32.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wscore.delta import Delta
from wscore.factored import Factored, Factors
from wscore.families.base import FAMILIES, Base, Checkpoint, Coordinates, check, refuse, shown
from wscore.families.checkpoints import family_of, targets
from wscore.families.fields import read_fields
from wscore.families.modules import check_complete
from wscore.families.saved import saved_changes, saves
from wscore.families.splits import one_family


def family(config: Mapping[str, Any]) -> str:
    """The name of a checkpoint's family, a key of `FAMILIES`; anything else is refused."""
    return family_of(config).name


@torch.no_grad()
def merge_adapter(adapter: Mapping[str, Tensor], config: Mapping[str, Any], base: Base) -> Delta:
    """{name: merged - original} for every parameter the adapter targets, zero changes included.

    `adapter` and `config` are adapter_model.safetensors and adapter_config.json of a PEFT
    checkpoint; PiSSA may store its initial factors as `<module>.lora_A_init.weight` and
    `<module>.lora_B_init.weight`. `base` maps parameter names to ORIGINAL weights of any float
    dtype; it is indexed by target, one tensor at a time, and the delta lies on its device. Modules
    in modules_to_save are among the names. Whatever is not exactly a change of weights by one known
    rule raises ValueError, and so do targets of the config that have no tensors.
    """
    delta = merge_modules(adapter, config, base)
    _check_complete(config, base, delta)
    for key, change in saved_changes(adapter, config, base):
        delta[key] = _finite(key, change.float())
    return delta


@torch.no_grad()
def merge_modules(adapter: Mapping[str, Tensor], config: Mapping[str, Any], base: Base) -> Delta:
    """`merge_adapter` of the modules that have tensors, be they all targets or some of them."""
    rule, names, delta = family_of(config), set(base), {}
    for key, target in targets(adapter, config, base):
        delta[key] = _finite(key, target.stored(rule.delta(target).float()))
        bias = f"{target.module}.bias"
        if rule.bias and bias in names:
            change = rule.bias(target, base[bias].to(torch.float64))
            delta |= {} if change is None else {bias: change.float()}
    return delta


def _finite(key: str, change: Tensor) -> Tensor:
    check(bool(change.isfinite().all()), f"{key} changes by NaN or inf; check the base")
    return change


def _check_complete(config: Mapping[str, Any], base: Base, delta: Mapping[str, Any]) -> None:
    check_complete(read_fields(config), [name.rpartition(".")[0] for name in delta], base)


@torch.no_grad()
def merge_adapter_factored(
    adapter: Mapping[str, Tensor], config: Mapping[str, Any], base: Base
) -> Factored:
    """`merge_adapter` of a family that has factors, kept as fp32 factors of rank r (pissa 2 r).

    Its entries are those of `merge_adapter` within 1e-6 of their norm, which is what rounding the
    factors instead of the product costs. Raises ValueError for what changes at full rank: other
    families, and whole modules in modules_to_save.
    """
    rule, factors = family_of(config), {}
    if rule.factors is None:
        known = ", ".join(f.name for f in FAMILIES.values() if f.factors)
        refuse(f"a {rule.name} change has no factors; use one of {known}, or merge_adapter")
    if saves(config):
        kept = shown(config["modules_to_save"])
        refuse(f"modules_to_save {kept} are changed at full rank, without factors; use "
               "merge_adapter")  # fmt: skip
    for key, target in targets(adapter, config, base):
        change = target.stored_factors(rule.factors(target))
        factors[key] = Factors(*(x.float() for x in change))
        finite = all(bool(x.isfinite().all()) for x in factors[key])
        check(finite, f"{key} changes by NaN or inf; check the base")
    _check_complete(config, base, factors)
    return Factored(factors)


def family_coordinates(
    pos_tensors: Mapping[str, Tensor],
    pos_config: Mapping[str, Any],
    neg_tensors: Mapping[str, Tensor],
    neg_config: Mapping[str, Any],
    base: Base,
) -> Coordinates:
    """{coordinate system: {part: delta}} of the pair's family; the parts of each add up to dW.

    lora, pissa  rank                 component_0, component_1, ..
    delora       rank, and
                 lambda_direction     lambda, direction
    dora         magnitude_direction  magnitude, direction
    oft, boft    rotation             rotation, rest, within the adapter's own blocks
    ia3          gates                attention, mlp

    Families without coordinates of their own give {}. Tensors, configs and base are those of
    `merge_adapter`. Raises ValueError as it does, and where the poles are of two families or touch
    different targets.
    """
    rule = one_family(pos_config, neg_config)
    poles = Checkpoint(pos_tensors, pos_config), Checkpoint(neg_tensors, neg_config)
    return rule.coordinates(*poles, base) if rule.coordinates else {}
