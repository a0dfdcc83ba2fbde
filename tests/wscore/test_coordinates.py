"""Splits of dW along adapter coordinates, and base spectra kept on disk."""

import json
from pathlib import Path

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import wscore as ws
from wscore import svd_cache
from wscore.families import FAMILIES as REGISTRY
from wscore.families import Checkpoint, family_coordinates
from wscore.families.boft import boft_block
from wscore.families.delora import scale_direction
from wscore.families.dora import magnitude_direction
from wscore.families.ia3 import gates
from wscore.families.oft import oft_block
from wscore.families.pissa import pissa_factors
from wscore.families.ranks import rank_components, rank_terms
from wscore.families.rotation import rotation_blocks, rotation_rest
from wscore.svd_cache import cached_spectra

ORGANISM = Path(__file__).parents[2] / "data" / "organism"
FAMILIES = sorted(name for name, f in REGISTRY.items() if f.coordinates)
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
LORA = dict(peft_type="LORA", r=3, lora_alpha=6, use_rslora=False, init_lora_weights=True)
DELORA = dict(peft_type="DELORA", r=3)
seeds = st.integers(0, 2**32)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(normal(n, n, seed=seed)).Q


def nearly_one(n: int, seed: int = 0, size: float = 0.1) -> torch.Tensor:
    """A rotation by small angles."""
    G = size * normal(n, n, seed=seed)
    return torch.linalg.matrix_exp(G - G.T)


def total(parts) -> ws.Delta:
    return ws.add(*parts.values(), disjoint=True)


def distance(a, b) -> float:
    """|a - b| / |b|"""
    return ws.norm(ws.difference(a, b)) / ws.norm(b)


def share(part, d) -> float:
    """|part|^2 / |d|^2"""
    return (ws.norm(part) / ws.norm(d)) ** 2


@pytest.fixture(scope="module")
def organism():
    return load_file(ORGANISM / "model.safetensors")


def shipped(kind: str):
    """(pos_tensors, pos_config, neg_tensors, neg_config) of the organism's own adapters."""
    folder = ORGANISM / "adapters" / f"{kind}-s0"
    return *checkpoint(folder / "pos"), *checkpoint(folder / "neg")


def checkpoint(folder: Path):
    """(tensors, config) of a saved adapter, with PiSSA's initial factors where stored."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors, json.loads((folder / "adapter_config.json").read_text())


def merged(pos, pos_config, neg, neg_config, base) -> ws.Delta:
    taus = ws.merge_adapter(pos, pos_config, base), ws.merge_adapter(neg, neg_config, base)
    return ws.difference(*taus)


def low_rank(kind: str, ranks: dict[str, int], base, seed: int = 0, prefix="base_model.model."):
    """Random tensors of a lora, pissa or delora checkpoint on `base`."""
    names = ("delora_A", "delora_B") if kind == "delora" else ("lora_A.weight", "lora_B.weight")
    tensors = {}
    for i, (module, r) in enumerate(ranks.items()):
        d_out, d_in = base[f"{module}.weight"].shape
        tensors[f"{prefix}{module}.{names[0]}"] = normal(r, d_in, seed=seed + 2 * i)
        tensors[f"{prefix}{module}.{names[1]}"] = normal(d_out, r, seed=seed + 2 * i + 1)
        if kind == "delora":
            tensors[f"{prefix}{module}.delora_lambda"] = torch.tensor([2.0 + seed + i])
            tensors[f"{prefix}{module}.delora_w_norm"] = base[f"{module}.weight"].norm(dim=0)
    return tensors


@pytest.fixture
def base():
    return {f"{Q}.weight": normal(6, 8, seed=90), f"{DOWN}.weight": normal(8, 5, seed=91)}


# Every family


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_parts_of_a_trained_pair_add_up(kind: str, organism):
    """sum of parts = dW to 1e-6, fp32, with dW's keys, in every coordinate system of the family."""
    pair = shipped(kind)
    dW = merged(*pair, organism)
    systems = family_coordinates(*pair, organism)
    expected = {
        "dora": ["magnitude_direction"],
        "delora": ["rank", "lambda_direction"],
        "oft": ["rotation"],
        "boft": ["rotation"],
        "ia3": ["gates"],
    }
    assert list(systems) == expected.get(kind, ["rank"])
    for system, parts in systems.items():
        assert distance(total(parts), dW) < 1e-6
        assert all(w.dtype == torch.float32 for part in parts.values() for w in part.values())
        if system != "gates":
            assert all(set(part) == set(dW) for part in parts.values())
        if system == "rank":
            assert list(parts) == [f"component_{i}" for i in range(8)]


