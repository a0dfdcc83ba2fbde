"""Extraction: a PEFT checkpoint on disk becomes a weight change that is verified on the model.

Everything that reads PEFT's files, or attaches its modules to a model and takes them off again, is
here; `wscore.merge_adapter` does the arithmetic.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import peft
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from wscore import (
    FAMILIES,
    Delta,
    difference,
    family,
    merge_adapter,
    merge_adapter_factored,
    norm,
)
from wscore.families.checkpoints import PREFIX
from wscore.families.fields import check_whole, read_fields
from wscore.families.saved import saves
from wscore.files import reason
from wsrun.adapters.base import BaseWarning, base_note, check_base
from wsrun.adapters.checkpoint import PISSA_INIT, read_adapter, read_config
from wsrun.steer.weights import steered

PEFT_VERSION = "0.21"  # the version that tests compare every family with
TOLERANCE = 1e-5


def check_peft() -> None:
    """Raises ValueError unless the installed PEFT is the minor version that tests cover."""
    if not peft.__version__.startswith(PEFT_VERSION + "."):
        raise ValueError(
            f"adapters: PEFT {peft.__version__} is installed, families are tested with "
            f"{PEFT_VERSION}; run pip install 'peft=={PEFT_VERSION}.*'"
        )


@contextmanager
def attached(
    model: PreTrainedModel, config: PeftConfig, attach: Callable[[Any], PeftModel]
) -> Iterator[PeftModel]:
    """attach(model) inside the block; afterwards the model is as it was, bit for bit.

    PEFT swaps modules in place, and inits like PiSSA also overwrite the base weights: both are
    undone, also where attaching itself fails or is interrupted.
    """
    mutates = isinstance(getattr(config, "init_lora_weights", True), str)
    weights = {p: p.detach().clone() for p in model.parameters() if mutates and p.ndim == 2}
    children = [(m, dict(m.named_children())) for m in model.modules()]
    try:
        yield attach(model)
    finally:
        for module, by_name in children:
            for name, child in by_name.items():
                setattr(module, name, child)
        vars(model).pop("peft_config", None)
        with torch.no_grad():
            for parameter, weight in weights.items():
                parameter.copy_(weight)
        model.requires_grad_(False)


def adapter_delta(
    model_or_base: nn.Module | Mapping[str, Tensor], path: str | Path, *, name: str = ""
) -> Delta:
    """tau = merged - base of the adapter in folder `path`, fp32, exact.

    Given a model, the delta is verified on one probe batch: the model plus delta must give the
    logits of PEFT's own forward within 1e-5 of their largest value (in fp32), else ValueError.
    Given only a mapping of base weights there is nothing to run, and this is left out. Where the
    adapter has no record of its base, and states another one than `name` (by default the name that
    the model was loaded by), a `BaseWarning` says so.
    """
    tau, note = _delta(model_or_base, path, merge_adapter, name)
    _warn(note, path)
    return tau


D = TypeVar("D", bound=Mapping[str, Tensor])


def _delta(
    model_or_base: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    merge: Callable[..., D],
    name: str = "",
) -> tuple[D, str]:
    """The adapter's weight change as `merge` gives it, verified where there is a model; a note."""
    check_peft()
    tensors, config = read_adapter(path)
    model = model_or_base if isinstance(model_or_base, nn.Module) else None
    base = dict(model.named_parameters(remove_duplicate=False)) if model else model_or_base
    with _naming(f"adapter {str(path)!r}"):
        family(config)
        check_whole(read_fields(config))
        tau = merge(tensors, config, base)
    recorded = check_base(model_or_base, path)
    if model:
        name = name or getattr(model.config, "_name_or_path", "")  # type: ignore[union-attr]
        verify_delta(model, tau, path)  # type: ignore[arg-type]
    return tau, "" if recorded else base_note(config, name)


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Refusals inside name what they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error} ({reason(what, 150)})") from error


def _warn(note: str, path: str | Path) -> None:
    if note:
        warnings.warn(f"{str(path)!r}: {note}", BaseWarning, stacklevel=3)


class PairDelta(NamedTuple):
    """The deltas of two poles of one family, and dW = pos - neg; factors where they have some."""

    family: str
    pos: Mapping[str, Tensor]
    neg: Mapping[str, Tensor]
    dW: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()
    """what a reader of results must know, such as a base that is not known to be the adapters'"""


