"""wsrun export: the model and the change of the options through the functions of wsrun.export."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from wscore import load_delta, tensors_sha256
from wscore.delta import DeltaLike
from wscore.files import parse_json, read_json
from wsrun.adapters.checkpoint import CONFIG
from wsrun.adapters.pair import RECORD
from wsrun.cli.change import read_change
from wsrun.cli.export_options import Export
from wsrun.cli.options import split_delta
from wsrun.export.gguf_lora import save_gguf_lora
from wsrun.export.lora import save_lora
from wsrun.export.merged import save_merged
from wsrun.export.record import MANIFEST, check_export
from wsrun.export.vectors import load_vectors, save_vectors
from wsrun.models.gguf import gguf_file
from wsrun.models.load import DTYPES, load_model
from wsrun.report.console import console
from wsrun.steer.interventions import AddVectors, DirectionalAblation
from wsrun.steer.saved import load_intervention
from wsrun.study.known_effects import of_direction, of_weights

WHO = "export"
FLOAT32 = "float32"
ROUNDING = 1e-5  # relative errors below it are those of float32


def export(cfg: Export) -> None:
    """Write the export, and say what it holds and what its card tells."""
    out = cfg.folder()
    check_export(WHO, out, cfg.dose(), {}, CONFIG if cfg.format == "lora" else MANIFEST)
    error, about = (_vector if cfg.format == "vector" else _weights)(cfg, out)
    lost = f", {error:.2%} of |dW| left out" if error > ROUNDING else ""
    console.print(f"{cfg.format} of {cfg.model}, alpha = {cfg.dose():g}{lost}: {out}")
    told = ", ".join(name for name in ("effect", "cost", "instrument") if name in about)
    none = f"no effect: no table in {cfg.tables} is of this change at this alpha"
    console.print(f"its card tells {told}, of {cfg.tables}" if told else f"its card tells {none}")


def _weights(cfg: Export, out: Path) -> tuple[float, dict[str, Any]]:
    """(relative error, what the card tells) of a weight change."""
    (file, _), *more = [split_delta(d) for d in cfg.delta] or [(Path(), 0.0)]
    if cfg.format == "merged" and file.is_file() and not more:
        model, dW = None, load_delta(file)  # a base of any size: its files are read in blocks
    else:
        model, _ = load_model(cfg.model, FLOAT32, cfg.device)
        dW, _, _ = read_change(cfg, model)
    about = _recipe(cfg) | of_weights(cfg.tables, tensors_sha256(dW), cfg.dose())
    if model is None or cfg.format == "merged":
        model, dtype = None, None if cfg.dtype == "auto" else cfg.dtype
        save_merged(cfg.model, dW, cfg.dose(), out, dtype=dtype, about=about)
        return 0.0, about
    model = _trained_on(cfg, model, dW)
    common: dict[str, Any] = dict(
        rank=cfg.rank, alpha=cfg.dose(), max_error=cfg.max_error, base_name=cfg.model, about=about
    )
    if cfg.format == "lora":
        dtype = DTYPES[FLOAT32 if cfg.dtype == "auto" else cfg.dtype]
        return save_lora(model, dW, out, dtype=dtype, **common), about
    return save_gguf_lora(model, dW, out, base_gguf=gguf_file(cfg.model), **common), about


def _trained_on(cfg: Export, model: PreTrainedModel, dW: DeltaLike) -> PreTrainedModel:
    """The model as the delta's file records it: in float32, else in the dtype that was asked."""
    recorded, half = getattr(dW, "meta", {}).get("base"), cfg.dtype not in ("auto", FLOAT32)
    if half and recorded and recorded != tensors_sha256(dict(model.named_parameters())):
        return load_model(cfg.model, cfg.dtype, cfg.device)[0]
    return model


def _recipe(cfg: Export) -> dict[str, Any]:
    """How the pair was trained, where a record of it stands beside its poles."""
    file = None if cfg.delta else cfg.pair() / RECORD
    if file is None or not file.is_file():
        return {}
    record = read_json(file)
    return {"recipe": {key: record.get(key) for key in ("family", "seed", "recipe", "n_pairs")}}


def _vector(cfg: Export, out: Path) -> tuple[float, dict[str, Any]]:
    """(0, what the card tells) of directions in the activations."""
    assert cfg.vectors is not None  # refused before
    model, _ = load_model(cfg.model, FLOAT32, cfg.device)
    if cfg.vectors.suffix != ".safetensors":
        vectors, about = load_vectors(cfg.vectors, model), {}
    else:
        vectors, header = _selected(cfg.vectors, model)
        about = of_direction(cfg.tables, header, cfg.alpha)
    save_vectors(model, vectors, out, alpha=cfg.alpha, base_name=cfg.model, about=about)
    return 0.0, about


def _selected(path: Path, model: PreTrainedModel) -> tuple[AddVectors, dict[str, Any]]:
    """The direction that a comparison selected, and its header; ValueError for anything else."""
    found, texts = load_intervention(path)
    what = f"--vectors: {str(path)!r}"
    if not isinstance(found, AddVectors) or isinstance(found, DirectionalAblation):
        raise ValueError(f"{what} holds {found.label}, no vector that is added; give one that is")
    header = {key: parse_json(text, f"{what}, its {key}") for key, text in texts.items()}
    base = header.get("base")
    if base and base != tensors_sha256(dict(model.named_parameters())):
        raise ValueError(f"{what} was read on other base weights; name its model with --model")
    return found, header