def test_poles_of_two_families_are_refused(organism):
    """pos and neg have one family, and the same targets."""
    lora, dora = shipped("lora"), shipped("dora")
    with pytest.raises(ValueError, match="pos is lora and neg is dora.*train both poles with one"):
        family_coordinates(*lora[:2], *dora[2:], organism)
    with pytest.raises(ValueError, match="pos is lora and neg is delora"):
        rank_components(lora[0], shipped("delora")[2], lora[1], shipped("delora")[3], organism)
    fewer = {k: w for k, w in lora[2].items() if ".layers.2." not in k}
    with pytest.raises(ValueError, match="only in pos.*same target_modules"):
        family_coordinates(*lora[:2], fewer, lora[3], organism)
    with pytest.raises(ValueError, match="merge_adapter: .*missing"):
        family_coordinates(*lora[:2], lora[2] | {"missing": torch.zeros(1)}, lora[3], organism)


# Rank-one terms


@pytest.mark.parametrize("rslora", [False, True])
def test_a_lora_component_is_its_outer_product(rslora: bool, base):
    """component_i = s+ b_i+ a_i+ - s- b_i- a_i-, s = alpha/r or alpha/sqrt(r), patterns counted."""
    ranks = {Q: 3, DOWN: 3}
    pos, neg = low_rank("lora", ranks, base), low_rank("lora", ranks, base, seed=50)
    config = LORA | dict(use_rslora=rslora)
    louder = config | dict(alpha_pattern={"q_proj": 12})
    parts = rank_components(pos, neg, config, louder, base)
    assert list(parts) == ["component_0", "component_1", "component_2"]
    root = 3**0.5 if rslora else 3
    for i, part in enumerate(parts.values()):
        for module, alpha in ((Q, 12), (DOWN, 6)):
            A, B, A_neg, B_neg = (
                side[f"base_model.model.{module}.lora_{x}.weight"]
                for side in (pos, neg)
                for x in "AB"
            )
            expected = 6 / root * torch.outer(B[:, i], A[i])
            expected -= alpha / root * torch.outer(B_neg[:, i], A_neg[i])
            torch.testing.assert_close(part[f"{module}.weight"], expected.float())


def test_a_delora_component_keeps_lambda_over_the_whole_rank(base):
    """component_i = (lambda/r) b_i a_i / (|b_i| |a_i|) diag(w), r that of the checkpoint."""
    pos = low_rank("delora", {Q: 3}, base)
    still = pos | {f"base_model.model.{Q}.delora_B": torch.zeros(6, 3)}
    A, B, lam, w = pos.values()
    for i, part in enumerate(rank_components(pos, still, DELORA, DELORA, base).values()):
        unit = torch.outer(B[:, i] / B[:, i].norm(), A[i] / A[i].norm())
        torch.testing.assert_close(part[f"{Q}.weight"], (lam / 3 * unit * w).float())


