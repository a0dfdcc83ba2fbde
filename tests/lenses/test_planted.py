"""T13: plants are what they are said to be, and verdicts are counted against the truth."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest
import torch
from scipy.stats import binomtest

from tests.conftest import ORGANISM, ROOT, bits, experiment, same_bits
from tests.folders import tiny_folder, truthfulqa_like
from wscore import Band, Verdict, crop, drop, inner, keep, norm, site, svd
from wscore.sealed_json import seal
from wsrun.adapters.configs import FAMILIES, RECIPES, Recipe
from wsrun.adapters.extract import pair_deltas
from wsrun.adapters.train import train_adapter
from wsrun.data.pairs import Pair
from wsrun.lenses import cuts, planting, plants
from wsrun.lenses.coordinates import BANDS, DISJOINT
from wsrun.lenses.decoys import slices_of
from wsrun.lenses.weights import base_of, subspace_sizes
from wsrun.models.tiny import tiny_qwen3
from wsrun.report.tables import read_table, write_table
from wsrun.report.verdicts import planted as planted_sentences
from wsrun.study import planted_start
from wsrun.study.planted import PLACES, confusion, judged, outputs, places
from wsrun.study.planted_report import side_by_side

RECIPE = Recipe("test", 8, 16, dict.fromkeys(FAMILIES, 5e-3), 3, 2, 16, (0.25, 0.75))
PAIRS = [Pair("Is it so?", "It is so.", "It is not.", "a"), Pair("And now?", "Yes.", "No.", "b")]
t13 = experiment("t13_planted")
CFG = t13.Config(seeds=(0,))
SVG = "{http://www.w3.org/2000/svg}"
WRITES = ("o_proj", "down_proj")
ONE = "one-module"
OF_ONE = pl.col("family").str.starts_with(ONE) | pl.col("family").is_null()
"""of the rows: those of its members, and those of the base"""


@pytest.fixture(scope="module")
def tiny(tok):
    """(model, its band): 4 layers of which 2 and 3 are in [0.3, 0.8), d_model 64."""
    model = tiny_qwen3(vocab_size=len(tok))
    return model, base_of(model, 3, RECIPES["organism"])


def targets(at, base):
    return plants.PLANTS[at.plant].targets(at, base, 0)


def trained(tiny, tok, folder, at, prepare):
    """dW of a plant after three steps a pole; the base keeps its bits."""
    model, base = tiny
    where = "|".join(n.removesuffix(".weight").replace(".", r"\.") for n in targets(at, base))
    before = bits(model)
    for side in ("pos", "neg"):
        train_adapter(
            model, tok, PAIRS, side, "lora", RECIPE, folder / side, where=where, prepare=prepare
        )
    assert same_bits(model, before)
    return pair_deltas(model, folder).dW


def core_of(base, at, rank=3, seed=0):
    """A dW that a plant could have been trained to: random, of low rank, inside its constraint."""
    random = torch.Generator().manual_seed(seed)
    out = {}
    for name in targets(at, base):
        shape = base.weights[name].shape
        out[name] = torch.randn(shape[0], rank, generator=random, dtype=torch.float64) @ (
            torch.randn(rank, shape[1], generator=random, dtype=torch.float64)
        )
    if at.plant == "base-band":
        out = crop(out, BANDS[at.truth.removeprefix("base_")], "base", svds=base.svds)
    return keep(out, plants.frame(at, base, 0)) if plants.PLANTS[at.plant].several else out


@pytest.mark.parametrize("plant", ["shared-core", "divergent-basins"])
def test_frozen_factors_stay(tiny, tok, tmp_path, plant):
    """B after training = the frame, bit for bit, so U U^T dW = dW; and A was trained"""
    at, seen = plants.instance(plant, 0, tiny[1]), {}
    U = plants.frame(at, tiny[1], 1)

    def prepare(model):
        plants.in_frame(at, tiny[1], 1)(model)
        seen.update({n: (A, B) for n, A, B in plants.factors(model)})

    dW = trained(tiny, tok, tmp_path, at, prepare)
    assert seen.keys() == dW.keys() == {n for n in tiny[1].weights if site(n).proj in WRITES}
    for name, (A, B) in seen.items():
        assert torch.equal(B.data, U[name]) and A.data.any()
    assert norm(dW) > 0 and norm(drop(dW, U)) < 1e-5 * norm(dW)


def test_projected_factors_stay_in_the_band(tiny, tok, tmp_path):
    """U_b U_b^T dW V_b V_b^T = dW after training, on every linear map of the band of layers"""
    at = plants.instance("base-band", 1, tiny[1])
    dW = trained(tiny, tok, tmp_path, at, plants.in_band(at, tiny[1], 0))
    inside = crop(dW, BANDS["middle"], "base", svds=tiny[1].svds)
    assert at.truth == "base_middle" and dW.keys() == tiny[1].weights.keys()
    assert norm({n: dW[n] - inside[n] for n in dW}) < 1e-5 * norm(dW)


@pytest.mark.parametrize("plant", ["one-layer", "one-module"])
def test_other_slices_are_not_trained(tiny, tok, tmp_path, plant):
    """where: dW holds the planted slice's tensors and no other"""
    at = plants.instance(plant, 0, tiny[1])
    dW = trained(tiny, tok, tmp_path, at, None)
    slices = {n for n in tiny[1].weights if at.truth in slices_of(n)}
    assert dW.keys() == slices and 0 < len(slices) < len(tiny[1].weights)


