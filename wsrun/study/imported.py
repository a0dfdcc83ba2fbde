"""Directions of others as methods of the benchmark: files of --vectors, tried as our own are.

    c v_l in all layers of a file at once, and in each layer alone, c of --coefficients

"-" names the method towards the other pole.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from wsrun.export.vectors import load_vectors
from wsrun.score.names import DW
from wsrun.score.variants import Variant
from wsrun.steer.interventions import AddVectors
from wsrun.study import activation

OWN_NAMES = (
    *activation.DIRECTIONS,
    DW,
    "tau_pos",
    "base",
    "zero",
    "random",
    "simple",
    "engineered",
    "neutral",
)


@dataclass(frozen=True)
class Importing(activation.Directed):
    """Options of the scripts that try directions of others, too."""

    vectors: tuple[Path, ...] = ()
    """directions of others as rivals: GGUF control vectors, .pt files of persona vectors or of
    steering-vectors, .safetensors; in units of their own length"""


def check_imported(cfg: Importing, what: str) -> None:
    """Refuse files of --vectors that are not there, or whose names mean something else."""
    for path, name in zip(cfg.vectors, imported_names(cfg), strict=True):
        if not path.exists():
            raise ValueError(f"{what}: --vectors: there is no file {str(path)!r}; give one")
        taken = name in OWN_NAMES or imported_names(cfg).count(name) > 1
        if taken or not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(
                f"{what}: --vectors {str(path)!r} would be called {name!r} in tables, which is "
                "taken or no plain name; rename the file"
            )


def imported_names(cfg: Importing) -> list[str]:
    """The methods' names of --vectors: the stems of the files."""
    return [path.stem for path in cfg.vectors]


def imported(
    cfg: Importing, model: PreTrainedModel, signs: Sequence[str] = ("", "-")
) -> Iterator[Variant]:
    """The directions of --vectors, all layers of a file at once and each of --layers alone.

    Raises as `load_vectors`: for a width or layers that the model does not have, for one.
    """
    alphas = {"": cfg.coefficients, "-": tuple(-c for c in cfg.coefficients)}
    for name, path in zip(imported_names(cfg), cfg.vectors, strict=True):
        vectors = load_vectors(path, model).vectors
        settings = {"all layers": vectors} if len(vectors) > 1 else {}
        alone = [n for n in cfg.layers or vectors if n in vectors]
        settings |= {f"layer {n}": {n: vectors[n]} for n in alone}
        for setting, of in settings.items():
            for sign in signs:
                yield Variant(f"{sign}{name}@{setting}", AddVectors(of), alphas=alphas[sign])


def record(variants: Sequence[Variant]) -> dict[str, dict[str, Any]]:
    """What the provenance says of them: the hashes of their vectors by name."""
    found = {v.name: v.intervention.fingerprint() for v in variants}
    return {"imported": found} if found else {}
