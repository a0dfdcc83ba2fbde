"""A steered model as a folder of plain weights, written tensor by tensor from the base's files."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from wscore import tensors_sha256
from wscore.entries import format_keys, whole
from wscore.factored import Factors
from wscore.files import quoted, refusing
from wscore.hashes import blocks_sha256
from wsrun.adapters.folders import replace_folder
from wsrun.export.record import Base, Card, check_export, check_same_base, write_export
from wsrun.export.shards import CODES, FLOATS, Planned, Stored, stored_tensors, write_shards
from wsrun.models.checkpoint import (
    COPY_ANEW,
    check_config,
    check_counts,
    check_sizes,
    outline,
    own_name,
    read_headers,
    weight_files,
)
from wsrun.models.load import DTYPES, files_folder, model_folder
from wsrun.steer.weights import term, touched_parameters, weight_sum

WHO = "save_merged"
CONFIG = "config.json"
SHARD = 5 * 10**9
BESIDE = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "spiece.model", "sentencepiece*", "chat_template*", "additional_chat_templates",
    "generation_config.json", "*processor_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
"""what is copied from the base's folder; no code, no other weights"""


def save_merged(
    base: str | Path,
    delta: Mapping[str, Tensor],
    alpha: float,
    out: str | Path,
    *,
    dtype: str | None = None,
    shard_size: int = SHARD,
    about: Mapping[str, Any] = {},
) -> Path:
    """Write W' = cast(W0 + alpha dW) as a folder that `from_pretrained` loads; returns `out`.

    base: what `load_model` takes: a folder, a GGUF file, or a hub's name whose files are cached.
    The sum is that of `steered`, taken from the stored weights and cast once, to `dtype` or, by
    default, to what each is stored in: so in float32 the logits are those of `steered` bit for bit.
    A weight that is tied stays tied. Blocks of rows are read, changed and written, in shards of at
    most `shard_size` bytes. The folder is put in place whole. Raises ValueError for a delta of
    another base, an alpha of 0, quantised weights, weights that overflow the type, and an `out`
    that holds something else or the base itself.
    """
    alpha, shard_size = check_export(WHO, out, alpha, about), whole(shard_size, "shard_size", 1)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"{WHO}: dtype must be one of {sorted(DTYPES)}, got {quoted(dtype)}")
    source = _read(base)
    if source.folder.resolve().is_relative_to(Path(out).resolve()):
        raise ValueError(f"{WHO}: {str(out)!r} holds the base itself; name another folder")
    changed = _changed(source, delta)
    check_same_base(WHO, delta, source.base.sha256, *_as_float32(source, delta))
    to = DTYPES[dtype] if dtype else None
    merge = _Merge(delta, alpha, to)
    planned = {n: merge.planned(x, changed.get(n)) for n, x in source.tensors.items()}

    def write(new: Path) -> None:
        files = write_shards(new, planned, shard_size)
        _write_config(source.folder / CONFIG, new / CONFIG, dtype)
        _copy_beside(source.folder, new)
        types = sorted({x.code for x in planned.values()})
        more = {"dtype": ", ".join(types), "weight_files": len(files), **merge.rounding()}
        sha256, card = tensors_sha256(delta), _card(alpha, merge)
        write_export(new, "merged", source.base, sha256, alpha, card, about, **more)

    return replace_folder(out, write)


@dataclass
class _Source:
    """The base's files: its tensors, what the model calls them, and the model without memory."""

    folder: Path
    tensors: dict[str, Stored]
    parameters: dict[str, str]
    model: Any
    base: Base


def _read(base: str | Path) -> _Source:
    folder = files_folder(model_folder(base))
    config = check_config(folder)
    if config.get("quantization_config"):
        raise ValueError(f"{WHO}: {str(base)!r} is quantised; give the weights it was made from")
    headers = read_headers(folder, config)
    check_counts(folder, config, headers)
    tensors = stored_tensors(weight_files(folder, config))
    with refusing(f"{WHO}: {str(base)!r} has an unusable {CONFIG}", COPY_ANEW, Exception):
        parsed = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    check_sizes(folder, parsed, headers)
    if (model := outline(parsed)) is None:
        raise ValueError(
            f"{WHO}: {str(base)!r} is of an architecture whose names of weights are not known; "
            "export a LoRA"
        )
    model.tie_weights()  # by identity, as in a loaded model
    parameters = _parameters(tensors, model)
    codes = ", ".join(sorted({str(FLOATS[x.code]) for x in tensors.values() if x.code in FLOATS}))
    made = Base(str(base), codes, _sha256(tensors, parameters))
    return _Source(folder, tensors, parameters, model, made)


def _parameters(tensors: Mapping[str, Stored], model: Any) -> dict[str, str]:
    """stored tensor -> the parameter it goes into, the first name of one that is tied."""
    first = {id(p): name for name, p in model.named_parameters()}
    holders = dict(model.named_parameters(remove_duplicate=False))
    own = {name: own_name(name, holders, model) for name in tensors}
    return {name: first[id(holders[x])] for name, x in own.items() if x in holders}


