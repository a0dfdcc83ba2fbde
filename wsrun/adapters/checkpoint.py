"""A PEFT checkpoint folder, read from safetensors and JSON alone: no pickle, no code, no hub."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wscore.families.base import FAMILIES
from wscore.families.checkpoints import PREFIX
from wscore.files import read_json, reason, refusing
from wscore.store import load_delta

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PISSA_INIT = "pissa_init.safetensors"


def read_adapter(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config) of a PEFT checkpoint folder, with PiSSA's initial factors where stored.

    Raises ValueError for a missing folder, config or weights file, for one that is unreadable, and
    for tensors that stand where PEFT does not look for them.
    """
    folder, config = Path(path), read_config(path)
    tensors = _read_tensors(folder / WEIGHTS)
    ignored = [k for k in tensors if not k.startswith(PREFIX) or k.endswith("_init.weight")]
    known = any(f.peft_type == config.get("peft_type") for f in FAMILIES.values())
    if ignored and known:  # a merge refuses what is of no family by its name
        raise ValueError(
            f"adapter: {str(folder / WEIGHTS)!r} has {len(ignored)} tensors that PEFT ignores, such"
            f" as {reason(repr(ignored[0]))}; save the adapter again with save_pretrained"
        )
    if (folder / PISSA_INIT).is_file():
        tensors |= _initial(folder / PISSA_INIT)
    return tensors, config


def _initial(path: Path) -> dict[str, Tensor]:
    tensors = dict(load_delta(path).items())  # each compared with its hash, where it has one
    if other := [key for key in tensors if not key.endswith("_init.weight")]:
        raise ValueError(
            f"adapter: {str(path)!r} holds {reason(repr(other[0]))}, which is no initial factor; "
            "delete the file, and PiSSA's start is computed from the base"
        )
    return tensors


def read_config(path: str | Path) -> dict[str, Any]:
    """The adapter_config.json of a PEFT checkpoint folder that is complete; else ValueError."""
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"adapter: no folder {str(folder)!r}; train one or name another")
    if not (folder / WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        raise ValueError(
            f"adapter: {str(folder)!r} has adapter_model.bin and no {WEIGHTS}, and a pickle may run"
            " any code when it is read; load it with PEFT where you trust it, and save it again"
        )
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"adapter: {str(folder)!r} has no {name}; save it with PEFT again")
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise ValueError(f"adapter: {str(folder / CONFIG)!r} is not a JSON object; save it again")
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    what = f"adapter: {str(path)!r} is truncated or no safetensors file"
    with refusing(what, "copy or save it again", SafetensorError, OSError):
        return load_file(path)
