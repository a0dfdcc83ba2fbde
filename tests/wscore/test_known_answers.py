"""Answers worked out by hand, planted truths that must be found, and every refusal."""

from collections.abc import Callable
from math import sqrt

import pytest
import torch
from torch import tensor

import wscore as ws
from wscore import BOTTOM, MIDDLE, TOP, Band, Delta, Site

ENDS = ("q_proj.weight", "k_proj.weight", "q_proj.bias")
Q, K, B = (f"model.layers.3.self_attn.{end}" for end in ENDS)


def one(w, dtype=torch.float64) -> Delta:
    """A delta of one entry."""
    return {Q: torch.as_tensor(w, dtype=dtype)}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def low_rank(d_out: int, d_in: int, r: int, decay: float = 0, seed: int = 0) -> torch.Tensor:
    """B diag(10^0 .. 10^-decay) A in float32, with Gaussian factors of rank r."""
    g = generator(seed)
    left, right = torch.randn(d_out, r, generator=g), torch.randn(r, d_in, generator=g)
    return left * torch.logspace(0, -decay, r) @ right


# delta.py


def test_algebra_by_hand():
    """<a, b>, |a|, cos(a, b) and a - b on small integers."""
    a = {Q: tensor([[1.0, 2.0], [2.0, 0.0]]), B: tensor([4.0, 0.0])}
    b = {Q: tensor([[3.0, 1.0], [0.0, 5.0]]), B: tensor([1.0, 7.0])}
    assert ws.inner(a, b) == 9  # 3 + 2 + 0 + 0 and 4 + 0
    assert ws.norm(a) == 5  # 1 + 4 + 4 + 0 + 16 = 25
    assert ws.cosine(a, b) == pytest.approx(9 / (5 * sqrt(85)))  # 9 + 1 + 25 + 1 + 49 = 85
    assert ws.difference(a, b)[Q].tolist() == [[-2, 1], [2, -5]]
    assert ws.difference(a, b)[B].tolist() == [3, -7]


def test_inner_is_float64_inside():
    """A float32 sum would lose 1 beside 1e8: 1e8 + 1 - 1e8 = 1."""
    d = one([[1e4, 1.0, 1e4]], torch.float32)
    assert ws.inner(d, one([[1e4, 1.0, -1e4]], torch.float32)) == 1


def test_geometry_by_hand():
    """pos = (3, 4), neg = (0, -10)."""
    g = ws.geometry(one([[3, 4]]), one([[0, -10]]))
    assert g.cos_anti == pytest.approx(0.8)  # <pos, -neg> = 40, |pos| |neg| = 5 * 10
    assert g.asymmetry == pytest.approx(-1 / 3)  # (5 - 10) / (5 + 10)
    # M = (1.5, -3), |M|^2 = 11.25; dW = (3, 14), |dW|^2 = 205; <dW, M> = 4.5 - 42 = -37.5
    assert g.norms == pytest.approx(dict(pos=5, neg=10, dW=sqrt(205), M=sqrt(11.25)))
    assert g.common_over_difference == pytest.approx(sqrt(11.25 / 205))
    assert g.cos_dW_M == pytest.approx(-37.5 / sqrt(205 * 11.25))


def test_geometry_of_exact_opposites():
    """neg = -pos: cos_anti = 1 and nothing is common, M = 0."""
    g = ws.geometry(one([[3, 4]]), one([[-3, -4]]))
    assert g[:4] == pytest.approx((1, 0, 0, 0))
    assert g.norms["dW"] == pytest.approx(10)


# sites.py


@pytest.mark.parametrize(
    "name, expected",
    [
        ("model.layers.3.self_attn.q_proj.weight", Site(3, "self_attn", "q_proj")),
        ("model.language_model.layers.12.mlp.down_proj.weight", Site(12, "mlp", "down_proj")),
        ("layers.0.self_attn.k_proj.bias", Site(0, "self_attn", "k_proj")),
        ("model.layers.7.input_layernorm.weight", Site(7, "", "input_layernorm")),
        ("model.layers.1.mlp.experts.4.up_proj.weight", Site(1, "mlp.experts.4", "up_proj")),
    ],
)
def test_site(name: str, expected: Site):
    """Whatever stands before `layers.`, a name says layer, block and projection."""
    assert ws.site(name) == expected