def _sha256(
    tensors: Mapping[str, Stored], parameters: Mapping[str, str], to: torch.dtype | None = None
) -> str:
    """`tensors_sha256` of the loaded model's parameters, in the stored types or in `to`."""
    own = {parameters.get(name, name): x for name, x in tensors.items() if x.code in FLOATS}
    read = ((n, own[n], to or FLOATS[own[n].code]) for n in sorted(own))
    return blocks_sha256((n, dtype, x.shape, _as(x, dtype)) for n, x, dtype in read)


def _as(stored: Stored, to: torch.dtype) -> Iterator[Tensor]:
    return (block.to(to) for _, block in stored.blocks())


def _as_float32(source: _Source, delta: Mapping[str, Tensor]) -> list[str]:
    """The hash that a training on the model loaded as float32 records, where one is recorded."""
    recorded = getattr(delta, "meta", {}).get("base")
    if not recorded or recorded == source.base.sha256:
        return []
    return [_sha256(source.tensors, source.parameters, torch.float32)]


def _changed(source: _Source, delta: Mapping[str, Tensor]) -> dict[str, str]:
    """stored tensor -> entry of the delta; both of a tied pair where both are stored."""
    params = touched_parameters(source.model, delta, WHO)
    first = {id(p): name for name, p in source.model.named_parameters()}
    entry = {first[id(p)]: name for name, p in params.items()}
    found = {name: entry[own] for name, own in source.parameters.items() if own in entry}
    if lacking := set(delta) - set(found.values()):
        raise ValueError(
            f"{WHO}: {format_keys(lacking)} of the delta are stored otherwise in the weight files "
            "of the base (several in one, or one in several); save the base again with "
            "save_pretrained"
        )
    if odd := [name for name in found if source.tensors[name].code not in FLOATS]:
        raise ValueError(
            f"{WHO}: {format_keys(odd)} of the base are stored as {source.tensors[odd[0]].code}; "
            "give weights that are not quantised"
        )
    return found


@dataclass
class _Merge:
    """cast(W0 + alpha dW) block by block, and what the cast leaves of alpha dW."""

    delta: Mapping[str, Tensor]
    alpha: float
    to: torch.dtype | None
    sums: dict[str, float] = field(default_factory=lambda: dict(wanted=0.0, got=0.0, both=0.0))

    def planned(self, x: Stored, entry: str | None) -> Planned:
        """What is written for one stored tensor."""
        dtype = FLOATS.get(x.code)
        to = self.to or dtype
        if dtype is None or to is None:
            return Planned(x.code, x.shape, x.nbytes, (block for _, block in x.blocks()))
        blocks = self._steered(x, entry, to) if entry else _as(x, to)
        each = to.itemsize * torch.Size(x.shape).numel()
        return Planned(CODES[to], x.shape, each, blocks)

    def _steered(self, x: Stored, entry: str, to: torch.dtype) -> Iterator[Tensor]:
        """As `weight_sum` of the whole: row by row for a tensor, at once for a product L R."""
        change = term(self.delta, entry)
        if isinstance(change, Factors):
            yield self._cast(torch.cat([b for _, b in x.blocks()]), change, entry, to)
            return
        for rows, block in x.blocks():
            yield self._cast(block, change[rows], entry, to)

    def _cast(self, W: Tensor, change: Any, entry: str, to: torch.dtype) -> Tensor:
        total = weight_sum(W, ((self.alpha, change),))
        cast = total.to(to)
        if not bool(cast.isfinite().all()):
            raise ValueError(
                f"{WHO}: {quoted(entry)} has NaN, or numbers too large for {to}, after the change; "
                "give a smaller alpha or another dtype"
            )
        if to in (torch.float16, torch.bfloat16):
            wanted, got = total - W, cast.to(total.dtype) - W
            products = {"wanted": wanted * wanted, "got": got * got, "both": wanted * got}
            for key, product in products.items():
                self.sums[key] += float(product.sum(dtype=torch.float64))
        return cast

    def rounding(self) -> dict[str, float]:
        """|realised| / |alpha dW| and the cosine of both, of weights stored in half precision."""
        s = self.sums
        if not s["wanted"]:
            return {}
        cosine = s["both"] / (s["wanted"] * s["got"]) ** 0.5 if s["got"] else 0.0
        return {"norm_ratio": (s["got"] / s["wanted"]) ** 0.5, "cosine": cosine}


def _write_config(source: Path, out: Path, dtype: str | None) -> None:
    """config.json as it is, but for the type and the name of the weights."""
    config = json.loads(source.read_text(encoding="utf-8"))
    config.pop("transformers_weights", None)
    if dtype:
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    out.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _copy_beside(folder: Path, new: Path) -> None:
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in BESIDE):
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, new / path.name)


def _card(alpha: float, merge: _Merge) -> Card:
    left = merge.rounding()
    lost = (
        f"Of alpha dW, half precision realises {left['norm_ratio']:.1%} of the norm, at cosine "
        f"{left['cosine']:.3f}." if left else "Exact: the weights that steering gives, bit for bit."
    )  # fmt: skip
    return Card(
        f"The base with alpha = {alpha:g} times the weight change added: W' = cast(W + alpha dW).",
        "    from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "    model = AutoModelForCausalLM.from_pretrained(folder, dtype='auto')\n"
        "    tok = AutoTokenizer.from_pretrained(folder)",
        (lost, "alpha cannot be changed any more; export a LoRA for that."),
    )
