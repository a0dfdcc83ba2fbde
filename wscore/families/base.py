"""What a family is, the registry of families, and one adapted module as a family reads it.

A family is one file that registers one `Family`. Nothing outside that file knows it by name.
Letters: d_out d_in weight shape, r rank, s scale, k blocks of size b, n butterfly factors.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from jaxtyping import Float
from torch import Tensor

from wscore.delta import Delta
from wscore.factored import Factors
from wscore.files import reason

Weight = Float[Tensor, "d_out d_in"]
FactorA = Float[Tensor, "r d_in"]
FactorB = Float[Tensor, "d_out r"]
Base = Mapping[str, Tensor]
Coordinates = dict[str, dict[str, Delta]]
"""coordinate system -> part -> delta; the parts of each system add up to dW"""


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
    turned: bool = False
    """whether the model stores the weight as [d_in, d_out]; here it is [d_out, d_in]"""

    def stored(self, change: Tensor) -> Tensor:
        """A change of the weight as the model stores it."""
        return change.T.contiguous() if self.turned else change

    def stored_factors(self, change: Factors) -> Factors:
        """`stored` of L R."""
        L, R = change
        return Factors(R.T.contiguous(), L.T.contiguous()) if self.turned else change

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
    sizes: Callable[[Mapping[str, Tensor]], tuple[int | None, int | None]] | None = None
    """(d_out, d_in) as a module's tensors say, for families that PEFT also puts on Conv1D"""
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


SINCE_0_15 = {"peft_version", "trainable_token_indices"}
"""fields that no PEFT before 0.15 writes; in those a | of a pattern had no brackets around it"""


def check(ok: bool, message: str) -> None:
    if not ok:
        refuse(message)


def refuse(message: str) -> NoReturn:
    raise ValueError(reason(f"merge_adapter: {message}", 500))


def shown(value: Any, letters: int = 80) -> str:
    """How messages show a value from a file: its repr in one printable line."""
    return reason(repr(value), letters)


def setting(config: Mapping[str, Any], name: str, patterns: str = "", module: str = "") -> Any:
    """A config field; as in PEFT, the first pattern that ends the module's name overrides it."""
    values = config.get(patterns) or {}
    fits = (value for key, value in values.items() if re.match(rf"(.*\.)?({key})$", module))
    found = next(fits, config.get(name))
    message = f"the config has no {name!r}, only {shown(sorted(map(str, config)))}"
    check(found is not None, f"{message}; pass the whole adapter_config.json")
    if values and not SINCE_0_15 & config.keys():
        old = (value for key, value in values.items() if re.match(rf".*\.{key}$", module))
        check(
            next(old, values.get(module, config.get(name))) == found,
            f"{patterns} {shown(values)} gives {module} another {name} in PEFT before 0.15, and "
            "the config does not tell which PEFT wrote it; give one pattern for each module",
        )
    return found