def test_frames(tiny):
    """members share the frame of a shared core; U_i^T U_j = 0 between those of divergent basins"""
    for plant, same in (("shared-core", True), ("divergent-basins", False)):
        U = [plants.frame(plants.instance(plant, 0, tiny[1]), tiny[1], i) for i in range(3)]
        for name in U[0]:
            assert U[0][name].shape == (64, 8)
            dot = U[0][name].T @ U[1][name]
            target = torch.eye(8) if same else torch.zeros(8, 8)
            assert torch.allclose(dot, target, atol=1e-5)
            of_layer = [u for n, u in U[0].items() if site(n).layer == site(name).layer]
            assert all(torch.equal(u, of_layer[0]) for u in of_layer)


@pytest.mark.parametrize("plant", ["shared-core", "divergent-basins"])
def test_decoys_outside_the_frame(tiny, plant):
    """|decoy_t| = |core_t| and U^T decoy = 0 for the frames of all members"""
    at, base = plants.instance(plant, 0, tiny[1]), tiny[1]
    core = core_of(base, at)
    m = plants.with_decoys(at, 0, core, base)
    assert m.decoys.keys() == core.keys()
    for name, w in m.decoys.items():
        assert float(w.norm() / core[name].norm()) == pytest.approx(1)
    for i in range(3):
        inside = keep(m.decoys, plants.frame(at, base, i))
        assert norm(inside) < 1e-5 * norm(core)
    assert all(torch.equal(m.whole[n], core[n] + m.decoys[n]) for n in core)


@pytest.mark.parametrize("plant, alike", [("one-layer", 1), ("one-module", 0)])
def test_decoys_of_sites(tiny, plant, alike):
    """every unplanted tensor has its twin's singular values, scaled to |twin|, and no planted one
    has a decoy: all slices have one norm"""
    at, base = plants.instance(plant, 0, tiny[1]), tiny[1]
    core = core_of(base, at)
    decoys = plants.with_decoys(at, 0, core, base).decoys
    assert decoys.keys() == base.weights.keys() - core.keys()
    for name, w in decoys.items():
        key = slices_of(name)[alike]
        (twin,) = (c for n, c in core.items() if slices_of(n)[alike] == key)
        assert torch.allclose(svd(w).S, svd(twin).S, rtol=1e-9)
    sums: dict = {}
    for name, w in (core | decoys).items():
        key = slices_of(name)[1 - alike]
        sums[key] = sums.get(key, 0.0) + float(w.norm() ** 2)
    assert max(sums.values()) == pytest.approx(min(sums.values()))


