"""Modules that an adapter's checkpoint holds whole: tau = saved - base, in PEFT's modules_to_save.

The usual ones are the embedding and the output head, of models where the two are not tied.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from wscore.families.base import Base, check, shown
from wscore.families.modules import check_untied
from wscore.files import reason


def saves(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint with this config may hold whole modules."""
    return bool(config.get("modules_to_save"))


def saved_names(config: Mapping[str, Any], base: Base) -> list[str]:
    """The base's parameters inside modules that modules_to_save names; as in PEFT, by their end."""
    ends = tuple(config.get("modules_to_save") or ())
    return [name for name in base if ends and _inside(name, ends)]


def _inside(name: str, ends: tuple[str, ...]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:i]).endswith(ends) for i in range(1, len(parts)))


def saved_changes(
    adapter: Mapping[str, Tensor], config: Mapping[str, Any], base: Base
) -> Iterator[tuple[str, Tensor]]:
    """(name, saved - base) of each parameter of a saved module, in float64."""
    keys = {key.removeprefix("base_model.model."): key for key in adapter}
    for name in saved_names(config, base):
        check(
            name in keys,
            f"modules_to_save {shown(config['modules_to_save'])} names {name!r}, which the adapter "
            "does not hold; save it again with save_pretrained",
        )
        saved, weight = adapter[keys[name]], base[name]
        check(
            saved.shape == weight.shape and saved.ndim in (1, 2) and weight.is_floating_point(),
            f"{keys[name]} is {list(saved.shape)}, and the base has {list(weight.shape)} "
            f"{weight.dtype}; give the base that it was trained on, of the same vocabulary",
        )
        check_untied(name, base)
        yield name, saved.to(weight.device, torch.float64) - weight.to(torch.float64)


def base_copies(
    adapter: Mapping[str, Tensor], config: Mapping[str, Any], base: Base
) -> dict[str, str]:
    """{key without its prefix: parameter} of the base's own weights that a checkpoint repeats.

    PEFT adds them where embeddings are targets or the vocabulary was resized, and puts them in the
    base's place; ValueError where they are not what is there.
    """
    saved = {*saved_names(config, base)}
    copies = {}
    for key, tensor in adapter.items():
        name = key.removeprefix("base_model.model.")
        parameter = name.replace(".base_layer.", ".")
        if parameter in base and name not in saved:
            weight, copies[name] = base[parameter], parameter
            check(
                tensor.shape == weight.shape
                and torch.equal(tensor.to(weight.device, weight.dtype), weight),
                f"{reason(key)} would take the place of the base's {parameter!r}, whose values or "
                "size are others; give the base that it was trained on, or name the module in "
                "modules_to_save",
            )
    return copies
