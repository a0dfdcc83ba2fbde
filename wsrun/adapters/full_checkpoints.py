"""Full checkpoints: the change of every weight between a base and a model tuned from it.

tau = W_tuned - W_base, one tensor at a time, in fp32
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from wscore.entries import format_keys
from wscore.factored import OnDemand
from wscore.files import quoted, read_json, refusing

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
HALF = {"F16": torch.float16, "BF16": torch.bfloat16}
FLOATS = {"F32": torch.float32, "F64": torch.float64, **HALF}
EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight")
REMEDY = "copy it again or save it again"
BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")  # of older checkpoints


class Stored(NamedTuple):
    """One tensor of a model: how to read it, its shape, its stored type."""

    read: Callable[[], Tensor]
    shape: tuple[int, ...]
    dtype: torch.dtype


Weights = Mapping[str, Stored]


class Rounding(NamedTuple):
    """What rounding the tuned weights to their stored type puts into W_tuned - W_base.

    share: sqrt(sum u^2 / 12) / |dW|, of errors spread evenly over the spacing u of the type at each
    weight; an estimate, and of 1 or more it says that rounding alone explains the difference.
    unchanged: the share of entries that are equal on both sides.
    """

    share: float
    unchanged: float


class CheckpointDelta(OnDemand):
    """W_tuned - W_base in fp32 of every parameter, two tensors read at each access."""

    def __init__(self, base: Weights, tuned: Weights, what: str):
        self._base, self._tuned, self._what = base, tuned, what
        self._names = dict.fromkeys(base)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(name)
        base, tuned = (side[name].read() for side in (self._base, self._tuned))
        dtype = torch.promote_types(torch.promote_types(base.dtype, tuned.dtype), torch.float32)
        change = (tuned.to(dtype) - base.to(tuned.device, dtype)).float()
        if not bool(change.isfinite().all()):
            raise ValueError(f"{self._what}: {quoted(name)} changes by NaN or inf; check both")
        return change

    def _meta(self, name: str) -> Tensor:
        return torch.empty(self._base[name].shape, dtype=torch.float32, device="meta")

    @property
    def rounded(self) -> bool:
        """Whether a weight is stored in half precision on either side."""
        halves = HALF.values()
        return any(side[n].dtype in halves for side in (self._base, self._tuned) for n in self)

    def rounding(self) -> Rounding:
        """The share of |dW| that rounding to the stored types explains, read tensor by tensor."""
        noise = size = equal = count = 0.0
        for name in self:
            change, tuned = self[name].double(), self._tuned[name]
            size += float(change.square().sum())
            noise += _noise(tuned.read(), tuned.dtype)
            equal, count = equal + float((change == 0).sum()), count + change.numel()
        return Rounding((noise / size) ** 0.5, equal / count)


def _noise(w: Tensor, dtype: torch.dtype) -> float:
    """sum u^2 / 12 over the entries of w, u = 2^floor(log2 |w|) eps; 0 for whole precision."""
    if dtype not in HALF.values():
        return 0.0
    _, exponent = torch.frexp(w[w != 0].double())
    spacing = torch.finfo(dtype).eps * torch.exp2(exponent.double() - 1)
    return float(spacing.square().sum()) / 12


def checkpoint_delta(
    base: str | Path | nn.Module,
    tuned: str | Path,
    *,
    names: Callable[[str], bool] = lambda name: True,
    rounded: bool = False,
) -> CheckpointDelta:
    """tau = W_tuned - W_base of two full checkpoints, one tensor pair in memory at a time.

    Both are folders with model.safetensors or its shards, or `base` is a loaded model. Every
    parameter that `names` takes is an entry, also one that did not change. A tied lm_head has no
    entry of its own, as in model.named_parameters(). Float32 is exact up to one rounding. The
    difference of weights stored in half precision carries their rounding, of the size of the change
    itself for small changes, and is refused unless rounded=True; `.rounding()` of what comes back
    says how much of it rounding alone explains.

    Raises ValueError for checkpoints with other names or shapes, quantised or missing tensors,
    pickles, and equal ones.
    """
    what = f"checkpoint_delta: {quoted(str(tuned), 200)}"
    ours = _of_model(base) if isinstance(base, nn.Module) else _stored(Path(base))
    theirs = _stored(Path(tuned))
    ours, theirs = _untied(ours, theirs), _untied(theirs, ours)
    _check_fit(what, ours, theirs)
    taken = {name: ours[name] for name in sorted(ours) if names(name)}
    if not taken:
        raise ValueError(f"{what}: `names` takes none of {format_keys(ours)}; take one or more")
    delta = CheckpointDelta(taken, theirs, what)
    if delta.rounded and not rounded:
        raise ValueError(
            f"{what}: weights are stored in half precision on one side or both, so their difference"
            " carries rounding; give float32 checkpoints or the adapter, or pass rounded=True and"
            " look at .rounding()"
        )
    if not any(bool(delta[name].any()) for name in delta):
        raise ValueError(f"{what}: no weight differs from the base's; give the tuned checkpoint")
    return delta


def _of_model(model: nn.Module) -> Weights:
    named = dict(model.named_parameters())
    if odd := [name for name, p in named.items() if not p.is_floating_point()]:
        raise ValueError(
            f"checkpoint_delta: {format_keys(odd)} of the model are no floating numbers; load it"
            " without quantisation"
        )
    return {n: Stored(lambda p=p: p.detach(), tuple(p.shape), p.dtype) for n, p in named.items()}


def _stored(folder: Path) -> Weights:
    """The tensors of a checkpoint folder by name, none of them read."""
    found: dict[str, Stored] = {}
    for path, promised in _files(folder).items():
        what = f"checkpoint_delta: {quoted(str(path), 200)}"
        with refusing(f"{what} is not a whole safetensors file", REMEDY, OSError, SafetensorError):
            file = safe_open(path, framework="pt", backend="pread")
            slices = {name: file.get_slice(name) for name in file.keys()}
            at = {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
        if promised and set(at) != promised:
            odd = format_keys(set(at) ^ promised)
            raise ValueError(f"{what} and its index differ in {odd}; {REMEDY}")
        at = {name: x for name, x in at.items() if not name.endswith(BUFFERS)}
        if odd := [name for name, (_, code) in at.items() if code not in FLOATS]:
            kinds = ", ".join(sorted({at[name][1] for name in odd}))
            raise ValueError(
                f"{what}: {format_keys(odd)} are stored as {kinds}; give a checkpoint that is not"
                " quantised"
            )
        for name, (shape, code) in at.items():
            found[name] = Stored(_reader(file, name, what), shape, FLOATS[code])
    if not found:
        raise ValueError(f"checkpoint_delta: {quoted(str(folder), 200)} holds no weights; {REMEDY}")
    return found


def _reader(file, name: str, what: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        with refusing(f"{what}: {quoted(name)} is unreadable", REMEDY, OSError, SafetensorError):
            return file.get_tensor(name)

    return read


def _files(folder: Path) -> dict[Path, set[str]]:
    """The safetensors files of a folder, and the tensors that the index promises in each."""
    where = quoted(str(folder), 200)
    with refusing(f"checkpoint_delta: {where} cannot be read", "give a folder", OSError):
        if not folder.is_dir():
            raise ValueError(f"checkpoint_delta: {where} is no folder; give a full checkpoint's")
        present = {path.name for path in folder.iterdir()}
    if INDEX in present:
        return _shards(folder, present)
    if ONE in present:
        return {folder / ONE: set()}
    pickles = any(name.endswith((".bin", ".pt", ".pth")) for name in present)
    adapter = "adapter_config.json" in present
    remedy = (
        "it is an adapter, so call adapter_delta" if adapter else
        "save the model with safe_serialization=True, pickles are not read" if pickles else
        "give a full checkpoint"
    )  # fmt: skip
    raise ValueError(f"checkpoint_delta: {where} has no {ONE} or {INDEX}; {remedy}")


def _shards(folder: Path, present: set[str]) -> dict[Path, set[str]]:
    what = f"checkpoint_delta: {quoted(str(folder / INDEX), 200)}"
    index = read_json(folder / INDEX)
    by_name = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(by_name, dict) or not all(isinstance(v, str) for v in by_name.values()):
        raise ValueError(f"{what} has no weight_map of names and files; {REMEDY}")
    if lacking := set(by_name.values()) - present:
        raise ValueError(
            f"{what} names {format_keys(lacking)} that are not in the folder; {REMEDY}"
        )
    shards: dict[Path, set[str]] = {}
    for name, shard in by_name.items():
        shards.setdefault(folder / shard, set()).add(name)
    return shards


def _untied(weights: Weights, other: Weights) -> dict[str, Stored]:
    """Without an lm_head that is tied: equal to the embedding on every side that stores it."""
    tied = [head for head in weights if head.endswith("lm_head.weight") if _tied(head, weights)]
    return {
        n: w for n, w in weights.items() if n not in tied or (n in other and not _tied(n, other))
    }


def _tied(head: str, weights: Weights) -> bool:
    prefix = head.removesuffix("lm_head.weight")
    places = (prefix + name for name in EMBEDDINGS if prefix + name in weights)
    return any(torch.equal(weights[name].read(), weights[head].read()) for name in places)


def _check_fit(what: str, base: Weights, tuned: Weights) -> None:
    for side, only in (("base", set(base) - set(tuned)), ("tuned", set(tuned) - set(base))):
        if only:
            raise ValueError(
                f"{what}: {format_keys(only)} only in the {side} checkpoint; give the very base"
                " that it was tuned from, saved the same way"
            )
    for name in sorted(base):
        shapes = base[name].shape, tuned[name].shape
        if shapes[0] != shapes[1]:
            grown = shapes[0][1:] == shapes[1][1:] and ("embed" in name or "head" in name)
            remedy = (
                "the tuning resized the vocabulary: cut the added rows off and save it again"
                if grown else "give the very base that it was tuned from"
            )  # fmt: skip
            raise ValueError(
                f"{what}: {quoted(name)} is {list(shapes[0])} in the base and {list(shapes[1])} in"
                f" the tuned checkpoint; {remedy}"
            )
        if len(shapes[0]) not in (1, 2):
            raise ValueError(
                f"{what}: {quoted(name)} has shape {list(shapes[0])}, and a delta is of matrices"
                " and vectors; this kind of model is not read"
            )
