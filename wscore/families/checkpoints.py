"""A checkpoint read module by module, and the refusals of what no family reads exactly."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from wscore.families.base import FAMILIES, Base, Family, Target, check, refuse, setting, shown
from wscore.families.fields import read_fields
from wscore.families.modules import check_targets, check_untied
from wscore.families.saved import base_copies, saved_names
from wscore.files import reason

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PREFIX = "base_model.model."
CONVERTIBLE = ("pissa", "olora", "corda", "lora_ga")
"""initialisations on a changed base that PEFT can take back as it saves"""


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint's config; anything that is exactly none of them is refused."""
    kind = setting(config, "peft_type")
    relatives = [f for f in FAMILIES.values() if f.peft_type == kind]
    known = ", ".join(dict.fromkeys(f"{f.peft_type}" for f in FAMILIES.values()))
    check(bool(relatives), f"the config has peft_type {shown(kind)}; train one of {known}")
    for family in relatives:
        if family.matches(config):
            return family
    fields = {name for f in relatives for name in f.fields}
    values = " with ".join(f"{name} {shown(config.get(name), 40)}" for name in sorted(fields))
    refuse(
        f"the config has {values}, which may change the base weights in ways that the checkpoint "
        "does not keep; let PEFT convert it to a plain LoRA when it is saved: "
        "save_pretrained(..., path_initial_model_for_weight_conversion=<the initial adapter>)"
        if str(config.get("init_lora_weights")).startswith(CONVERTIBLE)
        else f"the config has {values}, and its base is no longer the original; merge it with PEFT "
        "and read the two models"
        if kind == "LORA"
        else f"the config has {values}, which is no change of linear weights; train without it"
    )


def by_module(
    adapter: Mapping[str, Tensor], family: Family, names: set[str], whole: Collection[str] = ()
) -> dict[str, dict[str, Tensor]]:
    """{module: {suffix: tensor}}: every adapter key has its place, every module is in `names`.

    `whole` names the keys, without prefix, of weights that the checkpoint holds whole: left out.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    unread = []
    for key, tensor in adapter.items():
        name = key.removeprefix(PREFIX)
        suffix = next((x for x in family.tensors if name.endswith(f".{x}")), None)
        if suffix is not None:
            modules.setdefault(name.removesuffix(f".{suffix}"), {})[suffix] = tensor
        elif name not in whole:
            unread.append(key)
    check(
        not unread,
        f"no {family.name} rule reads {shown(unread[:3], 200)} ({len(unread)} of {len(adapter)} "
        "adapter tensors); train only linear weights (no embedding or bias; whole modules by "
        "modules_to_save), use save_pretrained",
    )
    check(bool(modules), "the adapter has no tensors; pass those of adapter_model.safetensors")
    missing = [f"{module}.weight" for module in modules if f"{module}.weight" not in names]
    check(
        not missing,
        f"the adapter targets {shown(missing[:3], 200)} ({len(missing)} such), the base has names "
        f"like {shown(sorted(names)[:3], 150)}; pass the base it was trained on, named as in its "
        "state_dict()",
    )
    return modules


def check_tensors(adapter: Mapping[str, Tensor]) -> None:
    """Raises ValueError for a key that is there twice, and for values that are no finite floats."""
    twice = [key for key in adapter if f"{PREFIX}{key}" in adapter]
    check(
        not twice,
        f"{shown(twice[:3], 200)} are there twice, with and without {PREFIX!r}; save the adapter "
        "again with save_pretrained",
    )
    for key, tensor in adapter.items():
        check(
            tensor.dtype in FLOATS,
            f"{reason(key)} is {tensor.dtype}, and a trained tensor is float16, bfloat16, "
            "float32 or float64; save the adapter again with save_pretrained",
        )
        finite = bool(tensor.isfinite().all())
        check(finite, f"{reason(key)} holds NaN or inf; train the adapter again")


def targets(
    adapter: Mapping[str, Tensor], config: Mapping[str, Any], base: Base
) -> Iterator[tuple[str, Target]]:
    """(parameter name, target) of each adapted module, once adapter, config and base are in order.

    Whatever is not exactly a change of target weights by one known rule raises ValueError.
    """
    family = family_of(config)
    config = read_fields(config)
    check_tensors(adapter)
    whole = {*saved_names(config, base), *base_copies(adapter, config, base)}
    modules = by_module(adapter, family, set(base), whole)
    check_targets(config, modules)
    layouts = Layouts(family, config)
    for module, stored in modules.items():
        key, weight = f"{module}.weight", base[f"{module}.weight"]
        check(
            weight.ndim == 2 and weight.is_floating_point() and weight.element_size() > 1,
            f"{key} of the base is {weight.dtype} {list(weight.shape)}; pass the unquantised "
            "[d_out, d_in] weight of a linear layer",
        )
        check_untied(key, base)
        tensors = {suffix: t.to(weight.device, torch.float64) for suffix, t in stored.items()}
        turned = layouts.turned(module, stored, weight)
        W = weight.to(torch.float64)
        yield key, Target(module, tensors, W.T if turned else W, config, turned)


class Layouts:
    """Whether weights are stored as [d_in, d_out], as in the Conv1D of GPT-2 (fan_in_fan_out).

    The tensors' own shapes say so, and for square weights the config, unless shapes of other
    modules contradict it: models may hold both.
    """

    def __init__(self, family: Family, config: Mapping[str, Any]):
        self.sizes, self.stated = family.sizes, bool(config.get("fan_in_fan_out"))
        self.square, self.other = "", ""

    def turned(self, module: str, stored: Mapping[str, Tensor], weight: Tensor) -> bool:
        if self.sizes is None:
            return False
        sides = list(zip(self.sizes(stored), weight.shape, weight.shape[::-1], strict=True))
        fits, turned = (all(x[0] in (None, x[i]) for x in sides) for i in (1, 2))
        if fits and turned:
            self.square = module
        elif fits != turned and turned != self.stated:
            self.other = module
        check(
            not (self.square and self.other),
            f"the config has fan_in_fan_out {self.stated}, which {self.other} contradicts, so how "
            f"the square weight of {self.square} is stored is unknown; adapt layers of one kind",
        )
        return self.stated if fits == turned else turned
