"""What a script chose on validation items, kept for others: vectors and constructed changes.

keep_chosen(folder, chosen, base, about); load_chosen(folder, base) is what was kept, bit by bit

A dW is made again from its adapters, and a prompt from its persona; a vector, or a change that was
never trained, is not. Each such variant is one safetensors file: the vectors as "layer 3", a change
as its factors where it has some, and the rest in the header.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from wscore import save_delta
from wscore.store import load_delta
from wsrun.score.doses import Dose, Dosed
from wsrun.score.names import line
from wsrun.score.sweep import Variant

KEPT = ("activation", "synthetic")  # methods
LAYER = "layer "
FIELDS = ("name", "method", "family", "k", "seed", "alphas")  # of a Variant, beside its tensors


class OtherBase(ValueError):
    """What was chosen on other base weights than those it is asked for."""


class Chosen(NamedTuple):
    """A candidate picked on validation items: the variant at its one dose, and what it did there.

    validation = effect in nats, the mean over data sets and seeds. `others` are its other seeds.
    role: "selected", or "flagged" where all candidates of its way have too many flagged rows.
    source: the script that chose it, where that is another one.
    """

    variant: Variant
    validation: float
    others: tuple[Variant, ...] = ()
    role: str = "selected"
    source: str = ""


def keep_chosen(
    folder: Path, chosen: Mapping[str, Chosen], base: str, about: Mapping[str, Any]
) -> list[Path]:
    """Write what was chosen here and cannot be made again, in place of what the folder had.

    base: sha256 of the base weights (`runs.record`). about: what else the header shall say, such as
    experiment, model and match. A later script finds the dose as it was used.
    """
    for old in folder.glob("*.safetensors"):
        old.unlink()
    own = [
        (way, c, v)
        for way, c in chosen.items()
        for v in (c.variant, *c.others)
        if v.method in KEPT and not c.source
    ]
    written = []
    for i, (way, c, v) in enumerate(own):
        told = {f: getattr(v, f) for f in FIELDS} | {"way": way, "role": c.role, "base": base}
        told |= {"validation": c.validation, "dose": v.dose if isinstance(v, Dosed) else None}
        header = {key: json.dumps(value) for key, value in (told | dict(about)).items()}
        tensors = {f"{LAYER}{n}": x for n, x in (v.vectors or {}).items()} or v.change()
        written.append(save_delta(tensors, folder / f"{i:02d}_{way}.safetensors", header))
    return written


def load_chosen(folder: Path, base: str) -> list[tuple[Chosen, dict[str, Any]]]:
    """What `keep_chosen` wrote, with what each header says; [] for a folder without files.

    Raises OtherBase, a ValueError, for what was made on other base weights, and ValueError for
    what is no such file.
    """
    found: list[tuple[Chosen, dict[str, Any]]] = []
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_delta(path)
        try:
            told = {key: json.loads(value) for key, value in tensors.meta.items()}
            own: dict[str, Any] = {f: told[f] for f in FIELDS}
            way, role, effect = told["way"], told["role"], told["validation"]
            source, dose, of = told["experiment"], told["dose"], told["base"]
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"chosen: {str(path)!r} is not a file of a chosen way ({error}); remove it"
            ) from error
        if of != base:
            raise OtherBase(
                f"chosen: {str(path)!r} was made on other base weights, of {told.get('model')!r}; "
                f"run {source} on this model, or give another --out"
            )
        own["alphas"] = tuple(own["alphas"])
        steered = all(name.startswith(LAYER) for name in tensors)
        part = {int(n.removeprefix(LAYER)): x for n, x in tensors.items()} if steered else tensors
        own |= {"vectors" if steered else "delta": part}
        v = Dosed(**own, dose=Dose(*dose)) if dose else Variant(**own)
        last = found[-1][0] if found else None
        if last and line(last.variant) == line(v):
            found[-1] = (last._replace(others=(*last.others, v)), found[-1][1])
        else:
            found.append((Chosen(v, effect, (), role, source), {**told, "way": way}))
    return found