def test_selection_by_hand():
    """layers(1, 3) is 1 <= layer < 3; o_proj and down_proj write, the other five read."""
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    d = {f"model.layers.{i}.x.{n}.weight": torch.ones(1, 1) for i in range(4) for n in names}
    assert {ws.site(n).layer for n in ws.select(d, ws.layers(1, 3))} == {1, 2}
    assert {ws.site(n).proj for n in ws.select(d, ws.writes_residual)} == {"o_proj", "down_proj"}
    assert {ws.site(n).proj for n in ws.select(d, ws.reads_residual)} == {*names[:3], *names[4:6]}
    assert len(ws.select(d, ws.projections("q_proj", "k_proj"))) == 8
    assert len(ws.omit(d, ws.projections("q_proj", "k_proj"))) == 20


def test_predicates_compose():
    """a & b, a | b, ~a of sites, with a plain function on either side too."""
    names = ["q_proj", "o_proj", "down_proj"]
    d = {f"model.layers.{i}.x.{n}.weight": torch.ones(1, 1) for i in range(3) for n in names}

    def last(at: Site) -> bool:
        return at.layer == 2

    def picked(where) -> set:
        return {(s.layer, s.proj) for s in map(ws.site, ws.select(d, where))}

    assert picked(ws.layers(0, 1) & ws.writes_residual) == {(0, "o_proj"), (0, "down_proj")}
    assert picked(ws.layers(0, 1) & ~ws.writes_residual) == {(0, "q_proj")}
    assert picked(last & ws.reads_residual) == picked(ws.reads_residual & last) == {(2, "q_proj")}
    both = picked(ws.projections("q_proj") | last)
    assert both == {(0, "q_proj"), (1, "q_proj"), (2, "q_proj"), (2, "o_proj"), (2, "down_proj")}
    assert picked(last | ws.projections("q_proj")) == both
    assert picked(ws.Where(last) | ws.Where(lambda at: at.proj == "q_proj")) == both
    assert "o_proj, down_proj" in str(ws.writes_residual.__doc__)


def test_add_of_any_number():
    """add(a) = a, add(a, b, c) = a + b + c over the union of keys."""
    a, b, c = one([[1, 2]]), one([[3, 4]]), {K: tensor([[5.0]])}
    assert torch.equal(ws.add(a)[Q], a[Q])
    assert ws.add(a, b, a)[Q].tolist() == [[5, 8]]
    total = ws.add(a, c, b, disjoint=True)
    assert total[Q].tolist() == [[4, 6]] and total[K].tolist() == [[5]]
    with pytest.raises(ValueError, match="add: got no deltas"):
        ws.add()


# spectrum.py

CASES = [
    pytest.param(low_rank(400, 600, r), r, id=f"rank {r} of 400") for r in (1, 20, 32, 64, 100, 300)
] + [
    pytest.param(low_rank(600, 400, 40), 40, id="tall"),
    pytest.param(low_rank(400, 600, 30, decay=3), 30, id="decaying"),
    pytest.param(1e-28 * low_rank(400, 600, 8), 8, id="squares underflow"),
    pytest.param(1e25 * low_rank(400, 600, 8), 8, id="squares overflow"),
    pytest.param(torch.randn(400, 600, generator=generator(1)), 400, id="full rank"),
    pytest.param(low_rank(20, 30, 4), 4, id="small"),
]