@pytest.mark.parametrize("kind", ["lora", "pissa", "delora"])
def test_ranks_may_differ(kind: str, base):
    """i runs to the largest rank; a module without term i is zero there, and the sum is dW."""
    config = DELORA if kind == "delora" else LORA
    config = config | dict(init_lora_weights="pissa") if kind == "pissa" else config
    config_pos = config | dict(rank_pattern={"q_proj": 2})
    config_neg = config | dict(r=1, rank_pattern={"down_proj": 4})
    pos = low_rank(kind, {Q: 2, DOWN: 3}, base)
    neg = low_rank(kind, {Q: 1, DOWN: 4}, base, seed=50)
    parts = rank_components(pos, neg, config_pos, config_neg, base)
    assert len(parts) == 4
    assert distance(total(parts), merged(pos, config_pos, neg, config_neg, base)) < 1e-6
    assert [bool(part[f"{Q}.weight"].any()) for part in parts.values()] == [1, 1, 0, 0]
    assert all(part[f"{DOWN}.weight"].any() for part in parts.values())


def test_initial_factors_of_pissa_cancel(base):
    """Stored or taken from the base, a common init leaves s (b_i+ a_i+ - b_i- a_i-)."""
    config = LORA | dict(init_lora_weights="pissa")
    pos, neg = low_rank("pissa", {Q: 3}, base), low_rank("pissa", {Q: 3}, base, seed=50)
    plain = rank_components(pos, neg, LORA, LORA, base)
    taken = rank_components(pos, neg, config, config, base)
    A0, B0 = pissa_factors(base[f"{Q}.weight"].float(), 3, 2.0)
    init = {f"{Q}.lora_A_init.weight": A0, f"{Q}.lora_B_init.weight": B0}
    stored = rank_components(pos | init, neg | init, config, config, base)
    mixed = rank_components(pos | init, neg, config, config, base)
    for name in plain:
        assert distance(stored[name], plain[name]) < 1e-6
        assert all(torch.equal(stored[name][n], taken[name][n]) for n in plain[name])
        assert all(torch.equal(stored[name][n], mixed[name][n]) for n in plain[name])


def test_a_pissa_term_is_relative_to_its_singular_direction(base):
    """Term i of an untrained PiSSA is 0; of one with B = 0 it is -S_i u_i v_i^T of the base."""
    config = LORA | dict(init_lora_weights="pissa")
    W = base[f"{Q}.weight"]
    A0, B0 = pissa_factors(W.float(), 3, 2.0)
    init = {f"{Q}.lora_A.weight": A0, f"{Q}.lora_B.weight": B0}
    off = init | {f"{Q}.lora_B.weight": torch.zeros(6, 3)}
    U, S, Vt = torch.linalg.svd(W)
    for i in range(3):
        assert not rank_terms(init, config, base)[f"{Q}.weight"].term(i).any()
        tau = rank_terms(off, config, base)[f"{Q}.weight"].term(i)
        expected = -S[i] * torch.outer(U[:, i], Vt[i])
        torch.testing.assert_close(tau, expected.float(), rtol=1e-4, atol=1e-5)


def test_nested_module_names_keep_their_own_scale():
    """A module whose name ends in another's is scaled by its own alpha / r."""
    base = {"a.weight": normal(4, 4), "b.a.weight": normal(4, 4, seed=1)}
    tensors = low_rank("lora", {"a": 1, "b.a": 2}, base)
    config = LORA | dict(r=1, rank_pattern={"b.a": 2}, alpha_pattern={"b.a": 8})
    terms = rank_terms(tensors, config, base)
    tau = [{name: x.term(i) for name, x in terms.items()} for i in range(2)]
    assert distance(ws.add(*tau), ws.merge_adapter(tensors, config, base)) < 1e-6


def test_a_rank_one_term_past_the_rank_is_zero_and_inputs_are_untouched(base):
    """term(i) is zero outside 0 <= i < r; tensors and config stay as they were."""
    for kind, config in (("lora", LORA), ("delora", DELORA)):
        tensors = low_rank(kind, {Q: 3}, base)
        digest, before = ws.tensors_sha256(tensors), dict(config)
        for i in (-1, 3):
            assert not rank_terms(tensors, config, base)[f"{Q}.weight"].term(i).any()
        assert ws.tensors_sha256(tensors) == digest and config == before


