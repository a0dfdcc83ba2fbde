"""Coordinates: a pair's dW = tau_pos - tau_neg split along its adapter's own parameterization.

Each split returns {part: delta}, and its parts add up to dW. Sums are taken in float64; a part has
the dtype of the deltas it was made from.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from wscore.delta import Delta, columns, difference, entries, pairs, some
from wscore.families.formulas import block_size, pissa_factors
from wscore.families.merge import by_module, family, merge_adapter, setting
from wscore.sites import site

PARAMETERIZATION = {
    "lora": "low-rank",
    "pissa": "low-rank",
    "delora": "normalised low-rank",
    "dora": "magnitude-direction",
    "oft": "orthogonal",
    "boft": "orthogonal",
    "ia3": "gates",
}
"""adapter family -> what its parameters are"""

_LOW_RANK = ("lora", "pissa", "delora")
_GATES = {"attention": "self_attn", "mlp": "mlp"}
_ROWS = ("lora_A.weight", "lora_A_init.weight", "delora_A")
_COLUMNS = ("lora_B.weight", "lora_B_init.weight", "delora_B")

Polar = tuple[Float[Tensor, "*size"], Float[Tensor, "d_out d_in"]]


def family_coordinates(
    pos_tensors: Mapping[str, Tensor],
    pos_config: Mapping[str, Any],
    neg_tensors: Mapping[str, Tensor],
    neg_config: Mapping[str, Any],
    base: Mapping[str, Tensor],
) -> dict[str, dict[str, Delta]]:
    """{coordinate system: {part: delta}} of the pair's family; the parts of each add up to dW.

    lora, pissa  rank                 component_0, component_1, ..
    delora       rank, and
                 lambda_direction     lambda, direction
    dora         magnitude_direction  magnitude, direction
    oft, boft    rotation             rotation, rest, within the adapter's own blocks
    ia3          gates                attention, mlp

    Tensors, configs and base are those of `merge_adapter`. Raises ValueError as it does, and where
    the poles are of two families or touch different targets.
    """
    kind = _one_family(pos_config, neg_config)
    adapters, found = (pos_tensors, neg_tensors), {}
    if kind in _LOW_RANK:
        found["rank"] = rank_components(*adapters, pos_config, neg_config, base)
    if kind in ("lora", "pissa"):
        return found
    pos = merge_adapter(pos_tensors, pos_config, base)
    neg = merge_adapter(neg_tensors, neg_config, base)
    if kind == "delora":
        return found | {"lambda_direction": scale_direction(pos, neg, *adapters)}
    if kind == "dora":
        return {"magnitude_direction": magnitude_direction(pos, neg, base)}
    dW = difference(pos, neg)
    if kind == "ia3":
        return {"gates": gates(dW)}
    sizes = [rotation_blocks(adapter, kind, base) for adapter in adapters]
    block = {name: math.lcm(*(size[name] for size in sizes)) for name in dW}
    return {"rotation": rotation_rest(dW, base, block)}


def _one_family(pos_config: Mapping[str, Any], neg_config: Mapping[str, Any]) -> str:
    kinds = family(pos_config), family(neg_config)
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"coordinates: pos is {kinds[0]} and neg is {kinds[1]}, which share no"
            " parameterization; train both poles with one family"
        )
    return kinds[0]


# Rank-one terms: lora, pissa, delora


def rank_components(
    pos: Mapping[str, Tensor],
    neg: Mapping[str, Tensor],
    config_pos: Mapping[str, Any],
    config_neg: Mapping[str, Any],
    base: Mapping[str, Tensor],
) -> dict[str, Delta]:
    """component_i = the i-th term of tau_pos - the i-th term of tau_neg, for checkpoints pos, neg:

    lora    s b_i a_i, with a_i rows of A and b_i columns of B
    pissa   s (b_i a_i - b0_i a0_i), where a common init cancels between pos and neg
    delora  (lambda/r) b_i a_i diag(w) / (|b_i| |a_i|)

    i runs from 0 to the largest rank of any module; a module without term i has zeros there. The
    terms are the checkpoint's, not dW's: B A = (B G)(G^-1 A) for any invertible G, and term i of
    pos and of neg belong together only where both started from one init.

    Each component has all entries of dW; for one at a time see `rank_one`. Raises ValueError for
    other families, and as `merge_adapter` and `difference` do.
    """
    _one_family(config_pos, config_neg)
    sides = [(pos, config_pos), (neg, config_neg)]
    for adapter, config in sides:
        _check_low_rank(config)
        merge_adapter(adapter, config, base)  # refuses tensors that are not what the config says
    sides = [(_with_init(adapter, config, base), config) for adapter, config in sides]
    ranks = [len(A) for adapter, _ in sides for key, A in adapter.items() if key.endswith(_ROWS)]
    return {
        f"component_{i}": difference(*(merge_adapter(*rank_one(*s, base, i), base) for s in sides))
        for i in range(max(ranks))
    }


def rank_one(
    adapter: Mapping[str, Tensor], config: Mapping[str, Any], base: Mapping[str, Tensor], i: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config) of a rank-one checkpoint: term i of a lora, pissa or delora checkpoint.

    Row i of A and column i of B, zero past a module's rank, at the scale s or lambda/r of the
    whole: merge_adapter(*rank_one(adapter, config, base, i), base) over all i adds up to
    merge_adapter(adapter, config, base).
    """
    kind, tensors, scales = _check_low_rank(config), {}, {}
    for module, stored in by_module(_with_init(adapter, config, base), kind, set(base)).items():
        if kind == "delora":
            r = setting(config, "r", "rank_pattern", module)
            stored["delora_lambda"] = stored["delora_lambda"].double() / r
        else:
            scales["^" + re.escape(module)] = _lora_scale(config, module)
        tensors |= {f"{module}.{suffix}": _term(suffix, t, i) for suffix, t in stored.items()}
    return tensors, {**config, "r": 1, "rank_pattern": {}, "alpha_pattern": scales}