@pytest.mark.parametrize("W, r", CASES)
def test_svd_against_torch(W: torch.Tensor, r: int):
    """U diag(S) Vt = W with exactly r triplets, orthonormal, and torch.linalg.svd's values."""
    U, S, Vt = ws.svd(W)
    assert len(S) == r
    expected = torch.linalg.svd(W.double(), full_matrices=False)[1]
    assert ((S - expected[:r]).abs() <= 1e-5 * expected[0]).all()
    # float32 rounds each of the three factors: a few 1e-7 in each
    assert (U * S @ Vt - W).double().norm() <= 5e-6 * W.double().norm()
    for gram in (U.T @ U, Vt @ Vt.T):
        torch.testing.assert_close(gram, torch.eye(r), rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(5, 7), (200, 300), (4, 1)])
def test_svd_of_zero(shape: tuple):
    """A zero matrix has rank 0, and the three empty factors still multiply to it."""
    U, S, Vt = ws.svd(torch.zeros(shape))
    assert (U.shape, S.shape, Vt.shape) == ((shape[0], 0), (0,), (0, shape[1]))
    assert torch.equal(U * S @ Vt, torch.zeros(shape))
    assert ws.shared_basis([{Q: torch.zeros(shape), K: torch.eye(2)}], 2)[Q].shape == (shape[0], 0)


@pytest.mark.parametrize("d", [30, 300])
def test_svd_counts_values_above_tolerance(d: int):
    """s_i = 10^-i, i = 0..9: |W|_F is 1.005, so 1e-6 |W|_F lies between 10^-5 and 10^-6."""
    left, right = (
        torch.linalg.qr(torch.randn(d, 10, generator=generator(i), dtype=torch.float64))[0]
        for i in (0, 1)
    )
    s = 10.0 ** -torch.arange(10, dtype=torch.float64)
    S = ws.svd(left * s @ right.T).S
    assert len(S) == 6
    torch.testing.assert_close(S, s[:6], rtol=1e-4, atol=0)


def test_bands_by_index():
    """Shares are of the numerical rank: 4 in an 8 x 6 matrix, so the quarters are 1, 2 and 1."""
    d = one(torch.diag(tensor([8.0, 4.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]))[:, :6])
    diagonals = [ws.crop(d, band)[Q].diagonal().tolist() for band in (TOP, MIDDLE, BOTTOM)]
    assert torch.allclose(
        tensor(diagonals),
        tensor([[8.0, 0, 0, 0, 0, 0], [0, 4, 2, 0, 0, 0], [0, 0, 0, 1, 0, 0]]),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "band, expected",
    [
        # s = 4, 3, s^2 = 16, 9, shares before them 0 and 16/25 = 0.64
        (Band(0, 0.5, "energy"), [4, 0]),
        (Band(0, 0.65, "energy"), [4, 3]),
        (Band(0.5, 1, "energy"), [0, 3]),
        (Band(0.64, 1, "energy"), [0, 3]),
    ],
)
def test_bands_by_energy(band: Band, expected: list):
    """A direction belongs to the band that holds the share of energy before it."""
    out = ws.crop(one([[4, 0], [0, -3]]), band)[Q].abs()
    torch.testing.assert_close(out.diagonal(), tensor(expected, dtype=torch.float64))


def test_bands_by_count():
    """Band(0, k, "count") is the k largest singular directions, all of them past the rank."""
    d = one(torch.diag(tensor([4.0, 3, 2, 1])))
    assert ws.crop(d, Band(0, 2, "count"))[Q].diag().tolist() == pytest.approx([4, 3, 0, 0])
    assert ws.crop_rest(d, Band(0, 2, "count"))[Q].diag().tolist() == pytest.approx([0, 0, 2, 1])
    assert ws.crop(d, Band(1, 3, "count"))[Q].diag().tolist() == pytest.approx([0, 3, 2, 0])
    assert ws.norm(ws.difference(ws.crop(d, Band(0, 9, "count")), d)) == pytest.approx(0)
    base = one(torch.eye(4).flip(1) * tensor([1.0, 2, 3, 4]))  # largest first: e_0 e_3^T, ..
    assert ws.norm(ws.crop(d, Band(0, 1, "count"), "base", base)) == 0


