"""Singular values of deltas: a rank-revealing SVD, and bands of singular directions.

A trained delta is often far below full rank (a pair of rank-32 LoRAs differs by rank 64), and a
randomized range finder then replaces the full SVD at a few percent of its cost.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any, Literal, NamedTuple

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from wscore.delta import Delta, finite, length
from wscore.entries import allowed, columns, entry, format_keys, nonempty, weight
from wscore.factored import Factored, Factors, core, meta, stack
from wscore.files import quoted, reason

TOL = 1e-6
"""Relative to |W|_F; about ten times what float32 rounding leaves of an exact low rank."""
_SKETCH = 48  # half as much again as 32, so that ranks 32, 64, 128 ... are met without a doubling
_PROBES = 16  # held-out columns: the residual estimate has a relative sd of at most sqrt(2/16)


class SVD(NamedTuple):
    """W = U diag(S) Vt over the numerically non-zero singular values, largest first."""

    U: Float[Tensor, "d_out r"]
    S: Float[Tensor, " r"]
    Vt: Float[Tensor, "r d_in"]


def find_range(W: Float[Tensor, "d_out d_in"], tol: float = TOL) -> Float[Tensor, "d_out s"] | None:
    """Orthonormal Q with |W - Q Q^T W|_F <= tol |W|_F, or None where no narrow Q will do.

    Halko, Martinsson & Tropp 2011 (arXiv 0909.4061), algorithm 4.2 in blocks: Q spans W Omega for a
    Gaussian Omega, and held-out columns of W Omega estimate the residual (E |R omega|^2 = |R|_F^2).
    Each new block is orthogonal to those before it, so rounding in one is caught by the next.
    """
    random = torch.Generator().manual_seed(0)

    def sample(k: int) -> Float[Tensor, "d_out k"]:
        omega = torch.randn(W.shape[1], k, generator=random, dtype=W.dtype).to(W.device)
        return einsum(W, omega, "d_out d_in, d_in k -> d_out k")

    size, probes, Q = length(W), sample(_PROBES), W.new_zeros(W.shape[0], 0)
    finite("svd: |W|", size)
    if size == 0:
        return Q
    while 3 * max(_SKETCH, Q.shape[1]) <= min(W.shape):
        fresh = sample(max(_SKETCH, Q.shape[1]))
        fresh = fresh - Q @ (Q.T @ fresh)
        Q = torch.linalg.qr(torch.cat([Q, fresh / fresh.abs().max()], 1)).Q
        if length(probes - Q @ (Q.T @ probes)) / _PROBES**0.5 <= tol * size:
            return Q
    return None


def svd(W: Float[Tensor, "d_out d_in"], tol: float = TOL) -> SVD:
    """W = U diag(S) Vt with every s_i > tol |W|_F; rank 0 for a zero matrix.

    The number of triplets is the numerical rank, exactly r for a product of rank r. With Q from
    `find_range`, W = Q (Q^T W) up to tol, and Q^T W is small enough for an exact SVD; without Q
    (the rank is above about a third of the shorter side) it is the full SVD.
    """
    Q = find_range(W, tol)
    if Q is None:
        U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    else:
        # (Q^T W)^T = P L: a square SVD of L^T and two thin products instead of a wide SVD
        P, L = torch.linalg.qr((Q.T @ W).T)
        U, S, Vt = torch.linalg.svd(L.T)
        U, Vt = Q @ U, Vt @ P.T
    r = int((S > tol * length(S)).sum())  # |S| = |W|_F
    return SVD(U[:, :r], S[:r], Vt[:r])


def svd_of_factors(x: Factors, tol: float = TOL) -> SVD:
    """svd(L R) from two thin QRs and the SVD of the small matrix between them."""
    Q, C, P, floor = core(x)
    U, S, Vt = torch.linalg.svd(C, full_matrices=False)
    r = int((S > max(tol * length(S), floor)).sum())
    return SVD(*(t.to(x.L.dtype) for t in (Q @ U[:, :r], S[:r], Vt[:r] @ P.T)))


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Refusals of one entry's numbers say which entry it is."""
    try:
        yield
    except (ValueError, torch.linalg.LinAlgError) as error:  # pyright: ignore[reportPrivateImportUsage]
        said = str(error) if type(error) is ValueError else f"svd failed ({reason(error)})"
        raise ValueError(said if quoted(name) in said else f"{said} ({quoted(name)})") from error


