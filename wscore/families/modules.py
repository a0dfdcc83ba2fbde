"""Which modules an adapter changes: PEFT's own rule, from the fields of adapter_config.json.

What a checkpoint holds beside them PEFT drops without a word when it loads it, and what it lacks
PEFT draws anew; both are refused here, by name.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from wscore.families.base import Base, check, shown

ALL_LINEAR = "all-linear"
EMBEDDINGS = "embed_tokens lm_head wte wpe embed_in embed_out word_embeddings embeddings".split()
"""the matrices outside linear layers, and the output head, which "all-linear" leaves out"""
NUMBERED = re.compile(r"\.\d+\.")  # in a layer, where no weights are tied


def is_target(config: Mapping[str, Any], module: str) -> bool:
    """Whether PEFT gives the module an adapter. config: as from `read_fields`, with target_modules.

    A text is a pattern for the whole name, a list holds ends of names, which layers_to_transform
    narrows; exclude_modules and modules_to_save are left out.
    """
    if _listed(config.get("exclude_modules"), module):
        return False
    saved = config.get("modules_to_save") or ()
    if any(re.match(rf"(^|.*\.){m}($|\..*)", module) for m in saved):
        return False
    wanted = config["target_modules"]
    if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
        return module.rpartition(".")[2] not in EMBEDDINGS
    if isinstance(wanted, str) or module in wanted:
        return _listed(wanted, module)
    return _listed(wanted, module) and _in_layers(config, module)


def _listed(names: str | list[str] | None, module: str) -> bool:
    """Whether a pattern fits the whole name, or one of a list ends it."""
    if isinstance(names, str):
        return bool(names) and re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def _in_layers(config: Mapping[str, Any], module: str) -> bool:
    """Whether the first number of the name, after layers_pattern, is in layers_to_transform."""
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or ()
    if layers is None or layers == []:
        return True
    patterns = [patterns] if isinstance(patterns, str) else patterns
    frames = [rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\." for p in patterns]
    tries = (re.match(frame, module) for frame in frames or [r".*?\.[^.]*\.(?P<idx>\d+)\."])
    found = next((match for match in tries if match), None)
    return found is not None and int(found["idx"]) in (
        layers if isinstance(layers, list) else [layers]
    )


def check_targets(config: Mapping[str, Any], adapted: Iterable[str]) -> None:
    """Raises ValueError for adapted modules that are no targets. No target_modules: all are."""
    if config.get("target_modules") is None:
        return
    wanted, layers = config["target_modules"], config.get("layers_to_transform")
    fields = [name for name in ("layers_to_transform", "layers_pattern") if config.get(name)]
    check(
        not (isinstance(wanted, str) and (fields or layers == 0)),
        f"the config has target_modules as a pattern and {fields or ['layers_to_transform']} too; "
        "PEFT takes them with a list only; save the adapter again",
    )
    check(
        layers is not None or not config.get("layers_pattern"),
        "the config has layers_pattern without layers_to_transform; save the adapter again",
    )
    outside = [module for module in adapted if not is_target(config, module)]
    check(
        not outside,
        f"the adapter has tensors for {shown(outside[:3], 150)} ({len(outside)} such), which "
        f"target_modules {shown(wanted)} and the fields that narrow it leave out, so PEFT would "
        "ignore them; save the adapter again, or correct adapter_config.json",
    )


def check_complete(config: Mapping[str, Any], adapted: Iterable[str], base: Base) -> None:
    """Raises ValueError where a module of the base is a target and has no tensors."""
    if config.get("target_modules") is None:
        return
    parents = {name.rpartition(".")[0] for name in base}
    whole = {".".join(p[:i]) for p in (x.split(".") for x in parents) for i in range(1, len(p) + 1)}
    lacking = sorted(m for m in whole - {*adapted, ""} if is_target(config, m))
    if str(config["target_modules"]).lower() == ALL_LINEAR:
        lacking = [m for m in lacking if f"{m}.weight" in base and base[f"{m}.weight"].ndim == 2]
    check(
        not lacking,
        f"target_modules {shown(config['target_modules'])} names {shown(lacking[:3], 150)} "
        f"({len(lacking)} such) of the base, for which the adapter has no tensors, so PEFT would "
        "draw them anew; save the adapter again with save_pretrained",
    )


def check_untied(name: str, base: Base) -> None:
    """Raises ValueError where the weight is an embedding that is also the head, or the reverse.

    An adapter on one of them unties the two, and one change of weights cannot. Equal values count:
    files of a tied model may hold both.
    """
    if NUMBERED.search(name):
        return
    W = base[name]
    others = (x for x in base if x != name and not NUMBERED.search(x) and x.endswith(".weight"))
    tied = [x for x in others if _same(W, base[x])]
    check(
        not tied,
        f"the adapter changes {name!r}, which is tied to {shown(tied[:2], 150)} in the base, and a "
        "change of one of them alone is no change of the model's weights; train without it, or "
        "untie the model",
    )


def _same(x: Tensor, y: Tensor) -> bool:
    if x.shape != y.shape or x.ndim < 2:
        return False
    return (
        x is y
        or (x.data_ptr() == y.data_ptr() != 0)
        or (x.dtype == y.dtype and x.device == y.device and torch.equal(x, y))
    )