def test_lens_base_by_hand():
    """W0 = diag(3, 2) has U0 = V0 = 1, so its top half keeps entry (0, 0) and no other."""
    d, base = one([[1, 2], [3, 4]]), one([[3, 0], [0, 2]])
    top = Band(0, 0.5)
    expected = tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(ws.crop(d, top, "base", base)[Q], expected)
    torch.testing.assert_close(ws.crop_rest(d, top, "base", base)[Q], d[Q] - expected)
    # 9/13 of the energy lies before the second direction
    energetic = ws.crop(d, Band(0.5, 1, "energy"), "base", base)[Q]
    torch.testing.assert_close(energetic, tensor([[0.0, 0.0], [0.0, 4.0]], dtype=torch.float64))


def test_lens_base_reads_half_precision_weights():
    """A bfloat16 base is widened, the delta keeps its dtype."""
    d, base = one([[1, 2], [3, 4]]), {Q: tensor([[3.0, 0.0], [0.0, 2.0]]).bfloat16()}
    assert ws.crop(d, Band(0, 0.5), "base", base)[Q].dtype == torch.float64
    assert ws.weight_basis(base, 1)[Q].abs().tolist() == [[1], [0]]


# basis.py and project.py


def test_projection_by_hand():
    """U = (3, 4)/5: U U^T = [[9, 12], [12, 16]]/25."""
    basis = one([[0.6], [0.8]])
    d = one([[5, 0], [0, 5]])
    expected = tensor([[1.8, 2.4], [2.4, 3.2]], dtype=torch.float64)
    torch.testing.assert_close(ws.keep(d, basis)[Q], expected)
    torch.testing.assert_close(ws.drop(d, basis)[Q], 5 * torch.eye(2).double() - expected)
    assert ws.energy(d, basis) == pytest.approx(0.5)  # 3.24 + 2 * 5.76 + 10.24 = 25 of 50
    bias = ws.keep(one([5, 0]), basis)[Q]
    torch.testing.assert_close(bias, tensor([1.8, 2.4], dtype=torch.float64))


def test_own_basis_has_no_more_columns_than_the_rank():
    """diag(2, 0, 1): the top vectors are e1, e3, and k = 5 gives these two."""
    basis = ws.own_basis(one(torch.diag(tensor([2.0, 0.0, 1.0]))), 5)
    assert basis[Q].abs().tolist() == [[1, 0], [0, 0], [0, 1]]


def test_shared_basis_gives_each_delta_unit_norm():
    """G = e1 e1^T + 2 e2 e2^T = diag(1, 2), though the first delta is 100 times as long."""
    deltas = [one([[60, 80], [0, 0]]), one([[0, 0], [3, 4]]), one([[0, 0], [0, 1]])]
    assert ws.shared_basis(deltas, 1)[Q].abs().tolist() == pytest.approx(one([[0], [1]])[Q])
    assert ws.shared_basis(deltas, 5)[Q].shape == (2, 2)