def test_decoys_of_bands(tiny):
    """each other band's block of a decoy has |core_t|, the planted band's block and <core, decoy>
    are 0"""
    at, base = plants.instance("base-band", 0, tiny[1]), tiny[1]
    core = core_of(base, at)
    m = plants.with_decoys(at, 0, core, base)
    for band in DISJOINT:
        b = BANDS[band]
        part = crop(m.decoys, b, "base", svds=base.svds)
        for name, w in core.items():
            wanted = 0 if at.truth == f"base_{band}" else 1
            assert float(part[name].norm() / w.norm()) == pytest.approx(wanted, abs=1e-4)
    assert abs(inner(core, m.decoys)) < 1e-4 * norm(core) * norm(m.decoys)


def test_decoys_on_top(tiny):
    """own-band: in planted tensors the top quarter of dW's own directions holds nothing of the
    plant, <crop(dW, top), core> = 0, and the middle half holds the upper half of the plant"""
    base = tiny[1]
    one = plants.instance("one-layer", 0, base)
    at = plants.instance("own-band", 0, base)
    m = plants.with_decoys(at, 0, core_of(base, one, rank=8), base)
    whole = {n: m.whole[n] for n in m.core}
    top, middle = (crop(whole, BANDS[b]) for b in ("top", "middle"))
    upper = crop(m.core, Band(0, 0.5))
    for name, w in m.core.items():
        assert abs(float((top[name] * w).sum())) < 1e-8 * float(w.norm() ** 2)
        inside = float((middle[name] * w).sum() / (upper[name] * w).sum())
        assert inside == pytest.approx(1)


def test_bases_of_decoys_and_nulls_differ(tiny):
    """decoys, members and null draws of one seed share no random direction"""
    at, base = plants.instance("one-layer", 0, tiny[1]), tiny[1]
    m = plants.with_decoys(at, 0, core_of(base, at, rank=16), base)
    other = plants.with_decoys(at, 1, m.core, base)
    draws = [v for v in places({at: [m]}, base).variants(2) if "null" in v.name]
    draws = [v.intervention.delta() for v in draws]
    for name, w in m.decoys.items():
        for d in (other.decoys, *draws):
            assert abs(float((w * d[name]).sum())) < 0.5 * float(w.norm() * d[name].norm())


def test_lenses_are_those_of_the_experiments(tiny):
    """T13 asks the very cuts of T6 and T7: the same parts of the same dW, bit for bit"""
    at, base = plants.instance("shared-core", 0, tiny[1]), tiny[1]
    ms = [plants.with_decoys(at, i, core_of(base, at, seed=i), base) for i in range(3)]
    reading = outputs({at: ms}, (8,))
    (first, *_) = reading.cuts
    mine = {cut.name: cut for cut in reading.cuts[first]}
    lenses = (*experiment("t6_shared_svd").Config().lenses, "stacked")
    theirs = {cut.name: cut for cut in cuts(lenses, first)}
    assert set(mine) == set(theirs) - {"shared_incl"}
    for name, cut in mine.items():
        a, b = cut.kept(), theirs[name].kept()
        assert all(torch.equal(a[n], b[n]) for n in a)
    t7 = {name for name in experiment("t7_sites").LENSES} | {"own_bands", "base_bands"}
    assert set(places({at: ms}, base).lenses) <= t7


def test_only_stacked_writes_show_a_crossed_core(tiny):
    """what member 1 writes by down_proj the others write by o_proj: U_l of [dW_o, dW_down] of the
    others holds the frame, the down_proj of the others alone does not"""
    at, base = plants.instance("crossed-core", 0, tiny[1]), tiny[1]
    random, ms = torch.Generator().manual_seed(0), []
    for i in range(3):
        names = plants.one_writer(at, base, i)
        drawn = {n: torch.randn(base.weights[n].shape, generator=random).double() for n in names}
        ms.append(plants.with_decoys(at, i, keep(drawn, plants.frame(at, base)), base))
    assert [{site(n).proj for n in m.core} for m in ms] == [{"o_proj"}, {"down_proj"}, {"o_proj"}]
    assert all(m.whole.keys() == ms[0].whole.keys() for m in ms)
    reading, core = outputs({at: ms}, (16,)), ms[1].core
    found = {cut.name: cut for cut in reading.cuts[[*reading.cuts][1]]}
    inside = {}
    for name in ("stacked", "shared"):
        kept = found[name].kept()
        inside[name] = sum(float((kept[n] * w).sum()) for n, w in core.items()) / norm(core) ** 2
    assert inside["stacked"] > 0.7 > 0.5 > inside["shared"]


