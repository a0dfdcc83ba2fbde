"""Extraction: a PEFT checkpoint on disk becomes a weight change that is verified on the model.

Everything that reads PEFT's files, or attaches its modules to a model and takes them off again, is
here; `wscore.merge_adapter` does the arithmetic.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import peft
import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
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
    tensors_sha256,
)
from wsrun.steer.weights import steered

PEFT_VERSION = "0.21"  # the version that tests compare every family with
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PISSA_INIT = "pissa_init.safetensors"
BASE = "base.json"  # which weights the adapter was trained on
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


def read_adapter(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config) of a PEFT checkpoint folder, with PiSSA's initial factors where stored.

    Raises ValueError for a missing folder, config or weights file, and for one that is unreadable.
    """
    folder, config = Path(path), read_config(path)
    tensors = _read_tensors(folder / WEIGHTS)
    if (folder / PISSA_INIT).is_file():
        tensors |= _read_tensors(folder / PISSA_INIT)
    return tensors, config


def read_config(path: str | Path) -> dict[str, Any]:
    """The adapter_config.json of a PEFT checkpoint folder that is complete; else ValueError."""
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"adapter: no folder {str(folder)!r}; train one or name another")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"adapter: {str(folder)!r} has no {name}; save it with PEFT again")
    try:
        config = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise ValueError(f"adapter: {str(folder / CONFIG)!r} is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"adapter: {str(folder / CONFIG)!r} is not a JSON object; save it again")
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"adapter: {str(path)!r} is truncated or no safetensors file; copy or save it again "
            f"({error})"
        ) from error


def adapter_delta(model_or_base: nn.Module | Mapping[str, Tensor], path: str | Path) -> Delta:
    """tau = merged - base of the adapter in folder `path`, fp32, exact.

    Given a model, the delta is verified on one probe batch: the model plus delta must give the
    logits of PEFT's own forward within 1e-5 of their largest value (in fp32), else ValueError.
    Given only a mapping of base weights there is nothing to run, and this is left out.
    """
    return _delta(model_or_base, path, merge_adapter)


D = TypeVar("D", bound=Mapping[str, Tensor])


def _delta(
    model_or_base: nn.Module | Mapping[str, Tensor], path: str | Path, merge: Callable[..., D]
) -> D:
    """The adapter's weight change as `merge` gives it, verified where there is a model."""
    check_peft()
    tensors, config = read_adapter(path)
    model = model_or_base if isinstance(model_or_base, nn.Module) else None
    base = dict(model.named_parameters(remove_duplicate=False)) if model else model_or_base
    try:
        tau = merge(tensors, config, base)
    except ValueError as error:
        raise ValueError(f"{error} (adapter {str(path)!r})") from error
    except (TypeError, ZeroDivisionError, AttributeError, KeyError) as error:
        raise ValueError(
            f"adapter: a field of {str(Path(path) / CONFIG)!r} has an unusable value ({error}); "
            "save the adapter again with PEFT"
        ) from error
    if model:
        check_base(model, path)
        verify_delta(model, tau, path)  # type: ignore[arg-type]
    return tau


class PairDelta(NamedTuple):
    """The deltas of two poles of one family, and dW = pos - neg; factors where they have some."""

    family: str
    pos: Mapping[str, Tensor]
    neg: Mapping[str, Tensor]
    dW: Mapping[str, Tensor]


def pair_deltas(model: PreTrainedModel, folder: str | Path) -> PairDelta:
    """The verified deltas of folder/pos and folder/neg, and their difference.

    Those of lora, pissa and delora are kept as factors (`Factored`), which every function of deltas
    takes: 1 % of the memory, and no product is formed before the weights are changed.

    Raises ValueError where the poles are of different families or touch different targets.
    """
    sides = {side: Path(folder) / side for side in ("pos", "neg")}
    configs = {side: read_config(path) for side, path in sides.items()}
    try:
        families = {side: family(config) for side, config in configs.items()}
    except ValueError as error:
        raise ValueError(f"{error} (adapters {str(folder)!r})") from error
    if families["pos"] != families["neg"]:
        raise ValueError(
            f"adapters: pos of {str(folder)!r} is {families['pos']} and neg is {families['neg']}; "
            "train both poles with one family"
        )
    merge = merge_adapter_factored if FAMILIES[families["pos"]].factors else merge_adapter
    pos, neg = (_delta(model, path, merge) for path in sides.values())
    try:
        dW = difference(pos, neg)
    except ValueError as error:
        raise ValueError(f"{error} (pos and neg of {str(folder)!r})") from error
    if norm(dW) == 0:
        raise ValueError(f"adapters: pos and neg of {str(folder)!r} are equal, so dW is zero")
    return PairDelta(families["pos"], pos, neg, dW)


def verify_delta(model: PreTrainedModel, tau: Mapping[str, Tensor], path: str | Path) -> float:
    """max |logits(base + tau) - logits(PEFT)| / max(1, max |logits(PEFT)|); raises above 1e-5.

    A change that is small on that scale must also be met itself, within 1 % of its own largest
    logit, unless it is lost in rounding.
    """
    exact = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    config = PeftConfig.from_pretrained(str(path))
    generator = torch.Generator().manual_seed(0)
    vocab = model.config.get_text_config().vocab_size
    probe = torch.randint(vocab, (2, 24), generator=generator).to(model.device)
    with torch.no_grad():
        base = exact(input_ids=probe, use_cache=False).logits
        with steered(exact, tau, 1.0):
            ours = exact(input_ids=probe, use_cache=False).logits
        with attached(exact, config, lambda m: PeftModel.from_pretrained(m, str(path))) as wrapped:
            theirs = wrapped(input_ids=probe, use_cache=False).logits
    size = theirs.abs().max().clamp(min=1)
    error, change = (float((x - theirs).abs().max() / size) for x in (ours, base))
    if not error <= TOLERANCE or (change > TOLERANCE and error > 0.01 * change + 1e-6):
        raise ValueError(
            f"adapter_delta: logits of base + delta and of PEFT differ by {error:.1e} of their "
            f"largest value for {str(path)!r}; the adapter does not mean what its config says"
        )
    return error


def base_record(model: nn.Module, where: str) -> dict[str, str]:
    """What an adapter was trained on: pattern, dtype and sha256 of the weights it may change."""
    named = {n: p for n, p in model.named_parameters() if n.endswith(".weight")}
    weights = {n: p for n, p in named.items() if re.fullmatch(where, n.removesuffix(".weight"))}
    dtypes = sorted({str(p.dtype) for p in weights.values()})
    return {"weights": where, "dtype": ", ".join(dtypes), "sha256": tensors_sha256(weights)}


def check_base(model: nn.Module, path: str | Path) -> None:
    """Raises ValueError where the adapter's own record names other weights than the model's.

    Adapters without a record pass, and so does a model in another dtype, whose bits say nothing.
    """
    file = Path(path) / BASE
    if not file.is_file():
        return
    try:
        record = json.loads(file.read_text())
        model_record = base_record(model, record["weights"])
        dtype, sha256 = record["dtype"], record["sha256"]
    except (ValueError, TypeError, KeyError, re.error) as error:
        raise ValueError(f"adapter: {str(file)!r} is broken ({error!r}); delete it") from error
    if model_record["dtype"] == dtype and model_record["sha256"] != sha256:
        raise ValueError(
            f"adapter: {str(path)!r} was trained on another base than this model (the weights it "
            "changes have other bits); load the model it was trained on, or train it again"
        )