@pytest.mark.parametrize("kind", ["dora", "oft", "boft", "ia3"])
def test_other_families_have_no_rank_components(kind: str, organism):
    """Only lora, pissa and delora are sums of rank-one terms."""
    pos, config_pos, neg, config_neg = shipped(kind)
    with pytest.raises(ValueError, match=f"the adapter is {kind} .*use one of lora, pissa, delora"):
        rank_components(pos, neg, config_pos, config_neg, organism)
    with pytest.raises(ValueError, match=f"the adapter is {kind} "):
        rank_terms(pos, config_pos, organism)


def test_tensors_that_are_not_what_the_config_says_are_refused(base):
    """A rank other than the config's is no checkpoint to take components of."""
    tensors = low_rank("lora", {Q: 3}, base)
    with pytest.raises(ValueError, match="merge_adapter: .*lora_A.weight is .3, 8."):
        rank_components(tensors, tensors, LORA, LORA | dict(r=4), base)


# Size and direction


def test_magnitude_and_direction_by_hand():
    """W0 + tau+ = [[3, 4], [2, 0]], W0 + tau- = [[0, 1], [0, 2]]."""
    base = {"w.weight": torch.eye(2)}
    pos = {"w.weight": torch.tensor([[2.0, 4], [2, -1]])}
    neg = {"w.weight": torch.tensor([[-1.0, 1], [0, 1]])}
    # row 1: m = 5, 1 and u = (.6, .8), (0, 1): 4 (.3, .9) = (1.2, 3.6), 3 (.6, -.2) = (1.8, -.6)
    # row 2: m = 2, 2 and u = (1, 0), (0, 1):   0,                       2 (1, -1) = (2, -2)
    parts = magnitude_direction(pos, neg, base)
    expected = {"magnitude": [[1.2, 3.6], [0, 0]], "direction": [[1.8, -0.6], [2, -2]]}
    assert list(parts) == list(expected)
    for name, w in expected.items():
        torch.testing.assert_close(parts[name]["w.weight"], torch.tensor(w))


@pytest.mark.parametrize("differing", ["magnitude", "direction"])
def test_poles_that_differ_in_one_have_none_of_the_other(differing: str):
    """m+ u - m- u is all magnitude; m u+ - m u- is all direction."""
    W, V, m = normal(6, 9), normal(6, 9, seed=1), normal(6, 1, seed=2).abs() + 0.1
    u, v = (X / X.norm(dim=1, keepdim=True) for X in (W, V))
    W_pos, W_neg = (m * u, 3 * u) if differing == "magnitude" else (m * u, m * v)
    parts = magnitude_direction({"w": W_pos - W}, {"w": W_neg - W}, {"w": W})
    dW = {"w": W_pos - W_neg}
    assert distance(parts[differing], dW) < 1e-13
    (other,) = parts.keys() - {differing}
    assert ws.norm(parts[other]) < 1e-13 * ws.norm(dW)