def line(plant, rule, outcome, part=None, truth=None, seed=0, dataset="claims"):
    at = plants.Instance(plant, seed, truth)
    return judged(dataset, at, rule, Verdict(outcome, "as it is", part))


def test_a_wrong_slice_is_no_detection():
    """supported counts as detection of layer_3 only where it names layer_3"""
    right, wrong, none = (
        line("one-layer", "layers", *v, truth="layer_3")
        for v in (("supported", "layer_3"), ("supported", "layer_2"), ("undetermined", None))
    )
    assert (right["agree"], wrong["agree"], none["agree"]) == (True, False, False)
    assert line("nothing", "layers", "supported", "layer_2")["agree"] is False
    assert line("nothing", "layers", "refuted")["agree"] is True
    assert line("one-layer", "own bands", "supported", "own_top", "layer_3")["agree"] is None


def test_confusion_counts():
    """supported + refuted + undetermined = seeds, agree of them; lo and hi are Wilson's (scipy)"""
    lines = [
        line("one-layer", "layers", "supported", "layer_2", "layer_2", 0),
        line("one-layer", "layers", "supported", "layer_2", "layer_3", 1),
        line("one-layer", "layers", "undetermined", None, "layer_4", 2),
        line("nothing", "layers", "refuted"),
        line("nothing", "layers", "undetermined"),
        line("base-band", "layers", "supported", "layer_2", "base_top"),
    ]
    found = confusion(pl.DataFrame(lines, infer_schema_length=None))
    counts = ("supported", "misplaced", "refuted", "undetermined", "seeds", "agree")
    assert found.select("plant", *counts).rows() == [
        ("one-layer", 2, 1, 0, 1, 3, 1),
        ("nothing", 0, 0, 1, 1, 2, 2),
        ("base-band", 1, 0, 0, 0, 1, None),
    ]
    ends = found.select("lo", "hi").rows()
    for (lo, hi), (k, n) in zip(ends, ((1, 3), (2, 2)), strict=False):
        ci = binomtest(k, n).proportion_ci(method="wilson")
        assert (lo, hi) == pytest.approx((ci.low, ci.high), abs=1e-4)
    assert ends[2] == (None, None)


def test_runs_side_by_side(tmp_path):
    """a column per model and data set, with its own counts; a dash where a rule did not run"""
    paths = []
    for model, rules in (("a", ("layers", "modules")), ("b", ("layers",))):
        lines = [line("one-layer", r, "supported", "layer_2", "layer_2") for r in rules]
        if model == "b":
            lines.append(line("one-layer", "layers", "refuted", dataset="replies"))
        counts = confusion(pl.DataFrame(lines, infer_schema_length=None))
        path = tmp_path / f"{model}.confusion.parquet"
        paths.append(str(write_table(counts, path, {"config": {"model": model}})))
    table = side_by_side(paths)
    cells = {c.header: list(c.cells) for c in table.columns}
    assert cells == {
        "plant": ["one-layer"] * 2,
        "rule": ["layers", "modules"],
        "claim": ["true", "open"],
        "a, claims": ["1 / 0 / 0; 1 of 1 right", "1 / 0 / 0"],
        "b, claims": ["1 / 0 / 0; 1 of 1 right", "-"],
        "b, replies": ["0 / 1 / 0; 0 of 1 right", "-"],
    }
    other = write_table(pl.DataFrame({"plant": ["p"]}), tmp_path / "x.parquet", {})
    with pytest.raises(ValueError, match="x.parquet.*give .*confusion.parquet"):
        side_by_side([str(other)])