def test_shared_basis_normalises_by_the_whole_delta():
    """At Q: (3/5)^2 e1 e1^T against (4/8)^2 e2 e2^T, as |delta_1| = |(3, 4)| and |delta_2| = 8."""
    first = {Q: tensor([[3.0], [0.0]]), K: tensor([[4.0], [0.0]])}
    second = {Q: tensor([[0.0], [4.0]]), K: tensor([[0.0], [sqrt(48)]])}
    basis = ws.shared_basis([first, second], 1)
    assert basis[Q].abs().tolist() == [[1], [0]]  # 0.36 > 0.25
    assert basis[K].abs().tolist() == [[0], [1]]  # 16/25 = 0.64 < 48/64 = 0.75


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d_out", [40, 200])
def test_planted_core_is_recovered(dtype: torch.dtype, d_out: int):
    """Five deltas C A_f + O_f with O_f orthogonal to C: the shared top-4 span is C, not any O_f.

    Each delta has unit energy in C, 1/4 per direction and 5/4 in the sum, and 0.64 in O_f, at most
    0.32 per direction; own top-2 directions are not told apart from O_f by any single delta.
    """
    frame = torch.linalg.qr(torch.randn(d_out, 14, generator=generator(0), dtype=torch.float64))[0]
    core, deltas = frame[:, :4], []
    for f in range(5):
        g = generator(10 + f)
        A = torch.linalg.qr(torch.randn(300, 6, generator=g, dtype=torch.float64))[0].T
        own = frame[:, 4 + 2 * f : 6 + 2 * f]
        W = core @ A[:4] * 0.5 + own @ A[4:] * sqrt(0.32)
        deltas.append(one(10.0**f * W, dtype))
    found = ws.shared_basis(deltas, 4)
    assert ws.overlap(found, {Q: core.to(dtype)})[Q] == pytest.approx(1, abs=1e-6)
    projector = (found[Q] @ found[Q].T).double()
    assert (projector - core @ core.T).abs().max() < (1e-5 if dtype == torch.float32 else 1e-10)
    assert ws.energy(deltas[0], found) == pytest.approx(1 / 1.64, abs=1e-5)
    assert ws.overlap(ws.own_basis(deltas[0], 2), {Q: core.to(dtype)})[Q] < 1e-5


def test_shared_basis_equals_the_plain_way():
    """The projector is that of the SVD of the stack [dW_f / |dW_f|], for low and full rank."""
    g = generator(5)
    core = torch.randn(200, 8, generator=g)
    own = [low_rank(200, 300, 5, seed=1), low_rank(200, 300, 5, seed=2), low_rank(200, 300, 200)]
    weights = [3 * core @ torch.randn(8, 300, generator=g) + w for w in own]
    stack = torch.cat([w / w.norm() for w in weights], dim=1)
    U = torch.linalg.svd(stack.double(), full_matrices=False)[0][:, :8]
    found = ws.shared_basis([one(w, torch.float32) for w in weights], 8)[Q].double()
    assert (found @ found.T - U @ U.T).abs().max() < 1e-5


def test_shared_basis_counts_rank():
    """Two rank-3 deltas span at most 6 directions, so k = 10 gives 6."""
    deltas = [one(low_rank(200, 300, 3, seed=f), torch.float32) for f in (1, 2)]
    assert ws.shared_basis(deltas, 10)[Q].shape == (200, 6)


def test_shared_basis_of_common_names():
    """missing="skip" uses the names that every delta has."""
    deltas = [{Q: torch.eye(2), K: torch.eye(2)}, {Q: torch.eye(2)}]
    assert list(ws.shared_basis(deltas, 1, missing="skip")) == [Q]


def test_overlap_by_hand():
    """Spans of e1, e2 and of (e1 + e3)/sqrt(2): one principal angle, cos^2 = 1/2."""
    a, b = one(torch.eye(3)[:, :2]), one([[sqrt(0.5)], [0], [sqrt(0.5)]])
    assert ws.overlap(a, b)[Q] == pytest.approx(0.5)


def test_random_basis_keeps_its_share():
    """A random rank-K basis keeps K/d_out of the energy on average.

    For one column the share is Beta(K/2, (d_out - K)/2), of variance 2K (d_out - K) / (d_out^2
    (d_out + 2)) = 2 * 8 * 56 / (64^2 * 66) = 0.003314; over 200 columns of equal length the sd of
    the mean is sqrt(0.003314 / 200) = 0.0041.
    """
    g = generator(7)
    columns = {f"{i}.weight": torch.randn(64, generator=g) for i in range(200)}
    d = {name: w / w.norm() for name, w in columns.items()}
    basis = ws.random_basis({name: torch.zeros(64, 8) for name in d}, seed=0)
    assert ws.energy(d, basis) == pytest.approx(8 / 64, abs=4 * 0.0041)


