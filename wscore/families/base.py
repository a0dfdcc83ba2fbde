"""What the families share: the registry, a checkpoint's tensors module by module, the refusals.

A family is one file that registers one `Family`. Nothing outside that file knows it by name.
Letters: d_out d_in weight shape, r rank, s scale, k blocks of size b, n butterfly factors.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from wscore.delta import Delta
from wscore.factored import Factors

Weight = Float[Tensor, "d_out d_in"]
FactorA = Float[Tensor, "r d_in"]
FactorB = Float[Tensor, "d_out r"]
Base = Mapping[str, Tensor]
Coordinates = dict[str, dict[str, Delta]]
"""coordinate system -> part -> delta; the parts of each system add up to dW"""

# Settings that change more than the targets' weights, or change them by another rule.
UNSUPPORTED = """
    modules_to_save bias lora_bias fan_in_fan_out trainable_token_indices layer_replication
    target_parameters alora_invocation_tokens arrow_config kasa_config monteclora_config
    velora_config use_qalora use_bdlora use_effective_conv2d""".split()


class Checkpoint(NamedTuple):
    """One pole: the tensors of adapter_model.safetensors and the adapter_config.json."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]


class Target(NamedTuple):
    """One adapted module: its checkpoint tensors by suffix, its base weight, both float64."""

    module: str
    tensors: dict[str, Tensor]
    weight: Weight
    config: Mapping[str, Any]

    def shape(self, suffix: str) -> list[int]:
        return list(self.take(suffix).shape) or [0]

    def take(self, suffix: str, *shape: int) -> Tensor:
        """The tensor of that suffix, of that shape if one is given."""
        have = f"{self.module} has {sorted(self.tensors)} and no {suffix}"
        check(suffix in self.tensors, f"{have}; save the adapter again with save_pretrained")
        tensor = self.tensors[suffix]
        check(
            not shape or tensor.shape == shape,
            f"{self.module}.{suffix} is {list(tensor.shape)}, but base weight "
            f"{list(self.weight.shape)} and config need {list(shape)}; give the base and config "
            "that it was trained with",
        )
        return tensor

    def blocks(self, b: int) -> int:
        """k with k b = d_in, 0 where there is none."""
        k, rest = divmod(self.weight.shape[1], max(b, 1))
        return 0 if rest else k

    def setting(self, name: str, patterns: str = "") -> Any:
        return setting(self.config, name, patterns, self.module)


@dataclass(frozen=True)
class Family:
    """An adapter family: which checkpoints are its own, and what they do to a weight.

    The functions read one `Target` and work in its float64. `factors` is for families whose change
    is L R of low rank, in `columns_per_term` columns of L for each of its r terms. `bias` is what a
    module's bias changes by, None where it stays. `coordinates` splits dW of two poles along the
    family's own parameters; a family without them has none.
    """

    name: str
    peft_type: str
    parameterization: str
    """what its parameters are, in words"""
    tensors: tuple[str, ...]
    """what it stores per module: checkpoint keys end in one of these"""
    delta: Callable[[Target], Weight]
    """merged - ORIGINAL base"""
    factors: Callable[[Target], Factors] | None = None
    columns_per_term: int = 1
    bias: Callable[[Target, Tensor], Tensor | None] | None = None
    coordinates: Callable[[Checkpoint, Checkpoint, Base], Coordinates] | None = None
    fields: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """config field -> values it has in this family, where peft_type alone does not tell"""

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this config is one of the family's."""
        return config.get("peft_type") == self.peft_type and all(
            config.get(name) in values for name, values in self.fields.items()
        )


FAMILIES: dict[str, Family] = {}
"""name -> family, in the order in which wscore/families/__init__.py imports them"""


def register(family: Family) -> Family:
    FAMILIES[family.name] = family
    return family


def check(ok: bool, message: str) -> None:
    if not ok:
        refuse(message)


def refuse(message: str) -> NoReturn:
    raise ValueError(f"merge_adapter: {message}")


def setting(config: Mapping[str, Any], name: str, patterns: str = "", module: str = "") -> Any:
    """A config field; as in PEFT, the first pattern that ends the module's name overrides it."""
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    found = f"the config has no {name!r}, only {sorted(config)}"
    check(config.get(name) is not None, f"{found}; pass the whole adapter_config.json")
    return config[name]


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint's config; anything that is exactly none of them is refused."""
    kind = setting(config, "peft_type")
    relatives = [f for f in FAMILIES.values() if f.peft_type == kind]
    known = ", ".join(dict.fromkeys(f"{f.peft_type}" for f in FAMILIES.values()))
    check(bool(relatives), f"the config has peft_type {kind!r}; train one of {known}")
    for found in relatives:
        if found.matches(config):
            return found
    fields = {name for f in relatives for name in f.fields}
    asked = " with ".join(f"{name} {config.get(name)!r}" for name in sorted(fields))
    rules = "; ".join(f"{f.name} with {dict(f.fields)}" for f in relatives)
    refuse(
        f"the config has {asked}, which may change the base weights in ways that the checkpoint "
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
        found = f"the config sets {name} to {config.get(name)!r}, not a change of linear weights"
        check(config.get(name) in (None, False, "none", [], {}), f"{found}; train without it")
    for module, stored in by_module(adapter, family, set(base)).items():
        key, weight = f"{module}.weight", base[f"{module}.weight"]
        check(
            weight.ndim == 2 and weight.is_floating_point() and weight.element_size() > 1,
            f"{key} of the base is {weight.dtype} {list(weight.shape)}; pass the unquantised "
            "[d_out, d_in] weight of a linear layer",
        )
        tensors = {suffix: t.to(weight.device, torch.float64) for suffix, t in stored.items()}
        yield key, Target(module, tensors, weight.to(torch.float64), config)