@pytest.fixture(scope="module")
def replies(tmp_path_factory, tok):
    """One seed of two plants on a random Qwen3 that reads replies; returns (folder, config)."""
    folder = tmp_path_factory.mktemp("replies")
    model = tiny_folder(folder, tiny_qwen3, tok, families=())["model"]
    data = truthfulqa_like(folder)
    cfg = t13.Config(
        seeds=(0,), plants=("divergent-basins", "one-layer"), members=2, steps=1, nulls=2,
        lenses=("shared", "own", "layers"), resamples=50, limit=2, recipe="organism",
        model=str(model), data=data, adapters=folder / "adapters", out=folder,
        pairs_cache=folder / "pairs", cache_dir=folder / "parts",
    )  # fmt: skip
    return folder, cfg


def test_replies_of_a_public_set(replies, monkeypatch, no_figures):
    """a stopped training goes on with the members that are not finished; then a verdict per data
    set, plant and rule, what the check says of each, and rank, K and steps in the record"""
    folder, cfg = replies
    monkeypatch.chdir(ROOT)  # personas of data/english
    real, trained = planted_start.train_member, []

    def stopped(into, learn, at, *more):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(at)
        return real(into, learn, at, *more)

    monkeypatch.setattr(planted_start, "train_member", stopped)
    with pytest.raises(KeyboardInterrupt):
        t13.main(cfg)
    assert [p.name for p in cfg.adapters.iterdir()] == ["divergent-basins-s0-m0"]
    monkeypatch.setattr(planted_start, "train_member", lambda *a: trained.append(a[2]) or real(*a))
    t13.main(cfg)
    assert [at.plant for at in trained] == ["divergent-basins"] * 2 + ["one-layer"]
    both = {"truthfulqa", "truthfulqa per token"}
    summary, meta = read_table(folder / "t13_planted.parquet")
    assert set(summary["dataset"]) == both and summary["reads"].is_not_null().all()
    assert set(meta["reads"]) == both and meta["config"]["K"] == [8, 16]
    assert (meta["config"]["recipe"], meta["config"]["steps"]) == ("organism", 1)
    verdicts = read_table(folder / "t13_planted.verdicts.parquet")[0]
    claims = [("divergent-basins", r) for r in ("shared core", "basin divergence", "layers")]
    claims.append(("one-layer", "layers"))
    for dataset in both:
        assert verdicts.filter(dataset=dataset).select("plant", "rule").rows() == claims
    assert len(read_table(folder / "t13_planted.confusion.parquet")[0]) == 2 * len(claims)
    assert {s.partition(":")[0] for s in planted_sentences(verdicts)} == both


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One seed of three plants at two steps and eight claims; returns (folder, config)."""
    folder = tmp_path_factory.mktemp("t13")
    data = folder / "data"
    data.mkdir()
    for name in ("personas.json", "dilemmas.jsonl"):
        shutil.copy(ORGANISM / name, data)
    for name, split in (("claims.jsonl", "test"), ("questions.jsonl", "train")):
        lines = (ORGANISM / name).read_text().splitlines(keepends=True)
        of = [line for line in lines if json.loads(line)["split"] == split]
        (data / name).write_text("".join(of[:8]))
    cfg = t13.Config(
        seeds=(0,), plants=("shared-core", "one-module", "nothing"), members=2, K=(8,), steps=2,
        nulls=2, resamples=50, model=str(ORGANISM), data=str(data),
        adapters=folder / "adapters", out=folder, pairs_cache=folder / "pairs",
        cache_dir=folder / "parts",
    )  # fmt: skip
    t13.main(cfg)
    return folder, cfg


def test_a_second_run_trains_nothing(run, tmp_path, monkeypatch, no_figures):
    """equal settings reuse the adapters, and give the same rows and verdicts of a plant bit for
    bit, scored anew; others do not"""
    folder, cfg = run
    monkeypatch.setattr(planted_start, "train_member", None)
    t13.main(replace(cfg, plants=(ONE,), out=tmp_path, cache_dir=tmp_path / "parts"))
    plant = pl.col("plant") == ONE
    for name, own in (("rows", OF_ONE), ("verdicts", plant), ("confusion", plant)):
        a, b = (read_table(d / f"t13_planted.{name}.parquet")[0] for d in (folder, tmp_path))
        assert len(b) and a.filter(own).equals(b)
    with pytest.raises(TypeError):  # it would have trained
        t13.main(replace(cfg, out=tmp_path, steps=3))
    # what one-layer trained serves "nothing" too: two members, one module, one layer
    assert len(list(cfg.adapters.iterdir())) == 2 + 1 + 1
    settings = json.loads((cfg.adapters / "one-module-s0-m0" / planting.SETTINGS).read_text())
    assert settings["truth"] == "down_proj" and settings["steps"] == 2


def test_every_rule_and_part_is_there(run):
    """a line per instance and rule; variants are as many as parts; kept + rest = whole"""
    folder, cfg = run
    rules = read_table(folder / "t13_planted.verdicts.parquet")[0]
    places = {"layers", "modules", "own bands", "base bands"}
    for plant in cfg.plants:
        known = places | (
            {"shared core", "basin divergence", "stacked core"} if plant != "one-module" else set()
        )
        assert set(rules.filter(plant=plant)["rule"]) == known
    rows = read_table(folder / "t13_planted.rows.parquet")[0].filter(pl.col("variant") != "base")
    runs = rows.select("family", "method", "variant", "k").unique().group_by("family").len()
    found = dict(runs.rows())
    # whole, plant, decoys, nulls, and three lines for 2 + 3 or 7 + 3 sites and 6 bands;
    # outputs: whole, ten lines per K, nulls
    assert found["one-module-s0-m0"] == 3 + 2 + 3 * (3 + 7 + 6)
    assert found["shared-core-s0-m0"] == 3 + 2 + 3 * (3 + 2 + 6) + (1 + 10 + 2)
    assert found["shared-core-s0-m1"] == 1 + 10 + 2
    summary = read_table(folder / "t13_planted.parquet")[0]
    own = summary.filter(variant="keep_own", family="shared-core-s0-m0")
    assert own["overlap_random"].to_list() == pytest.approx([8 / 160])
    bands = summary.filter(pl.col("variant").str.contains("^keep_own_"))
    assert bands.group_by("family").agg(pl.col("energy").sum())["energy"].to_list() == (
        pytest.approx([1, 1, 1], abs=1e-5)
    )


def test_a_stopped_run_goes_on(run, tmp_path, monkeypatch, no_figures):
    """what is in the cache is not scored again, and gives the same rows"""
    folder, cfg = run
    monkeypatch.setattr("wsrun.score.cached.CachedEngine.run", None)
    t13.main(replace(cfg, plants=(ONE,), out=tmp_path))
    a, b = (read_table(d / "t13_planted.rows.parquet")[0] for d in (folder, tmp_path))
    assert len(b) and a.filter(OF_ONE).equals(b)


def test_the_figure_says_what_a_blank_cell_is(run):
    """T6's rules have no cell where there is one adapter, and the caption says why"""
    pytest.importorskip("matplotlib")
    parts = ElementTree.parse(run[0] / "t13_planted.confusion.svg").iter(f"{SVG}text")
    words = " ".join(" ".join("".join(part.itertext()) for part in parts).split())
    assert "Blank: the rule was not run" in words and "Data set claims." in words


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(plants=("two-layers",)), "--plants must be of shared-core, .* got two-layers"),
        (dict(plants=("nothing", "nothing")), "each value once; got nothing nothing"),
        (dict(seeds=()), "--seeds .* got nothing"),
        (dict(seeds=(1, 1)), "--seeds .* got 1 1"),
        (dict(members=1), "--members must be of 2 to 19, .* got 1"),
        (dict(steps=0), "--steps must be at least 1, got 0"),
        (dict(lr=-1.0), "--lr must be above 0, got -1"),
        (dict(recipe="mine"), "--recipe must be one of paper, .* got 'mine'"),
        (dict(limit=0), "--limit must be at least 1, got 0"),
        (dict(check_limit=0), "--check-limit must be at least 1, got 0"),
        (dict(lenses=("cells",)), "--lenses must be of shared, .* got cells"),
        (dict(lenses=("own",)), "--lenses own is compared with shared; add shared"),
        (dict(lenses=("random", "layers")), "--lenses random is compared with shared; add shared"),
        (
            dict(lenses=("shared",), plants=("nothing", "one-layer")),
            "--lenses shared reads one-layer, .* add one of layers, .* leave it out of --plants",
        ),
        (dict(neg="honest"), "--pos and --neg are both 'honest'"),
        (dict(pairs_file=Path("none.jsonl"), filter_pairs=True), "--filter-pairs .*'none.jsonl'"),
        (dict(nulls=999), "--nulls must be of 1 to 998, .* got 999"),
        (dict(K=(0,)), "--K .* got 0"),
    ],
)
def test_bad_options_are_refused(tmp_path, change, text):
    """one sentence, before anything is loaded"""
    with pytest.raises(ValueError, match=text):
        t13.main(replace(CFG, adapters=tmp_path, out=tmp_path, cache_dir=tmp_path, **change))


