"""Which base an adapter was trained on: its own record of the weights, else the name it states."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from wscore import tensors_sha256
from wscore.families.patterns import check_pattern
from wscore.files import read_json, reason, write_whole

BASE = "base.json"  # which weights the adapter was trained on


class BaseWarning(UserWarning):
    """Nothing says that an adapter was trained on the weights it is applied to."""


def base_record(base: nn.Module | Mapping[str, Tensor], where: str) -> dict[str, str]:
    """What an adapter was trained on: pattern, dtype and sha256 of the weights it may change."""
    parameters = dict(base.named_parameters()) if isinstance(base, nn.Module) else base
    names = [n for n in parameters if n.endswith(".weight")]
    weights = {n: parameters[n] for n in names if re.fullmatch(where, n.removesuffix(".weight"))}
    dtypes = sorted({str(p.dtype) for p in weights.values()})
    return {"weights": where, "dtype": ", ".join(dtypes), "sha256": tensors_sha256(weights)}


def write_record(folder: Path, record: Mapping[str, str]) -> None:
    """Write what `base_record` gave into an adapter's folder."""
    text = json.dumps(record, indent=1) + "\n"
    write_whole(folder / BASE, lambda partial: partial.write_text(text))


def check_base(base: nn.Module | Mapping[str, Tensor], path: str | Path) -> bool:
    """Whether the adapter's own record says that the weights are those it was trained on.

    False where there is no record, and for weights in another dtype, whose bits say nothing; a
    record of other weights raises ValueError.
    """
    file = Path(path) / BASE
    if not file.is_file():
        return False
    where, dtype, sha256 = _read_record(file)
    found = base_record(base, where)
    if found["dtype"] != dtype:
        return False
    if found["sha256"] != sha256:
        raise ValueError(
            f"adapter: {str(path)!r} was trained on another base than this model (the weights it "
            "changes have other bits); load the model it was trained on, or train it again"
        )
    return True


def _read_record(file: Path) -> tuple[str, str, str]:
    """The pattern, dtype and sha256 of a record; ValueError for one that is broken."""
    try:
        record = read_json(file)
        where, dtype, sha256 = (record[name] for name in ("weights", "dtype", "sha256"))
        check_pattern(where, "weights")
        dtypes = re.fullmatch(r"torch\.\w+(, torch\.\w+)*", dtype)
        if not dtypes or not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError("dtype or sha256 is none")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"adapter: {str(file)!r} is broken ({reason(error, 150)}); delete it"
        ) from error
    return where, dtype, sha256


def base_note(config: Mapping[str, Any], model_name: str) -> str:
    """What is not known about the base of an adapter without a record; "" where its name is.

    Names are compared by their last part, so that a folder and a hub's name may agree.
    """
    stated = config.get("base_model_name_or_path") or ""
    if stated and short_name(stated) == short_name(model_name):
        return ""
    says = f"says that its base is {reason(repr(stated), 80)}" if stated else "names no base"
    model = (
        f"the model is {reason(repr(model_name), 80)}" if model_name else "the model has no name"
    )
    return (
        f"the adapter {says}, {model}, and no {BASE} tells the weights it was trained on; on "
        "another base its change is wrong"
    )


def short_name(name: str) -> str:
    """The model's own name in a path, a hub's name, or a folder of the hub's cache."""
    parts = [p for p in name.replace("\\", "/").split("/") if p not in ("", ".")]
    cached = [p for p in parts if p.startswith("models--")]
    return (cached or parts or [""])[-1].split("--")[-1].lower()
