"""Every lens of the registry keeps the laws of cuts; a new one joins by its entry in LENSES."""

import pytest
import torch

from tests.conftest import ORGANISM
from wscore import add, difference, inner, norm, spectra
from wsrun.adapters.extract import pair_deltas, read_adapter
from wsrun.lenses import LENSES, Deltas, LensInput, claims, cuts, partitions
from wsrun.models.load import load_model

ADAPTERS = ORGANISM / "adapters"
FAMILIES = ("lora", "oft")  # kept as factors, and dense
ADDS_UP = {"layers", "thirds", "blocks", "sides", "modules", "own_bands", "parameters"}
CASES = [(lens, family) for lens in LENSES for family in FAMILIES]


@pytest.fixture(scope="module")
def model():
    return load_model(ORGANISM)[0]


@pytest.fixture(scope="module")
def deltas(model):
    keys = [(f, s) for f in FAMILIES for s in (0, 1)]
    return {(f, s): pair_deltas(model, ADAPTERS / f"{f}-s{s}").dW for f, s in keys}


@pytest.fixture(scope="module")
def base(model):
    return {n: p.detach() for n, p in model.named_parameters(remove_duplicate=False)}


@pytest.fixture(scope="module")
def svds(base, deltas):
    return spectra({n: base[n] for n in deltas["oft", 0]})


@pytest.fixture
def given(deltas, base, svds):
    """What a lens is given of a family, all of it fresh."""

    def make(family, deltas=deltas, svds=svds, K=(8,)):
        def poles():
            folder = ADAPTERS / f"{family}-s0"
            return read_adapter(folder / "pos"), read_adapter(folder / "neg")

        return LensInput(family, 0, Deltas(deltas), K, svds, base, poles)

    return make


@pytest.mark.parametrize("lens, family", CASES)
def test_kept_and_rest_are_the_whole(lens, family, given):
    """kept + rest = dW, on dW's own tensors, each of its own shape"""
    at = given(family)
    found = [cut for cut in LENSES[lens].cuts(at) if not cut.absent]
    assert found
    for cut in found:
        kept, rest = cut.kept(), cut.rest()
        assert set(kept) | set(rest) == set(at.dW)
        assert all(kept[n].shape == at.dW[n].shape for n in kept)
        error = norm(difference(add(kept, rest, disjoint=True), at.dW, missing="zero"))
        assert error <= 1e-5 * norm(at.dW), cut.name


@pytest.mark.parametrize("lens, family", CASES)
def test_same_input_same_bits(lens, family, given, deltas):
    """two runs agree bit for bit, in any order of the tensors to rounding; dW is not touched"""
    before = {n: w.clone() for n, w in deltas[family, 0].items()}
    turned = {k: {n: d[n] for n in reversed(list(d))} for k, d in deltas.items()}
    plain = {k: {n: d[n] for n in d} for k, d in deltas.items()}
    runs = [LENSES[lens].cuts(given(family, d)) for d in (plain, plain, turned)]
    for one, same, other in zip(*runs, strict=True):
        assert one.name == same.name == other.name and one.k == same.k
        if one.absent:
            continue
        a, b, c = (cut.kept() for cut in (one, same, other))
        assert all(torch.equal(a[n], b[n]) for n in a)
        assert norm(difference(a, c)) <= 1e-5 * max(norm(a), 1e-9)
    assert all(torch.equal(w, before[n]) for n, w in deltas[family, 0].items())


@pytest.mark.parametrize("lens, family", CASES)
def test_cuts_are_known_before_they_are_made(lens, family, given, monkeypatch):
    """naming cuts reads no tensor of a delta and factorizes nothing; (name, k) is unique"""
    for name in ("svd", "eigh", "qr"):
        if lens != "parameters":  # its names come from one module of each kind
            monkeypatch.setattr(torch.linalg, name, None)
    found = list(LENSES[lens].cuts(given(family, K=(4, 8))))
    names = [(cut.name, cut.k) for cut in found]
    assert names and len(set(names)) == len(names)
    roles = {"keep", "drop", "control"}
    assert all(cut.roles and set(cut.roles) <= roles for cut in found)


@pytest.mark.parametrize("lens, family", CASES)
def test_parts_of_a_partition_are_disjoint(lens, family, given):
    """<kept_i, kept_j> = 0 for slices and bands; those of ADDS_UP sum to dW"""
    at = given(family)
    by_name = {cut.name: cut for cut in LENSES[lens].cuts(at) if not cut.absent}
    for names in partitions(by_name.values()).values():
        kept = [by_name[n].kept() for n in names]
        if lens != "parameters":
            for i, a in enumerate(kept):
                for b in kept[:i]:
                    if set(a) & set(b):
                        assert abs(inner(a, b)) <= 1e-5 * norm(at.dW) ** 2
        if lens in ADDS_UP:
            assert norm(difference(add(*kept, disjoint=True), at.dW)) <= 1e-5 * norm(at.dW)


def test_every_lens_makes_a_claim_or_is_beside_one(given):
    """a nested lens brings its rule, a partition gets one per family and one for all of them"""
    of = {f: cuts(("modules", "parameters"), given(f)) for f in FAMILIES}
    found = [(c.name, c.family) for c in claims(("modules", "parameters"), of)]
    assert found == [
        ("modules", None), ("modules", "lora"), ("modules", "oft"),
        ("rank", "lora"), ("rotation", "oft"),
    ]  # fmt: skip
    nested = list(claims(("shared", "own"), {}, ("a", "b"), keep_at_least=0.6, drop_at_most=0.2))
    assert [(c.name, c.family) for c in nested] == [
        ("shared core", None), ("basin divergence", None),
    ]  # fmt: skip
    assert nested[0].rule.families == ("a", "b") and nested[0].rule.keep_at_least == 0.6


def test_held_out_subspaces_do_not_know_the_delta(given, deltas):
    """keep_shared of a family does not move when that family's own dW does"""
    from wsrun.lenses.subspaces import directions

    other = dict(deltas) | {
        ("lora", 0): {n: torch.randn_like(w) for n, w in deltas["lora", 0].items()}
    }
    a, b = (directions(given("lora", d), "shared", 8) for d in (deltas, other))
    assert all(torch.equal(a[n], b[n]) for n in a)
    a, b = (directions(given("lora", d), "shared_incl", 8) for d in (deltas, other))
    assert not all(torch.allclose(a[n], b[n]) for n in a)


@pytest.mark.parametrize(
    "names, text", [(("shared", "x"), "not a choice of"), ((), "nothing"), (("own", "own"), "once")]
)
def test_unknown_lenses_are_refused(given, names, text):
    with pytest.raises(ValueError, match=text):
        cuts(names, given("lora"))


def test_a_subspace_larger_than_the_space_is_refused(given, deltas):
    at = LensInput("lora", 0, Deltas(deltas), (200,))
    with pytest.raises(ValueError, match="K must be at most d_model = 64, got 200"):
        cuts(("own",), at)