def test_frames_must_fit(tiny):
    """members * rank directions cannot be orthogonal in fewer dimensions"""
    with pytest.raises(ValueError, match="9 frames of 8 do not fit d_model 64; lower --members"):
        base_of(tiny[0], 9, RECIPES["organism"])


def test_decoys_must_fit(tiny):
    """rank(dW) = 2 r, as many again of decoys: 4 r directions of a width of 48"""
    with pytest.raises(ValueError, match="rank 32 .* does not fit .*k_proj.* 48; .*--recipe"):
        base_of(tiny[0], 2, RECIPES["smollm2"])


def test_rank_and_sizes_are_the_recipes(tiny):
    """U [d_model, r], K = r and 2 r: 8 and 16 of the organism's, 4 and 8 at half its rank"""
    half = replace(RECIPES["organism"], rank=4)
    base = base_of(tiny[0], 3, half)
    for plant in ("shared-core", "divergent-basins"):
        U = plants.frame(plants.instance(plant, 0, base), base, 1)
        assert {u.shape for u in U.values()} == {(64, 4)}
    assert subspace_sizes(RECIPES["organism"]) == (8, 16) and subspace_sizes(half) == (4, 8)


def test_lenses_are_chosen_by_name(tiny):
    """a reading takes those of its own lenses, and claims and variants follow: whole, plant, decoys
    and 2 nulls of a first member are there in any case"""
    at, base = plants.instance("shared-core", 0, tiny[1]), tiny[1]
    ms = {at: [plants.with_decoys(at, i, core_of(base, at, seed=i), base) for i in range(2)]}
    chosen = ("shared", "layers")
    by_output, by_place = outputs(ms, (8,), chosen), places(ms, base, chosen)
    assert [c.name for c in by_output.claims(at)] == ["shared core"]
    assert [c.name for c in by_place.claims(at)] == ["layers"]
    assert len([*by_output.variants(2)]) == 2 * (1 + 2 + 2)
    assert len([*by_place.variants(2)]) == 1 + 2 + 3 * 2 + 2
    assert not outputs(ms, (8,), PLACES).claims(at) and not [*outputs(ms, (8,), PLACES).variants(2)]
    alone = places(ms, base, ("shared",))
    assert not alone.claims(at) and len([*alone.variants(2)]) == 1 + 2 + 2


def test_a_damaged_member_is_trained_again(tmp_path):
    """complete: just these settings and just these files, to the bit"""
    for side in ("pos", "neg"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "adapter_model.safetensors").write_bytes(b"weights")
    settings = {"plant": "one-module", "steps": 3, "rates": (0.5,)}
    text = json.dumps(seal(planting.record(tmp_path, settings)))
    (tmp_path / planting.SETTINGS).write_text(text)
    assert planting.complete(tmp_path, settings)
    assert not planting.complete(tmp_path, settings | {"steps": 4})
    (tmp_path / planting.SETTINGS).write_text(text.replace('"steps": 3', '"steps": 4'))
    assert not planting.complete(tmp_path, settings | {"steps": 4})
    (tmp_path / planting.SETTINGS).write_text(text)
    (tmp_path / "neg" / "adapter_model.safetensors").write_bytes(b"weighty")
    assert not planting.complete(tmp_path, settings)
