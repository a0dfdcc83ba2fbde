"""Activation directions as control vectors, and those of others read as interventions.

load_vectors(save_vectors(model, v, out), model) == v, bit for bit in float32

`direction.N` is added to the output of decoder layer N, counted from 0: h_N' = h_N + direction.N.
That is `hidden_states[N + 1]` of transformers' output_hidden_states, where entry 0 is the
embedding; for the last layer transformers gives it after the final norm, but the vector is added
before it. repeng 0.4 (ControlModule around layers[N]; its training reads hidden_states[N + 1]) and
llama.cpp (build_cvec after block N) agree. llama.cpp has no direction.0 and refuses files with one.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from wscore import tensors_sha256
from wscore.files import quoted
from wsrun.adapters.folders import replace_folder
from wsrun.export.gguf_files import fact, floats, gguf_package, open_gguf, write_gguf
from wsrun.export.record import Card, base_of, check_export, write_export
from wsrun.export.torch_vectors import read_torch_vectors
from wsrun.models.hooks import check_layers
from wsrun.models.load import d_model
from wsrun.steer.interventions import AddVectors, DirectionalAblation
from wsrun.steer.saved import load_intervention

FILE = "vector.gguf"
ARCHITECTURE = "controlvector"
DIRECTION = "direction."


def save_vectors(
    model: PreTrainedModel,
    vectors: AddVectors | Mapping[int, Tensor],
    out: str | Path,
    *,
    alpha: float = 1.0,
    base_name: str = "",
    about: Mapping[str, Any] = {},
) -> Path:
    """Write alpha v_l as <out>/vector.gguf, a control vector in float32; returns `out`.

    Raises ValueError for layers that the model does not have, vectors of another width than its
    own, a projection (`DirectionalAblation`), which no control vector is, and as every export.
    """
    who = "save_vectors"
    alpha = check_export(who, out, alpha, about)
    gguf_package(who)
    if isinstance(vectors, DirectionalAblation):
        raise ValueError(f"{who}: a projection is no vector that is added; export AddVectors")
    given = vectors.vectors if isinstance(vectors, AddVectors) else vectors
    by_layer = _checked(who, given, model)
    base = base_of(model, base_name)
    facts = {
        f"{ARCHITECTURE}.model_hint": str(model.config.model_type),
        f"{ARCHITECTURE}.layer_count": len(by_layer),
    }

    def write(new: Path) -> None:
        tensors = {f"{DIRECTION}{layer}": alpha * v for layer, v in sorted(by_layer.items())}
        write_gguf(who, new / FILE, ARCHITECTURE, facts, tensors)
        sha256, card = tensors_sha256({str(n): v for n, v in by_layer.items()}), _card(by_layer)
        write_export(
            new, "vector", base, sha256, alpha, card, about, layers=sorted(by_layer),
            width=d_model(model),
        )  # fmt: skip

    return replace_folder(out, write)


def load_vectors(path: str | Path, model: PreTrainedModel | None = None) -> AddVectors:
    """The intervention of a file of directions; its layers count from 0, see above.

    A GGUF control vector of repeng, llama.cpp or `save_vectors` (or the folder that this wrote), a
    `.pt` file (torch_vectors.py), or a `.safetensors` file of `AddVectors.save`. Raises ValueError
    for a file that is none of these, for directions of several widths, and, given a model, of
    another width than its own or of layers it lacks.
    """
    who = "load_vectors"
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(f"{who}: there is no file {quoted(str(file), 300)}; give {KINDS}")
    read = READERS.get(file.suffix.lower())
    if read is None:
        raise ValueError(f"{who}: {quoted(str(file), 300)} is no known kind of file; give {KINDS}")
    return AddVectors(_checked(f"{who}: {str(file)!r}", read(who, file), model))


def _of_gguf(who: str, file: Path) -> dict[int, Tensor]:
    reader = open_gguf(who, file)
    if (found := fact(reader, "general.architecture")) != ARCHITECTURE:
        raise ValueError(
            f"{who}: {str(file)!r} is of architecture {quoted(found)}, no {ARCHITECTURE}; give a "
            "control vector of repeng or llama.cpp"
        )
    named = {t.name: t for t in reader.tensors}
    layers = {name: name.removeprefix(DIRECTION) for name in named if name.startswith(DIRECTION)}
    if not layers or any(not n.isdecimal() or str(int(n)) != n for n in layers.values()):
        raise ValueError(
            f"{who}: {str(file)!r} has no tensors {DIRECTION}N, or odd ones {quoted([*named][:3])};"
            " give a control vector of repeng or llama.cpp"
        )
    return {int(n): floats(who, named[name]) for name, n in layers.items()}


def _of_safetensors(who: str, file: Path) -> dict[int, Tensor]:
    found, _ = load_intervention(file)
    if type(found) is not AddVectors:
        raise ValueError(f"{who}: {str(file)!r} holds {found.method}, no vectors that are added")
    return dict(found.vectors)


READERS: dict[str, Callable[[str, Path], dict[int, Tensor]]] = {
    ".gguf": _of_gguf,
    ".pt": read_torch_vectors,
    ".pth": read_torch_vectors,
    ".safetensors": _of_safetensors,
}
KINDS = "a GGUF control vector, a .pt file of tensors, or a .safetensors file of AddVectors.save"


def _checked(
    who: str, vectors: Mapping[int, Tensor], model: PreTrainedModel | None
) -> dict[int, Tensor]:
    """Vectors of one width, the model's where there is one, by layers that it has."""
    if not vectors:
        raise ValueError(f"{who}: there is no vector; give one for at least one layer")
    widths = {tuple(v.shape) for v in vectors.values()}
    width = d_model(model) if model is not None else None
    if len(widths) > 1 or len(min(widths)) != 1 or (width and widths != {(width,)}):
        shown = ", ".join(str(list(w)) for w in sorted(widths))
        raise ValueError(
            f"{who}: vectors have shape {shown}, "
            + (f"the model has width {width}; " if width else "not one width; ")
            + "give vectors of this model"
        )
    if odd := [n for n, v in vectors.items() if not bool(v.isfinite().all())]:
        raise ValueError(f"{who}: the vector of layer {odd[0]} has NaN or inf; make it again")
    try:
        return check_layers(model, vectors) if model is not None else dict(vectors)
    except ValueError as error:
        raise ValueError(f"{who}: {error}; give vectors of this model") from error


def _card(by_layer: Mapping[int, Tensor]) -> Card:
    limits = [
        "`direction.N` is added to the output of decoder layer N, counted from 0, at every token: "
        "`hidden_states[N + 1]` of transformers, before the final norm.",
        "Servers apply it at a strength of their own; 1 is the alpha above.",
    ]
    if 0 in by_layer:
        limits.append("It has a direction.0, with which llama.cpp refuses the file.")
    return Card(
        "A control vector: h' = h + v at the output of some layers, for repeng and llama.cpp.",
        "    from repeng import ControlVector\n"
        f'    vector = ControlVector.import_gguf("{FILE}")\n\n'
        f"    llama-cli -m base.gguf --control-vector {FILE}\n\n"
        "    from wsrun import load_vectors\n"
        f'    intervention = load_vectors("{FILE}", model)',
        tuple(limits),
    )