def test_random_basis_has_no_preferred_side():
    """Haar: U[0, 0] is positive half of the time; 400 draws, sd 10. Plain QR fixes its sign."""
    like = {f"{i}.weight": torch.zeros(6, 2) for i in range(400)}
    positive = sum(int(U[0, 0] > 0) for U in ws.random_basis(like, seed=1).values())
    assert abs(positive - 200) <= 4 * 10


# null.py


@pytest.mark.parametrize("r", [5, 300])
def test_spectrum_null_has_the_same_values(r: int):
    """S(spectrum_null(d)) = S(d), in directions that have nothing to do with d's."""
    d = one(low_rank(200, 300, r, decay=1), torch.float32)
    null = ws.spectrum_null(d, seed=0)
    S, S_null = ws.svd(d[Q]).S, ws.svd(null[Q]).S
    torch.testing.assert_close(S_null, S, rtol=0, atol=float(1e-5 * S[0]))
    # |<d, null>| <= sum s_i^2 |cos|; a random pair's cosine has sd at most 1/sqrt(200) = 0.07
    assert abs(ws.cosine(d, null)) < 0.3


def test_gaussian_null_has_the_same_norms():
    """|out_t| = |like_t| tensor by tensor, a zero tensor stays zero, and its rank is full."""
    like = {Q: low_rank(200, 300, 5), K: torch.zeros(4, 3), B: torch.arange(12.0)}
    null = ws.gaussian_null(like, seed=0)
    for name in like:
        assert ws.norm({name: null[name]}) == pytest.approx(ws.norm({name: like[name]}), rel=1e-6)
    assert len(ws.svd(null[Q]).S) == 200


def test_match_norm_by_hand():
    """Norms (5, 2) to (1, 8): per tensor by 1/5 and 4; over all by sqrt(65/29)."""
    d = {Q: tensor([[3.0, 4.0]]), B: tensor([2.0])}
    like = {Q: tensor([[1.0, 0.0]]), B: tensor([8.0])}
    out = ws.match_norm(d, like)
    torch.testing.assert_close(out[Q], tensor([[0.6, 0.8]]))
    torch.testing.assert_close(out[B], tensor([8.0]))
    torch.testing.assert_close(ws.match_norm(d, like, per="all")[B], tensor([2 * sqrt(65 / 29)]))


def test_stream_by_hand():
    """The seed is the first 63 bits of sha256("7/a"), whatever else is drawn."""
    # printf 7/a | sha256sum | cut -c1-16
    expected = torch.Generator().manual_seed(0x681EBD31F1942012 >> 1)
    draw, same = (torch.randn(4, generator=g) for g in (ws.stream(7, "a"), expected))
    assert torch.equal(draw, same)


# Refusals: what was asked, what was found, what to do.