@given(seeds, st.integers(1, 5), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_magnitude_and_direction_are_orthogonal(seed: int, d_out: int, d_in: int, dead: int):
    """magnitude + direction = dW, rows orthogonal; with a zero row of one pole still the sum."""
    W, p, n = (normal(d_out, d_in, seed=seed + i) for i in range(3))
    p[:dead] = -W[:dead]
    n[: dead - 1] = -W[: dead - 1] if dead > 1 else n[: dead - 1]
    parts = magnitude_direction({"w": p}, {"w": n}, {"w": W})
    magnitude, direction = (part["w"] for part in parts.values())
    torch.testing.assert_close(magnitude + direction, p - n)
    assert magnitude.isfinite().all() and direction.isfinite().all()
    products = (magnitude * direction).sum(1)[dead:]
    torch.testing.assert_close(products, torch.zeros_like(products), atol=1e-12, rtol=0)


def test_a_dora_magnitude_is_its_own(organism):
    """Poles that differ in DoRA's magnitude vector only have no direction, to fp32 rounding."""
    pos, config, _, _ = shipped("dora")
    neg = {k: 1.01 * w if "magnitude" in k else w for k, w in pos.items()}
    parts = family_coordinates(pos, config, neg, config, organism)["magnitude_direction"]
    dW = merged(pos, config, neg, config, organism)
    assert distance(parts["magnitude"], dW) < 1e-5
    assert share(parts["direction"], dW) < 1e-10


def test_poles_and_base_must_match(base):
    """One sentence for a missing target, a missing or wrong base weight."""
    d = {n: w + 1 for n, w in base.items()}
    one = {f"{Q}.weight": d[f"{Q}.weight"]}
    with pytest.raises(ValueError, match="1 key: .*down_proj.* in one pole only; train both"):
        magnitude_direction(d, one, base)
    with pytest.raises(ValueError, match="absent in the base; pass the weights of the model"):
        magnitude_direction(d, d, {f"{Q}.weight": d[f"{Q}.weight"]})
    with pytest.raises(ValueError, match=r"\[6, 8\] in the delta and \[8, 6\] in the base"):
        rotation_rest(one, {f"{Q}.weight": torch.zeros(8, 6)})


@given(seeds, st.floats(-20, 20), st.floats(-20, 20))
@settings(max_examples=50, deadline=None)
def test_lambda_and_direction_add_up(seed: int, pos_lam: float, neg_lam: float):
    """lambda = (l+ - l-)(D+ + D-)/2, direction = (l+ + l-)/2 (D+ - D-); sum dW, also at l = 0."""
    D_pos, D_neg = (normal(3, 4, seed=seed + i) for i in range(2))
    pos, neg = {f"{Q}.weight": pos_lam * D_pos}, {f"{Q}.weight": neg_lam * D_neg}
    lams = [{f"base_model.model.{Q}.delora_lambda": torch.tensor([x], dtype=torch.float64)}
            for x in (pos_lam, neg_lam)]  # fmt: skip
    parts = scale_direction(pos, neg, *lams)
    assert list(parts) == ["lambda", "direction"]
    torch.testing.assert_close(total(parts), ws.difference(pos, neg), atol=1e-12, rtol=0)
    if abs(pos_lam) > 1e-6 and abs(neg_lam) > 1e-6:
        expected = (pos_lam - neg_lam) * (D_pos + D_neg) / 2
        torch.testing.assert_close(parts["lambda"][f"{Q}.weight"], expected, atol=1e-12, rtol=0)


def test_poles_that_differ_in_lambda_alone(organism):
    """(l+ - l-) D is all lambda, and l (D+ - D-) all direction, on a shipped checkpoint."""
    pos, config, neg, _ = shipped("delora")
    louder = {k: 1.5 * w if "lambda" in k else w for k, w in pos.items()}
    parts = family_coordinates(louder, config, pos, config, organism)["lambda_direction"]
    dW = merged(louder, config, pos, config, organism)
    assert distance(parts["lambda"], dW) < 1e-6 and share(parts["direction"], dW) < 1e-12
    same = neg | {k: w for k, w in pos.items() if "lambda" in k}
    parts = family_coordinates(pos, config, same, config, organism)["lambda_direction"]
    assert ws.norm(parts["lambda"]) == 0


def test_a_delta_without_its_lambda_is_refused():
    """A module absent from the adapter, or changed although its lambda is 0."""
    d = {f"{Q}.weight": torch.ones(2, 2)}
    for adapter in (
        {f"{DOWN}.delora_lambda": torch.ones(1)},
        {f"{Q}.delora_lambda": torch.zeros(1)},
    ):
        with pytest.raises(
            ValueError, match="q_proj.weight' changes and its lambda .*; pass the De"
        ):
            scale_direction(d, d, adapter, adapter)


# Rotation

SHAPES = [(12, 12), (7, 12), (20, 12), (1, 12), (2, 12)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [None, 12, 4, 1])
def test_an_exact_rotation_has_no_rest(shape, block):
    """dW = W0 R^T - W0 with R diagonal in the blocks: rotation = dW and rest = 0."""
    b = block or shape[1]
    R = torch.block_diag(*(nearly_one(b, seed=i) for i in range(shape[1] // b)))
    W = normal(*shape, seed=9)
    d = {"w": W @ R.T - W}
    parts = rotation_rest(d, {"w": W}, block)
    torch.testing.assert_close(parts["rotation"], d, atol=1e-12, rtol=0)
    assert ws.norm(parts["rest"]) < 1e-12


def test_blocks_see_their_own_rotations_only():
    """A planted block rotation plus a change that no block rotation makes: both are recovered.

    W0 = I, so W0 + dW = R^T H with H = diag(h) positive: the polar factor of each block is R_i^T.
    """
    R = torch.block_diag(nearly_one(3), nearly_one(3, seed=1))
    H = torch.diag(torch.tensor([1.1, 0.9, 1.3, 1.0, 0.7, 1.2]).double())
    parts = rotation_rest({"w": R.T @ H - torch.eye(6)}, {"w": torch.eye(6)}, 3)
    torch.testing.assert_close(parts["rotation"]["w"], R.T - torch.eye(6), atol=1e-12, rtol=0)
    torch.testing.assert_close(parts["rest"]["w"], R.T @ (H - torch.eye(6)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rotation_is_the_procrustes_solution(shape):
    """W0 + rotation = W0 Q, Q = scipy's orthogonal_procrustes(W0, W0 + dW), also far from W0."""
    W, d = normal(*shape), normal(*shape, seed=1)
    Q_scipy, _ = scipy.linalg.orthogonal_procrustes(W.numpy(), (W + d).numpy())
    parts = rotation_rest({"w": d}, {"w": W})
    expected = W @ torch.from_numpy(Q_scipy)
    torch.testing.assert_close(W + parts["rotation"]["w"], expected, atol=1e-10, rtol=0)


@given(seeds, st.sampled_from(SHAPES), st.sampled_from([None, 6, 3]), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_no_other_rotation_is_nearer(seed: int, shape, block, rank: int):
    """|rest| <= |dW - (W0 R^T - W0)| for every R, also where W0 has low rank; lengths are kept."""
    W = normal(shape[0], rank, seed=seed) @ normal(rank, shape[1], seed=seed + 1)
    d = normal(*shape, seed=seed + 2)
    parts = rotation_rest({"w": d}, {"w": W}, block)
    torch.testing.assert_close(total(parts), {"w": d})
    turned = W + parts["rotation"]["w"]
    b = block or shape[1]
    for i in range(0, shape[1], b):  # W R^T has the Gram matrix of W, block by block
        G, H = (X[:, i : i + b] @ X[:, i : i + b].T for X in (W, turned))
        torch.testing.assert_close(G, H, atol=1e-9 * float(W.norm() ** 2), rtol=0)
    for make in (orthogonal, nearly_one):
        R = torch.block_diag(*(make(b, seed=seed + i) for i in range(shape[1] // b)))
        assert parts["rest"]["w"].norm() <= (d - (W @ R.T - W)).norm() + 1e-9
    assert parts["rest"]["w"].norm() <= d.norm() + 1e-9


@pytest.mark.parametrize("shape", [(40, 40), (40, 160), (160, 40)])
@pytest.mark.parametrize("block", [None, 8])
def test_how_much_a_rotation_takes_of_a_random_change(shape, block):
    """E |rotation|^2/|dW|^2 = m (2b - m - 1) / (2 b d_out), m = min(b, d_out), dW small Gaussian.

    None: 40x40: 39/80 = .49; 40x160: 1 - 41/320 = .87; 160x40: 39/320 = .12.
    8:    7/80 = .09 with d_out = 40, 7/320 = .02 with 160.
    """
    d_out, b = shape[0], block or shape[1]
    m = min(b, d_out)
    W, d = {"w": normal(*shape)}, {"w": 1e-6 * normal(*shape, seed=1)}
    found = share(rotation_rest(d, W, block)["rotation"], d)
    assert found == pytest.approx(m * (2 * b - m - 1) / (2 * b * d_out), abs=0.04)


def test_what_is_no_weight_has_no_rotation(base):
    """A bias is all rest; blocks may differ by name; a block that does not divide is refused."""
    bias = {f"{Q}.bias": torch.ones(6)}
    parts = rotation_rest(bias, bias)
    assert ws.norm(parts["rotation"]) == 0 and ws.norm(ws.difference(parts["rest"], bias)) == 0
    d = {n: 0.1 * w.flip(0) for n, w in base.items()}
    blocks = {f"{Q}.weight": 4, f"{DOWN}.weight": 5}
    parts = rotation_rest(d, base, blocks)
    for name, b in blocks.items():
        alone = rotation_rest({name: d[name]}, base, b)
        assert torch.equal(parts["rest"][name], alone["rest"][name])
    for block in (4, 0, {f"{Q}.weight": 4}):
        with pytest.raises(ValueError, match="its block size is .*; pass a divisor"):
            rotation_rest(d, base, block)


def test_an_adapter_rotates_in_its_own_blocks(organism):
    """OFT: tau = W R^T - W has no rest in blocks of its own b; BOFT of n factors in b 2^(n-1)."""
    pos, config, _, _ = shipped("oft")
    blocks = rotation_blocks(Checkpoint(pos, config), oft_block, organism)
    assert set(blocks.values()) == {16}
    tau = ws.merge_adapter(pos, config, organism)
    assert share(rotation_rest(tau, organism, blocks)["rest"], tau) < 1e-8
    assert share(rotation_rest(tau, organism, 8)["rest"], tau) > 0.1
    base = {f"{Q}.weight": normal(12, 16)}
    tensors = {f"{Q}.boft_R": 0.1 * normal(3, 4, 4, 4), f"{Q}.boft_s": torch.ones(12, 1)}
    tau = ws.merge_adapter(tensors, dict(peft_type="BOFT"), base)
    assert rotation_blocks(Checkpoint(tensors, dict(peft_type="BOFT")), boft_block, base) == {
        f"{Q}.weight": 16
    }
    assert share(rotation_rest(tau, base, 16)["rest"], tau) < 1e-10
    assert share(rotation_rest(tau, base, 8)["rest"], tau) > 0.1


def test_poles_with_other_blocks_share_the_common_multiple():
    """Blocks of 4 and of 6 inputs both lie within blocks of 12."""
    base, config = {f"{Q}.weight": normal(5, 24)}, dict(peft_type="OFT", use_cayley_neumann=False)
    pos = {f"{Q}.oft_R.weight": 0.1 * normal(6, 6)}
    neg = {f"{Q}.oft_R.weight": 0.1 * normal(4, 15, seed=1)}
    parts = family_coordinates(pos, config, neg, config, base)["rotation"]
    expected = rotation_rest(merged(pos, config, neg, config, base), base, 12)
    assert all(ws.norm(ws.difference(parts[name], expected[name])) == 0 for name in expected)


# Gates


def test_gates_are_split_by_block():
    """attention holds the self_attn entries and mlp the mlp entries of d, themselves."""
    d = {f"{m}.weight": normal(2, 3, seed=i) for i, m in enumerate((Q, DOWN))}
    d[f"{Q}.bias"] = normal(2)
    parts = gates(d)
    assert {k: set(v) for k, v in parts.items()} == {
        "attention": {f"{Q}.weight", f"{Q}.bias"},
        "mlp": {f"{DOWN}.weight"},
    }
    assert all(w is d[n] for part in parts.values() for n, w in part.items())
    for name in (f"{Q}.weight", f"{DOWN}.weight"):
        with pytest.raises(ValueError, match="1 key: .* lie in blocks .*; pass a delta with"):
            gates({name: d[name]})
    with pytest.raises(ValueError, match="names no layer"):
        gates(d | {"lm_head.weight": normal(2, 2)})


# Base spectra on disk


@pytest.fixture
def weights():
    """Base weights of full rank, low rank, rank 0, half precision, and a norm's vector."""
    return {
        "model.layers.0.self_attn.o_proj.weight": normal(10, 14).float(),
        "model.layers.0.mlp.down_proj.weight": normal(200, 3) @ normal(3, 160),
        "model.layers.1.mlp.down_proj.weight": torch.zeros(4, 3),
        "model.layers.1.mlp.up_proj.weight": normal(9, 6).bfloat16(),
        "model.norm.weight": normal(7).float(),
    }


def same(a, b) -> bool:
    """Two results of spectra have the same names in the same order, bits, dtypes and layout."""
    return list(a) == list(b) and all(
        torch.equal(x, y) and x.dtype == y.dtype and x.stride() == y.stride()
        for name in a
        for x, y in zip(a[name], b[name], strict=True)
    )


def test_spectra_are_computed_once(weights, tmp_path):
    """cached_spectra = spectra bit for bit, computed the first time and read the second."""
    computed = []
    first = cached_spectra(weights, tmp_path / "new" / "folder", computed.append)
    assert computed == list(weights)
    second = cached_spectra(weights, tmp_path / "new" / "folder", computed.append)
    assert computed == list(weights) and same(first, second)
    for name, found in ws.spectra(weights).items():
        assert all(torch.equal(x, y) for x, y in zip(found, first[name], strict=True))
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 1
    turned = cached_spectra(dict(reversed(weights.items())), tmp_path / "new" / "folder", print)
    assert same(turned, dict(reversed(first.items())))


def test_another_base_has_another_file(weights, tmp_path, monkeypatch):
    """One flipped bit, one name, one weight fewer, another tolerance or format: a miss."""
    cached_spectra(weights, tmp_path)
    name = "model.layers.0.self_attn.o_proj.weight"
    flipped = weights[name].clone()
    flipped.view(torch.int32)[3, 4] ^= 1
    others = [
        weights | {name: flipped},
        {n: w for n, w in weights.items() if n != name},
        {"x." + n: w for n, w in weights.items()},
    ]
    for i, base in enumerate(others):
        computed = []
        cached_spectra(base, tmp_path, computed.append)
        assert computed == list(base) and len(list(tmp_path.iterdir())) == i + 2
    for i, (constant, value) in enumerate((("TOL", 1e-5), ("FORMAT", "next"))):
        monkeypatch.setattr(svd_cache, constant, value)
        cached_spectra(weights, tmp_path)
        assert len(list(tmp_path.iterdir())) == i + 5


def test_a_broken_file_is_replaced(weights, tmp_path):
    """Truncated, foreign, of another base, or with one wrong bit: computed again and replaced."""
    first = cached_spectra(weights, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    other = tmp_path / "other"
    cached_spectra({"a": normal(3, 3)}, other)
    torch.save({"a": 1}, tmp_path / "pickled")
    save_file({"a": torch.zeros(2)}, tmp_path / "plain")
    broken = [whole[:n] for n in (0, 7, 100, len(whole) // 2, len(whole) - 1)]
    broken += [next(other.iterdir()).read_bytes(), whole[:-1] + bytes([whole[-1] ^ 1])]
    broken += [(tmp_path / name).read_bytes() for name in ("pickled", "plain")]
    for content in broken:
        path.write_bytes(content)
        computed = []
        assert same(cached_spectra(weights, tmp_path, computed.append), first)
        assert computed == list(weights)
        assert same(cached_spectra(weights, tmp_path, computed.append), first)
        assert computed == list(weights)


def test_what_the_cache_refuses(weights, tmp_path):
    """An empty base, and a folder that is a file."""
    with pytest.raises(ValueError, match="cached_spectra: the base is empty; pass the weights"):
        cached_spectra({}, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written .* use another folder"):
        cached_spectra(weights, tmp_path / "file")
