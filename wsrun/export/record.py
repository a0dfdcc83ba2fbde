"""What every export says of itself: a card (README.md) and a manifest (wsrun_export.json)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from wscore import tensors_sha256
from wscore.entries import number
from wscore.files import quoted, refusing
from wsrun.adapters.base import short_name
from wsrun.adapters.folders import check_replaceable
from wsrun.models.machine import versions

MANIFEST, CARD = "wsrun_export.json", "README.md"
OWN = ("format", "base", "delta", "alpha", "versions")
"""keys of a manifest that an export fills itself"""
KNOWN = {
    "recipe": "how the change was trained",
    "effect": "effect",
    "effect_kept": "share of the effect that this export keeps",
    "cost": "cost",
    "instrument": "instrument check",
    "behaviour": "behaviour",
}
"""what a caller may tell, and what the card calls it; any other key stands there as it is"""


class Base(NamedTuple):
    """The model that an export is for: what it is called, and sha256 of its weights as stored."""

    name: str
    dtype: str
    sha256: str


class Card(NamedTuple):
    """The text of a README.md: what it is, how to load it, what it does not do."""

    what: str
    load: str
    limits: tuple[str, ...]


def base_of(model: nn.Module, name: str = "") -> Base:
    """Name, dtype and sha256 of a loaded model's parameters, as tables record them."""
    weights = dict(model.named_parameters())
    dtypes = ", ".join(sorted({str(p.dtype) for p in weights.values()}))
    name = name or str(getattr(model.config, "_name_or_path", "") or "unnamed")
    return Base(name, dtypes, tensors_sha256(weights))


def check_export(
    who: str, out: str | Path, alpha: float, about: Mapping[str, Any], mark: str = MANIFEST
) -> float:
    """alpha as a float; what is to be refused before any work.

    Raises ValueError for an alpha that is 0 or no finite number, a folder of something else, and
    an `about` that is no JSON or names what the manifest says itself.
    """
    alpha = number(alpha, f"{who}: alpha")
    if alpha == 0:
        raise ValueError(f"{who}: alpha is 0, which is the base itself; give the dose to export")
    if clash := sorted(set(about) & set(OWN)):
        raise ValueError(f"{who}: `about` has {clash}, which the manifest fills itself; rename it")
    with refusing(f"{who}: `about` is no JSON", "give texts and finite numbers", *_NO_JSON):
        json.dumps(dict(about), allow_nan=False)
    check_replaceable(out, mark, "adapter" if mark != MANIFEST else "export of this library")
    return alpha


_NO_JSON = (TypeError, ValueError, RecursionError)


def check_same_base(who: str, delta: Mapping[str, Tensor], *known: str) -> None:
    """Raises ValueError where the delta's file says that it was trained on other weights."""
    recorded = getattr(delta, "meta", {}).get("base")
    if recorded and recorded not in known:
        raise ValueError(
            f"{who}: the delta was trained on another base than this (its file records weights of "
            f"sha256 {quoted(recorded[:12])}, these have {known[0][:12]!r}); give the model it was "
            "trained on"
        )


def write_export(
    folder: Path, kind: str, base: Base, delta_sha256: str, alpha: float, card: Card,
    about: Mapping[str, Any], **more: Any,
) -> None:  # fmt: skip
    """Write manifest and card into the folder of an export."""
    packages = ("gguf",) if kind in ("gguf-lora", "vector") else ()
    manifest = {
        "format": kind, "base": base._asdict(), "delta": {"sha256": delta_sha256}, "alpha": alpha,
        **more, **about, "versions": versions(*packages),
    }  # fmt: skip
    text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    (folder / CARD).write_text(_text(kind, base, alpha, card, more, about), encoding="utf-8")


def _text(
    kind: str, base: Base, alpha: float, card: Card, more: Mapping[str, Any], about: Mapping
) -> str:
    rows = {"base": base.name, "sha256 of its weights": base.sha256, "alpha": f"{alpha:g}"}
    rows |= {name.replace("_", " "): _shown(value) for name, value in more.items()}
    rows |= {KNOWN.get(name, name): _shown(value) for name, value in about.items()}
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    limits = "\n".join(f"- {limit}" for limit in card.limits)
    return f"""# {short_name(base.name)}, steered: {kind}

{card.what}

| | |
| --- | --- |
{table}

`{MANIFEST}` beside this file holds the same, with the hash of the delta and all versions.

## Load

{card.load}

## Limits

{limits}
"""


def _shown(value: Any) -> str:
    """A value of the manifest in one cell of a table."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(x)}" for key, x in value.items())
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