def pair_deltas(model: PreTrainedModel, folder: str | Path) -> PairDelta:
    """The verified deltas of folder/pos and folder/neg, and their difference.

    Those of lora, pissa and delora are kept as factors (`Factored`), which every function of deltas
    takes: 1 % of the memory, and no product is formed before the weights are changed. Checkpoints
    that hold whole modules are not.

    Raises ValueError where the poles are of different families or touch different targets. Warns as
    `adapter_delta` does, and keeps what it warned of in `notes`.
    """
    sides = {side: Path(folder) / side for side in ("pos", "neg")}
    configs = {side: read_config(path) for side, path in sides.items()}
    with _naming(f"adapters {str(folder)!r}"):
        families = {side: family(config) for side, config in configs.items()}
    if families["pos"] != families["neg"]:
        raise ValueError(
            f"adapters: pos of {str(folder)!r} is {families['pos']} and neg is {families['neg']}; "
            "train both poles with one family"
        )
    low_rank = FAMILIES[families["pos"]].factors and not any(map(saves, configs.values()))
    merge = merge_adapter_factored if low_rank else merge_adapter
    (pos, *about_pos), (neg, *about_neg) = (_delta(model, path, merge) for path in sides.values())
    with _naming(f"pos and neg of {str(folder)!r}"):
        dW = difference(pos, neg)
    if norm(dW) == 0:
        raise ValueError(f"adapters: pos and neg of {str(folder)!r} are equal, so dW is zero")
    notes = tuple(dict.fromkeys(note for note in (*about_pos, *about_neg) if note))
    for note in notes:
        _warn(note, folder)
    return PairDelta(families["pos"], pos, neg, dW, notes)


def verify_delta(model: PreTrainedModel, tau: Mapping[str, Tensor], path: str | Path) -> float:
    """max |logits(base + tau) - logits(PEFT)| / max(1, max |logits(PEFT)|); raises above 1e-5.

    A change that is small on that scale must also be met itself, within 1 % of its own largest
    logit, unless it is lost in rounding.
    """
    exact = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    generator = torch.Generator().manual_seed(0)
    vocab = model.config.get_text_config().vocab_size
    probe = torch.randint(vocab, (2, 24), generator=generator).to(model.device)
    with torch.no_grad():
        base = exact(input_ids=probe, use_cache=False).logits
        with steered(exact, tau, 1.0):
            ours = exact(input_ids=probe, use_cache=False).logits
        theirs = _peft_logits(exact, path, probe)
    size = theirs.abs().max().clamp(min=1)
    error, change = (float((x - theirs).abs().max() / size) for x in (ours, base))
    if not error <= TOLERANCE or (change > TOLERANCE and error > 0.01 * change + 1e-6):
        raise ValueError(
            f"adapter_delta: logits of base + delta and of PEFT differ by {error:.1e} of their "
            f"largest value for {str(path)!r}; the adapter does not mean what its config says"
        )
    return error


def _peft_logits(model: PreTrainedModel, path: str | Path, probe: Tensor) -> Tensor:
    """The logits of PEFT's own model of the checkpoint."""
    fields = read_fields(read_config(path))
    fields.pop("runtime_config", None)  # as PEFT does with a file's
    try:
        kind = PEFT_TYPE_TO_CONFIG_MAPPING[fields["peft_type"]]
        config = kind.from_peft_type(**kind.check_kwargs(**fields))
        load = lambda m: PeftModel.from_pretrained(m, str(path), config=config)  # noqa: E731
        before = {n: p.data for n, p in model.named_parameters()}
        with attached(model, config, load) as wrapped:
            _put_back_initial(wrapped, before, path)
            return wrapped(input_ids=probe, use_cache=False).logits
    except Exception as error:  # PEFT raises anything on a checkpoint that it cannot use
        raise ValueError(
            f"adapter_delta: PEFT cannot load or run {str(path)!r} ({reason(error, 150)}); save the"
            " adapter again with save_pretrained, for this model"
        ) from error


def _put_back_initial(wrapped: PeftModel, before: Mapping[str, Tensor], path: str | Path) -> None:
    """Where training stored PiSSA's initial factors, the residual weights W - s B0 A0 of these.

    PEFT takes them from a new SVD of W. Where singular values lie close, float32 makes that another
    one on another machine or number of threads: 3e-5 in the logits of SmolLM2.
    """
    if not (Path(path) / PISSA_INIT).is_file():
        return
    tensors, _ = read_adapter(path)
    for name, layer in wrapped.base_model.model.named_modules():
        A0, B0 = (tensors.get(f"{PREFIX}{name}.lora_{x}_init.weight") for x in "AB")
        if A0 is not None and B0 is not None:
            initial, W = (layer.scaling["default"] * B0 @ A0), before[f"{name}.weight"]
            initial = initial.T if layer.fan_in_fan_out else initial
            layer.get_base_layer().weight.data = W - initial.to(W)