def svd_of(d: Mapping[str, Tensor], name: str) -> SVD:
    """svd of one entry of a delta or a base, of a factored delta without expanding it."""
    with naming(name):
        factored = isinstance(d, Factored)
        return svd_of_factors(d.factors(name)) if factored else svd(wide(weight(d, name)))


class Band(NamedTuple):
    """A part [lo, hi) of the spectrum, as a share of directions or of energy, or by number.

    by "index":  direction i of n is inside when lo n <= i < hi n.
    by "count":  direction i is inside when lo <= i < hi, so Band(0, k, "count") is the top k.
    by "energy": direction i is inside when the share of sum s^2 that lies before it is in [lo, hi),
                 so Band(0, x, "energy") is the fewest directions that hold at least the share x.
    Adjacent bands, such as TOP, MIDDLE and BOTTOM, partition the directions.
    """

    lo: float
    hi: float
    by: Literal["index", "energy", "count"] = "index"


TOP, MIDDLE, BOTTOM = Band(0, 0.25), Band(0.25, 0.75), Band(0.75, 1)


def inside(band: Band, S: Float[Tensor, " r"]) -> Bool[Tensor, " r"]:
    """Which of the singular directions lie in the band."""
    shares, counts = band.by in ("index", "energy"), band.by == "count"
    real = all(isinstance(x, Real) for x in (band.lo, band.hi))
    most = 1 if shares else float("inf")
    if not (real and (shares or counts) and 0 <= band.lo < band.hi <= most):
        raise ValueError(
            f'crop: `band` is {quoted(band, 200)}; use 0 <= lo < hi, by "count", or also hi <= 1,'
            ' by "index" or "energy"'
        )
    if band.by != "energy":
        i, n = torch.arange(len(S), device=S.device), 1 if counts else len(S)
        lo, hi = (min(x * n, len(S)) for x in (band.lo, band.hi))
        return (lo <= i) & (i < hi)
    upto = S.double().square().cumsum(0)
    before = torch.cat([upto.new_zeros(1), upto[:-1]])[: len(S)]
    # a last direction of tiny energy starts at a share that rounds to 1, but belongs to hi = 1
    below = (before < band.hi * upto[-1:]) | (band.hi == 1)
    return (band.lo * upto[-1:] <= before) & below


def wide(w: Float[Tensor, "..."]) -> Float[Tensor, "d_out d_in"]:
    """A weight as a matrix to factorize: a bias as one column, half precision as float32."""
    return columns(w if w.dtype == torch.float64 else w.float())


def spectra(base: Mapping[str, Tensor]) -> dict[str, SVD]:
    """name -> svd of a delta's or a base's entries, computed once for several crops."""
    return {name: svd_of(base, name) for name in nonempty(base)}


Empty = Literal["raise", "zero"]


def crop(
    d: Mapping[str, Tensor],
    band: Band,
    lens: Literal["own", "base"] = "own",
    base: Mapping[str, Tensor] | None = None,
    svds: Mapping[str, SVD] | None = None,
    *,
    empty: Empty = "raise",
) -> Delta | Factored:
    """The part of dW inside a band of singular directions. crop + crop_rest = d.

    lens "own":  sum_{i in band} s_i u_i v_i^T of dW = U S V^T; shares are of dW's numerical rank.
    lens "base": U_b U_b^T dW V_b V_b^T, with U_b, V_b the band's directions of the base weight
                 W0 = U0 S0 V0^T: the block of dS = U0^T dW V0 whose rows and columns are both in
                 the band. Shares are of W0's directions, or of its energy. Blocks that join two
                 bands, and what lies outside the spans of U0 and V0, are in every band's rest.

    `svds` takes what `spectra` returned for d (lens own) or base (lens base), to save a repetition.
    An entry without a direction in the band has part 0; where none has any, that is refused, or
    with empty="zero" the part is 0 throughout. A factored dW stays factored.
    """
    if isinstance(d, Factored):
        return Factored({n: part for n, _, part in _factored(d, band, lens, base, svds, empty)})
    return {name: part for name, _, part in _parts(d, band, lens, base, svds, empty)}


