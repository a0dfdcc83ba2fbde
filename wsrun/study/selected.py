"""What was chosen on validation items, and its files: vectors and constructed changes, for T11.

save_selected(folder, chosen, base, about); load_selected(folder, base) is that, bit by bit

A dW is made again from its adapters, and a prompt from its persona; a vector, or a change that was
never trained, is not.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from wscore.files import refusing
from wsrun.score.names import DW
from wsrun.score.variants import Dose, Variant
from wsrun.steer.saved import load_intervention

FOLDER = "selection"  # under the folder of the tables
REMEDY = "remove it, and run the script that wrote it again"
FIELDS = ("name", "family", "k", "seed", "alphas")  # of a Variant, beside its intervention
NEGATIVE_DW = f"-{DW}"  # dW at alpha < 0, towards the other pole


class Selection(NamedTuple):
    """A candidate picked on validation items: the variant at its one alpha, and what it did there.

    validation = effect in nats, the mean over data sets and seeds. `others` are its other seeds.
    role: "selected", or "flagged" where all candidates of its method have too many flagged rows.
    source: the script that chose it, where that is another one.
    """

    variant: Variant
    validation: float
    others: tuple[Variant, ...] = ()
    role: str = "selected"
    source: str = ""

    @property
    def alpha(self) -> float:
        """The coefficient that was chosen."""
        assert self.variant.alphas and len(self.variant.alphas) == 1
        return self.variant.alphas[0]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All seeds."""
        return self.variant, *self.others


class Selections(dict[str, Selection]):
    """{method: its selection}, the rows of all candidates, and those that no alpha brings to the
    dose asked for (none without --match-dose).
    """

    rows: pl.DataFrame | None = None
    unmatched: Sequence[Variant] = ()

    @property
    def tried(self) -> pl.DataFrame:
        """The rows of all candidates, of a choice that was made here."""
        assert self.rows is not None
        return self.rows


class OtherBase(ValueError):
    """What was chosen on other base weights than those it is asked for."""


def line(v: Variant) -> tuple:
    """What a line of a table is about: method, family, name, k, alpha."""
    return v.method, v.family, v.name, v.k, v.alphas


def save_selected(
    folder: Path, chosen: Mapping[str, Selection], base: str, about: Mapping[str, Any]
) -> list[Path]:
    """Write what was chosen here and cannot be made again, in place of what the folder had.

    That is every intervention with a dose that belongs to no adapter family. base: sha256 of the
    base weights. about: what else the header shall say, such as experiment, model and match. A
    later script finds the dose as it was used.
    """
    for old in folder.glob("*.safetensors"):
        old.unlink()
    to_write = [
        (name, s, v)
        for name, s in chosen.items()
        for v in s.variants
        if v.family is None and v.intervention.has_dose and not s.source
    ]
    written = []
    for i, (name, s, v) in enumerate(to_write):
        header = {f: getattr(v, f) for f in FIELDS} | {"method_name": name, "role": s.role}
        header |= {"base": base, "validation": s.validation}
        header |= {"dose": v.dose, **about}
        path = folder / f"{i:02d}_{name}.safetensors"
        v.intervention.save(path, {key: json.dumps(value) for key, value in header.items()})
        written.append(path)
    return written


def load_selected(folder: Path, base: str) -> list[tuple[Selection, dict[str, Any]]]:
    """What `save_selected` wrote, with what each header says; [] for a folder without files.

    Raises OtherBase, a ValueError, for what was made on other base weights, and ValueError for
    what is no such file or is damaged.
    """
    loaded: list[tuple[Selection, dict[str, Any]]] = []
    for path in sorted(folder.glob("*.safetensors")):
        v, header = _load(path)
        if header["base"] != base:
            raise OtherBase(
                f"selection: {str(path)!r} was made on other base weights, of "
                f"{header.get('model')!r}; run {header['experiment']} on this model, or give "
                "another --out"
            )
        last = loaded[-1][0] if loaded else None
        if last and line(last.variant) == line(v):
            loaded[-1] = (last._replace(others=(*last.others, v)), loaded[-1][1])
        else:
            s = Selection(v, header["validation"], (), header["role"], header["experiment"])
            loaded.append((s, header))
    return loaded


def _load(path: Path) -> tuple[Variant, dict[str, Any]]:
    kinds = KeyError, TypeError, ValueError, RecursionError
    with refusing(f"selection: {str(path)!r} is not a file of a selection", REMEDY, *kinds):
        intervention, meta = load_intervention(path)
        intervention.fingerprint()  # reads all of it, so that damage is seen here
        header = {key: json.loads(value) for key, value in meta.items()}
        fields: dict[str, Any] = {f: header[f] for f in FIELDS}
        fields |= {
            "alphas": tuple(fields["alphas"]),
            "dose": header["dose"] and Dose(*header["dose"]),
        }
        for key in ("base", "experiment", "validation", "role", "method_name"):
            header[key]
        return Variant(**fields, intervention=intervention), header
