"""A checkpoint read module by module, and the refusals of what no family reads exactly."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from wscore.families.base import FAMILIES, Base, Family, Target, check, refuse, setting

# Settings that change more than the targets' weights, or change them by another rule.
UNSUPPORTED = """
    modules_to_save bias lora_bias fan_in_fan_out trainable_token_indices layer_replication
    target_parameters alora_invocation_tokens arrow_config kasa_config monteclora_config
    velora_config use_qalora use_bdlora""".split()


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint's config; anything that is exactly none of them is refused."""
    kind = setting(config, "peft_type")
    relatives = [f for f in FAMILIES.values() if f.peft_type == kind]
    known = ", ".join(dict.fromkeys(f"{f.peft_type}" for f in FAMILIES.values()))
    check(bool(relatives), f"the config has peft_type {kind!r}; train one of {known}")
    for family in relatives:
        if family.matches(config):
            return family
    fields = {name for f in relatives for name in f.fields}
    values = " with ".join(f"{name} {config.get(name)!r}" for name in sorted(fields))
    rules = "; ".join(f"{f.name} with {dict(f.fields)}" for f in relatives)
    refuse(
        f"the config has {values}, which may change the base weights in ways that the checkpoint "
        f"does not keep; known are {rules}"
    )


def by_module(
    adapter: Mapping[str, Tensor], family: Family, names: set[str]
) -> dict[str, dict[str, Tensor]]:
    """{module: {suffix: tensor}}: every adapter key has its place, every module is in `names`."""
    modules: dict[str, dict[str, Tensor]] = {}
    unread = []
    for key, tensor in adapter.items():
        check(bool(tensor.isfinite().all()), f"{key} holds NaN or inf; train the adapter again")
        name = key.removeprefix("base_model.model.")
        suffix = next((x for x in family.tensors if name.endswith(f".{x}")), None)
        if suffix is None:
            unread.append(key)
        else:
            modules.setdefault(name.removesuffix(f".{suffix}"), {})[suffix] = tensor
    check(
        not unread,
        f"no {family.name} rule reads {unread[:3]} ({len(unread)} of {len(adapter)} adapter "
        "tensors); train only linear weights (no embedding, bias or saved module), use "
        "save_pretrained",
    )
    check(bool(modules), "the adapter has no tensors; pass those of adapter_model.safetensors")
    missing = [f"{module}.weight" for module in modules if f"{module}.weight" not in names]
    check(
        not missing,
        f"the adapter targets {missing[:3]} ({len(missing)} such), the base has names like "
        f"{sorted(names)[:3]}; pass the base it was trained on, named as in its state_dict()",
    )
    return modules


def targets(
    adapter: Mapping[str, Tensor], config: Mapping[str, Any], base: Base
) -> Iterator[tuple[str, Target]]:
    """(parameter name, target) of each adapted module, once adapter, config and base are in order.

    Whatever is not exactly a change of target weights by one known rule raises ValueError.
    """
    family = family_of(config)
    for name in UNSUPPORTED:
        message = f"the config sets {name} to {config.get(name)!r}, not a change of linear weights"
        check(config.get(name) in (None, False, "none", [], {}), f"{message}; train without it")
    for module, stored in by_module(adapter, family, set(base)).items():
        key, weight = f"{module}.weight", base[f"{module}.weight"]
        check(
            weight.ndim == 2 and weight.is_floating_point() and weight.element_size() > 1,
            f"{key} of the base is {weight.dtype} {list(weight.shape)}; pass the unquantised "
            "[d_out, d_in] weight of a linear layer",
        )
        tensors = {suffix: t.to(weight.device, torch.float64) for suffix, t in stored.items()}
        yield key, Target(module, tensors, weight.to(torch.float64), config)