def crop_rest(
    d: Mapping[str, Tensor],
    band: Band,
    lens: Literal["own", "base"] = "own",
    base: Mapping[str, Tensor] | None = None,
    svds: Mapping[str, SVD] | None = None,
    *,
    empty: Empty = "raise",
) -> Delta | Factored:
    """d - crop(d, ...) for the same arguments: what the band leaves of each entry."""
    if isinstance(d, Factored):
        parts = _factored(d, band, lens, base, svds, empty)
        return Factored({name: stack(w, part, -1) for name, w, part in parts})
    return {name: w - part for name, w, part in _parts(d, band, lens, base, svds, empty)}


def _factored(d: Factored, band: Band, *how: Any) -> Iterator[tuple[str, Factors, Factors]]:
    """(name, dW = L R, its part inside the band), both as factors."""
    lens = how[0]
    for name, at, i in _inside(d, band, *how):
        dtype = d._meta(name).dtype
        w, (U, S, Vt) = d.factors(name), (t.to(dtype) for t in at)
        if lens == "own":
            yield name, w, Factors(U[:, i] * S[i], Vt[i])
        else:
            yield name, w, Factors(U[:, i] @ (U[:, i].T @ w.L), (w.R @ Vt[i].T) @ Vt[i])


def _parts(d: Mapping[str, Tensor], band: Band, *how: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, dW, its part inside the band)."""
    lens = how[0]
    for name, at, i in _inside(d, band, *how):
        w = entry(d, name)
        U, S, Vt = (t.to(w.dtype) for t in at)
        core = torch.diag(S[i]) if lens == "own" else U[:, i].T @ columns(w) @ Vt[i].T
        yield name, w, (U[:, i] @ core @ Vt[i]).reshape(w.shape)


def _inside(
    d: Mapping[str, Tensor],
    band: Band,
    lens: str,
    base: Mapping[str, Tensor] | None,
    svds: Mapping[str, SVD] | None,
    empty: Empty,
) -> Iterator[tuple[str, SVD, Bool[Tensor, " r"]]]:
    """(name, the svd of the lens, which of its directions lie in the band)."""
    if lens not in ("own", "base") or (svds is None and (lens == "base") != (base is not None)):
        raise ValueError(
            f"crop: `lens` is {quoted(lens)} with base {'absent' if base is None else 'given'};"
            ' use lens "own" without a base, or lens "base" with the base weights'
        )
    if empty not in ("raise", "zero") or not isinstance(band, Band):
        raise ValueError(
            f"crop: `band` is a {type(band).__name__} and empty={quoted(empty)}; use a Band, and"
            ' empty="raise" or "zero"'
        )
    source = svds if svds is not None else base if base is not None else d
    if lacking := [name for name in d if name not in source]:
        source = "svds" if svds is not None else "base"
        raise ValueError(
            f"crop: `{source}` lacks {format_keys(lacking)}; pass the model's own weights"
        )
    count = 0
    for name in nonempty(d):
        at = svds[name] if svds is not None else svd_of(base if base is not None else d, name)
        _fits(name, d, at)
        i = inside(band, at.S)
        count += int(i.sum())
        yield name, at, i
    if not count and empty == "raise":
        raise ValueError(
            f"crop: no direction of any of {format_keys(d)} lies in {band}; widen the band"
        )


def _fits(name: str, d: Mapping[str, Tensor], at: SVD) -> None:
    shape = columns(allowed(name, meta(d, name))).shape
    if (len(at.U), at.Vt.shape[1]) != tuple(shape):
        raise ValueError(
            f"crop: {quoted(name)} is {list(shape)} and its singular vectors have {len(at.U)} and"
            f" {at.Vt.shape[1]} entries; both must belong to the same model"
        )