def _check_low_rank(config: Mapping[str, Any]) -> str:
    if (kind := family(config)) not in _LOW_RANK:
        raise ValueError(
            f"rank_components: the adapter is {kind} ({PARAMETERIZATION[kind]}), no sum of rank-one"
            f" terms; use one of {', '.join(_LOW_RANK)}, or family_coordinates"
        )
    return kind


def _term(suffix: str, tensor: Tensor, i: int) -> Tensor:
    """What term i needs of a checkpoint tensor: a row or column as a matrix, or all of it."""
    if suffix not in _ROWS + _COLUMNS:
        return tensor
    axis = int(suffix in _COLUMNS)
    if not 0 <= i < tensor.shape[axis]:
        return torch.zeros_like(tensor.narrow(axis, 0, 1))
    return tensor.narrow(axis, i, 1)


def _lora_scale(config: Mapping[str, Any], module: str) -> float:
    r = setting(config, "r", "rank_pattern", module)
    alpha = setting(config, "lora_alpha", "alpha_pattern", module)
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _with_init(
    adapter: Mapping[str, Tensor], config: Mapping[str, Any], base: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """The adapter, with the initial factors of a pissa that did not store them."""
    if family(config) != "pissa":
        return adapter
    factors = {}
    for module, stored in by_module(adapter, "pissa", set(base)).items():
        if not stored.keys() & {"lora_A_init.weight", "lora_B_init.weight"}:
            W, r = base[f"{module}.weight"].float(), len(stored["lora_A.weight"])  # as merge does
            A0, B0 = pissa_factors(W, r, _lora_scale(config, module))
            factors |= {f"{module}.lora_A_init.weight": A0, f"{module}.lora_B_init.weight": B0}
    return {**adapter, **factors}


# Size and direction: dora, delora


def magnitude_direction(
    pos: Mapping[str, Tensor], neg: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> dict[str, Delta]:
    """dW = (m+ - m-)(u+ + u-)/2 + (m+ + m-)/2 (u+ - u-): parts "magnitude" and "direction".

    W0 + tau = m u with m the norms of the rows and u unit rows, for DoRA its own |m| and V/|V| (Liu
    et al. 2024, arXiv 2402.09353); a zero row has u = 0. The parts are orthogonal, row by row,
    where neither pole has a zero row. A bias counts as rows of one entry.
    """
    parts: dict[str, Delta] = {"magnitude": {}, "direction": {}}
    for name, p, n in _same_targets(pos, neg):
        W = _weight(base, name, p)
        _put(parts, name, p, *_product_rule(_polar(W + _float64(p)), _polar(W + _float64(n))))
    return parts


def scale_direction(
    pos: Mapping[str, Tensor],
    neg: Mapping[str, Tensor],
    adapter_pos: Mapping[str, Tensor],
    adapter_neg: Mapping[str, Tensor],
) -> dict[str, Delta]:
    """dW = (l+ - l-)(D+ + D-)/2 + (l+ + l-)/2 (D+ - D-): parts "lambda" and "direction".

    tau = l D with l the lambda of a DeLoRA module, read from `<module>.delora_lambda` of the
    adapter (Bini, Girrbach & Akata 2025, arXiv 2503.18225); l = 0 has tau = 0 and here D = 0.
    """
    parts: dict[str, Delta] = {"lambda": {}, "direction": {}}
    for name, p, n in _same_targets(pos, neg):
        split = _product_rule(_scaled(name, p, adapter_pos), _scaled(name, n, adapter_neg))
        _put(parts, name, p, *split)
    return parts


def _product_rule(pos: Polar, neg: Polar) -> tuple[Tensor, Tensor]:
    """x+ y+ - x- y- in two parts: what the change of x makes, what the change of y makes."""
    (x_pos, y_pos), (x_neg, y_neg) = pos, neg
    return (x_pos - x_neg) * (y_pos + y_neg) / 2, (x_pos + x_neg) / 2 * (y_pos - y_neg)


def _polar(W: Float[Tensor, "d_out d_in"]) -> Polar:
    """(m, u): the norms of the rows as a column, and the unit rows; 0 and 0 for a zero row."""
    m = W.norm(dim=1, keepdim=True)
    return m, W / torch.where(m == 0, 1, m)


def _scaled(name: str, tau: Tensor, adapter: Mapping[str, Tensor]) -> Polar:
    """(l, D) with tau = l D."""
    key = f"{name.removesuffix('.weight')}.delora_lambda"
    found = [adapter[k] for k in (key, f"base_model.model.{key}") if k in adapter]
    if len(found) != 1 or (not found[0].any() and tau.any()):
        raise ValueError(
            f"scale_direction: {name!r} changes and its lambda in the adapter is"
            f" {[t.tolist() for t in found]}; pass the DeLoRA checkpoint this delta was merged from"
        )
    lam = found[0].to(tau.device, torch.float64)
    return lam, _float64(tau) / torch.where(lam == 0, 1, lam)


# Rotation: oft, boft


def rotation_rest(
    d: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    block: int | Mapping[str, int] | None = None,
) -> dict[str, Delta]:
    """dW = (W0 R^T - W0) + rest, R = argmin |W0 R^T - (W0 + dW)|_F: parts "rotation" and "rest".

    R runs over the orthogonal maps of the input side (reflections too), or with `block` over
    diag(R_1 .. R_k) with blocks of that size, one for all or one per name. Per block, with columns
    W of W0 and T of W0 + dW, R^T is the orthogonal polar factor of W^T T (Schoenemann 1966,
    Psychometrika 31). Where d_out is below the block size, W = L Q^T and T = L' Q'^T reduce that to
    a d_out x d_out SVD. R is unique only on the row space of W, which is all that W R^T sees; W R^T
    is unique where W^T T has the rank of W, as for every dW with |dW|_2 below W's smallest non-zero
    singular value and W of full rank. A bias has no input side: it is all rest.

    How much a rotation takes of any dW: for a random one, small beside W0, its expected share of
    |dW|^2 is the orbit's dimension over the entries', m (2b - m - 1) / (2 b d_out) with block size
    b and m = min(b, d_out): about 1/2 for a square weight with b = d_in and nearly all for a wide
    one, but (b - 1) / (2 d_out) for small blocks. Use the adapter's own blocks (`rotation_blocks`)
    to ask what an OFT or BOFT did by rotation, and a norm-matched random dW as the control.
    """
    parts: dict[str, Delta] = {"rotation": {}, "rest": {}}
    for name, w in entries(d):
        W = _weight(base, name, w)
        rotation = (
            torch.zeros_like(W) if w.ndim == 1 else _rotation(name, W, W + _float64(w), block)
        )
        _put(parts, name, w, rotation, _float64(w) - rotation)
    return parts


def _rotation(
    name: str,
    W: Float[Tensor, "d_out d_in"],
    T: Float[Tensor, "d_out d_in"],
    block: int | Mapping[str, int] | None,
) -> Float[Tensor, "d_out d_in"]:
    """W R^T - W for the best block-diagonal R."""
    b = block.get(name, 0) if isinstance(block, Mapping) else W.shape[1] if block is None else block
    if b < 1 or W.shape[1] % b:
        raise ValueError(
            f"rotation_rest: {name!r} has {W.shape[1]} inputs, and its block size is {b}; pass a"
            " divisor of the inputs for every name, or None for one block"
        )
    W, T = (rearrange(x, "d_out (k b) -> k d_out b", b=b) for x in (W, T))
    return rearrange(_nearest(W, T) - W, "k d_out b -> d_out (k b)")


def _nearest(W: Float[Tensor, "k d_out b"], T: Float[Tensor, "k d_out b"]) -> Tensor:
    """W R^T, block by block, that is nearest to T."""
    if W.shape[1] >= W.shape[2]:
        X, _, Y = torch.linalg.svd(W.mT @ T)
        return W @ X @ Y
    Q, L = torch.linalg.qr(W.mT)
    P, M = torch.linalg.qr(T.mT)
    X, _, Y = torch.linalg.svd(L @ M.mT)
    return L.mT @ X @ Y @ P.mT


def rotation_blocks(
    adapter: Mapping[str, Tensor], kind: str, base: Mapping[str, Tensor]
) -> dict[str, int]:
    """name -> size of the diagonal blocks of R in an oft or boft checkpoint.

    OFT's own b, from its b(b-1)/2 parameters per block; for BOFT b 2^(n-1), the run of inputs that
    its n butterfly factors mix.
    """
    sizes = {}
    for module, stored in by_module(adapter, kind, set(base)).items():
        if kind == "oft":
            b = block_size(stored["oft_R.weight"].shape[-1])
        else:
            n, _, _, b = stored["boft_R"].shape
            b *= 2 ** (n - 1)
        sizes[f"{module}.weight"] = b
    return sizes


# Gates: ia3


def gates(d: Mapping[str, Tensor]) -> dict[str, Delta]:
    """dW's entries in self_attn and those in mlp: parts "attention" and "mlp".

    As with `select`, a part holds its own entries only, shared with d and not copied; `add` of the
    two is d. Raises ValueError where one is empty or an entry is in neither.
    """
    at = {name: site(name).block.split(".")[0] for name in d}
    if set(at.values()) != set(_GATES.values()):
        raise ValueError(
            f"gates: {some(d)} lie in blocks {sorted(set(at.values()))}, and the split is of"
            " self_attn from mlp; pass a delta with entries in both and in no other"
        )
    return {part: {n: d[n] for n in d if at[n] == block} for part, block in _GATES.items()}


# Shared by the splits


def _float64(w: Float[Tensor, "..."]) -> Float[Tensor, "d_out d_in"]:
    """An entry as a float64 matrix."""
    return columns(w).double()


def _same_targets(
    pos: Mapping[str, Tensor], neg: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, pos[name], neg[name]), refused unless both have the same names."""
    if odd := set(pos) ^ set(neg):
        raise ValueError(
            f"coordinates: {some(odd)} in one pole only; train both on the same target_modules"
        )
    return pairs(pos, neg)


def _weight(base: Mapping[str, Tensor], name: str, like: Tensor) -> Float[Tensor, "d_out d_in"]:
    """base[name] as a float64 matrix on like's device."""
    found = list(base[name].shape) if name in base else "absent"
    if found != list(like.shape):
        raise ValueError(
            f"coordinates: {name!r} is {list(like.shape)} in the delta and {found} in the base;"
            " pass the weights of the model that the adapters were trained on"
        )
    return _float64(base[name].to(like.device))


def _put(parts: dict[str, Delta], name: str, like: Tensor, *split: Tensor) -> None:
    """Store each part of one entry, in the entry's shape and dtype."""
    for part, w in zip(parts.values(), split, strict=True):
        part[name] = w.reshape(like.shape).to(like.dtype)