EYE = one(torch.eye(2))
ZERO = one(torch.zeros(2, 2))
NAN = one([[1.0, float("nan")], [0.0, 1.0]])
LINEAR = {Q: torch.eye(2), K: torch.eye(2)}
APART = {K: torch.eye(2)}
REFUSALS: dict[str, tuple[Callable, str]] = {
    "empty": (lambda: ws.check_delta({}), "empty, and {} is never a delta"),
    "empty in algebra": (lambda: ws.scale(2, {}), "{} is never a delta"),
    "empty side": (lambda: ws.add(EYE, {}), "{} is never a delta"),
    "key": (lambda: ws.check_delta({3: torch.eye(2)}), "key 3 is not a string"),
    "bfloat16": (
        lambda: ws.check_delta({Q: torch.eye(2).bfloat16()}),
        "q_proj.weight' is torch.bfloat16, .* compute it in float32",
    ),
    "half in algebra": (lambda: ws.norm({Q: torch.eye(2).half()}), "is torch.float16"),
    "dimensions": (lambda: ws.check_delta({Q: torch.ones(2, 2, 2)}), r"shape \[2, 2, 2\]; use"),
    "not finite": (
        lambda: ws.check_delta(one([[1, float("nan")], [float("inf"), 0]])),
        "q_proj.weight' has 2 non-finite entries",
    ),
    "difference": (
        lambda: ws.difference(LINEAR, {Q: torch.eye(2)}),
        r"difference: 1 key only in pos: \['.*k_proj.weight'\]; train both .* or pass missing=",
    ),
    "difference, neg": (lambda: ws.difference(one([1]), LINEAR), "1 key only in neg"),
    "shapes": (lambda: ws.add(EYE, one(torch.eye(3))), r"\[2, 2\] on one side and \[3, 3\]"),
    "inner shapes": (lambda: ws.inner(EYE, one([1, 2])), "must belong to the same model"),
    "add apart": (
        lambda: ws.add(EYE, APART),
        r"add: 1 key: \['.*q_proj.weight'\] on one side and 1 key: \['.*k_proj.* disjoint=True",
    ),
    "add, one of three": (lambda: ws.add(EYE, APART, EYE), "add: 1 key: .*k_proj.* on one side"),
    "inner apart": (lambda: ws.inner(EYE, APART), "inner: .*q_proj.*k_proj.* none in common"),
    "cosine apart": (lambda: ws.cosine(EYE, APART), "cosine: .*q_proj.*k_proj.* none in common"),
    "difference apart": (
        lambda: ws.difference(EYE, APART, missing="zero"),
        "difference: .*q_proj.*k_proj.* none in common",
    ),
    "geometry apart": (
        lambda: ws.geometry(EYE, APART, missing="zero"),
        "geometry: .*q_proj.*k_proj.* none in common",
    ),
    "alpha": (lambda: ws.scale(float("nan"), EYE), "scale: alpha is nan; use a finite number"),
    "alpha, factored": (
        lambda: ws.scale(float("inf"), ws.Factored({Q: (torch.eye(2), torch.eye(2))})),
        "scale: alpha is inf",
    ),
    "norm of nan": (lambda: ws.norm(NAN), "norm of '.*q_proj.weight': it is nan"),
    "inner of nan": (lambda: ws.inner(NAN, EYE), "inner: it is nan"),
    "energy of nan": (lambda: ws.energy(NAN, EYE), "energy: it is nan"),
    "geometry of nan": (lambda: ws.geometry(NAN, EYE), "geometry: it is nan"),
    "shared rows": (
        lambda: ws.shared_basis([EYE, one(torch.ones(1, 2))], 1),
        "shared_basis: '.*q_proj.weight' has 2, 1 rows; all deltas must belong to the same model",
    ),
    "shared nan": (lambda: ws.shared_basis([EYE, NAN], 1), "norm of '.*q_proj.weight': it is nan"),
    "own nan": (lambda: ws.own_basis(NAN, 1), "it is nan, .* check the training .*q_proj.weight"),
    "crop of nan": (lambda: ws.crop(NAN, TOP), "it is nan, .*q_proj.weight"),
    "integers": (
        lambda: ws.norm({Q: torch.ones(2, 2, dtype=torch.int8)}),
        "q_proj.weight' is torch.int8, and a change of a weight is float32 or float64",
    ),
    "complex base": (
        lambda: ws.weight_basis({Q: torch.ones(2, 2, dtype=torch.complex64)}, 1),
        r"base: '.*q_proj.weight' is torch.complex64",
    ),
    "base of another model": (
        lambda: ws.crop(EYE, TOP, "base", one(torch.eye(3))),
        r"q_proj.weight' is \[2, 2\] and its singular vectors have 3 and 3",
    ),
    "keep of nothing": (lambda: ws.keep(ws.Factored({}), EYE), "{} is never a delta"),
    "basis of nothing": (lambda: ws.weight_basis({}, 1), "{} is never a delta"),
    "overlap of two models": (lambda: ws.overlap(EYE, one(torch.eye(3))), "use two bases"),
    "cosine of zero": (lambda: ws.cosine(EYE, ZERO), "a zero delta has no direction"),
    "geometry targets": (lambda: ws.geometry(LINEAR, one([1])), "geometry: 1 key only in pos"),
    "geometry of equals": (lambda: ws.geometry(EYE, EYE), "dW must all be non-zero"),
    "site": (lambda: ws.site("model.embed_tokens.weight"), "embed_tokens.weight' names no layer"),
    "select": (
        lambda: ws.select(EYE, ws.writes_residual),
        r"select: nothing matches of 1 key: \['.*q_proj.weight'\]; change `where`",
    ),
    "omit": (lambda: ws.omit(EYE, ws.reads_residual), "omit: nothing is left of 1 key"),
    "band": (lambda: ws.crop(EYE, Band(0.5, 0.5)), "use 0 <= lo < hi, by .count., or also hi <= 1"),
    "count": (lambda: ws.crop(EYE, Band(2, 2, "count")), "`band` is .*; use 0 <= lo < hi, by"),
    "narrow band": (lambda: ws.crop(EYE, Band(0.1, 0.2)), "no direction .* widen the band"),
    "zero crop": (lambda: ws.crop(ZERO, TOP), "no direction of any of 1 key"),
    "lens": (lambda: ws.crop(EYE, TOP, "base"), "`lens` is 'base' with base absent; use lens"),
    "lens own": (lambda: ws.crop(EYE, TOP, "own", EYE), "`lens` is 'own' with base given"),
    "base keys": (lambda: ws.crop(LINEAR, TOP, "base", EYE), r"`base` lacks 1 key: \['.*k_p"),
    "k": (lambda: ws.own_basis(EYE, -1), "k must be at least 0, got -1"),
    "shared targets": (
        lambda: ws.shared_basis([LINEAR, {Q: torch.eye(2)}], 1),
        r"shared_basis: 1 key: \['.*k_proj.weight'\] not in every delta, 1 in all; select",
    ),
    "shared nothing": (
        lambda: ws.shared_basis([{Q: torch.eye(2)}, {K: torch.eye(2)}], 1, missing="skip"),
        "2 keys: .* not in every delta, 0 in all",
    ),
    "shared none": (lambda: ws.shared_basis([], 1), "0 deltas .* pass a list of at least one"),
    "shared zero": (lambda: ws.shared_basis([EYE, ZERO], 1), "drop the zero deltas"),
    "random basis": (lambda: ws.random_basis(one(torch.ones(2, 3)), 0), r"\[2, 3\]; pass a basis"),
    "overlap keys": (lambda: ws.overlap(LINEAR, {Q: torch.eye(2)}), "1 key: .* in one basis only"),
    "overlap of none": (lambda: ws.overlap(EYE, one(torch.ones(2, 0))), "has no columns"),
    "keep": (
        lambda: ws.keep(LINEAR, {Q: torch.eye(2)}),
        r"keep: `basis` lacks 1 key: \['.*k_proj.weight'\]; select the entries",
    ),
    "drop": (lambda: ws.drop(LINEAR, {Q: torch.eye(2)}), "drop: `basis` lacks"),
    "basis shape": (
        lambda: ws.keep(EYE, one(torch.eye(3))),
        r"`basis` is \[3, 3\] at .* and the entry \[2, 2\]",
    ),
    "energy of zero": (lambda: ws.energy(ZERO, EYE), "the delta is zero"),
    "match_norm": (lambda: ws.match_norm(ZERO, EYE), "is zero and cannot have norm 1.41"),
    "match_norm all": (lambda: ws.match_norm(ZERO, EYE, per="all"), "the delta is zero and cannot"),
    "match_norm keys": (lambda: ws.match_norm(LINEAR, EYE), "1 key: .* on one side only"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str):
    """Nothing is silently skipped: an error names what was found and what to do."""
    ask, found = REFUSALS[case]
    with pytest.raises(ValueError, match=found):
        ask()
