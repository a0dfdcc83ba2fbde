"""T7 and T8 on the organism, T6 over seeds: parts that add up, honest gaps, spread over seeds."""

import io

import polars as pl
import pytest
from rich.console import Console

from tests.conftest import ORGANISM, ROOT, experiment
from tests.folders import small_data
from wscore import Locus, site, spectra, verdict
from wsrun.adapters.extract import pair_deltas
from wsrun.lenses import Cut, Deltas, LensInput
from wsrun.report.ablation_summary import compact
from wsrun.report.tables import read_table
from wsrun.study.ablation import Options, summarise
from wsrun.study.parts import Ablation
from wsrun.study.shards import finished

ADAPTERS = ORGANISM / "adapters"
QUICK = dict(
    model=str(ORGANISM), data=str(ORGANISM), adapters=ADAPTERS, dilemmas=4, nulls=2, resamples=200
)  # fmt: skip


def run(name, folder, **options):
    """The summary table of a script on the organism, and its provenance."""
    module = experiment(name)
    module.main(module.Config(**(QUICK | dict(out=folder, cache_dir=folder / "parts") | options)))
    return read_table(folder / f"{name}.parquet")


def verdicts(folder, name):
    """(dataset, claim, family) -> outcome of the verdict table."""
    table = read_table(folder / f"{name}.verdicts.parquet")[0]
    return {(r["dataset"], r["claim"], r["family"]): r["outcome"] for r in table.to_dicts()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six claims of the test split, each with its opposite, and as many dilemmas."""
    return small_data(tmp_path_factory.mktemp("data") / "data", clusters=6, wordings=2)


@pytest.fixture(scope="module")
def sites(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("t7")
    return folder, *run("t7_sites", folder, data=str(data), families=("lora", "ia3"))


@pytest.fixture(scope="module")
def coordinates(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("t8")
    options = dict(data=str(data), families=("lora", "oft"), svd_cache=folder / "cache")
    return folder, *run("t8_coordinates", folder, **options)


def test_t7_parts_add_up(sites):
    """|keep + drop - dW| <= 1e-5 |dW| in every pair; the energies of disjoint slices sum to 1"""
    table = sites[1].filter(dataset="claims")
    assert table["parts_error"].max() < 1e-5
    pairs = table.filter(pl.col("keep_or_drop").is_in(["keep", "drop"]), status="scored")
    assert pairs["parts_error"].null_count() == 0
    lora = table.filter(family="lora", keep_or_drop="keep")
    for partition in ("layers", "thirds of the band", "blocks", "modules"):
        energy = lora.filter(partition=partition)["energy"]
        assert energy.sum() == pytest.approx(1, abs=1e-5), partition
    cells = lora.filter(pl.col("layer").is_not_null())
    assert len(cells) == 21 and cells["energy"].sum() == pytest.approx(1, abs=1e-5)


def test_t7_every_kept_slice_has_its_counterparts(sites):
    """keep_x, drop_x and control_x for each slice of each family; the control has x's energy"""
    table = sites[1].filter(dataset="dilemmas")
    for (family,), part in table.group_by("family"):
        slices = part.filter(pl.col("layer").is_null() & pl.col("slice").is_not_null())
        roles = slices.group_by("slice").agg(pl.col("keep_or_drop").sort())
        assert len(roles) == 19, family
        assert all(r.to_list() == ["control", "drop", "keep"] for r in roles["keep_or_drop"])
    scored = table.filter(pl.col("status") == "scored")
    kept, control = (
        scored.filter(pl.col("layer").is_null(), keep_or_drop=p).sort("family", "slice")
        for p in ("keep", "control")
    )
    kept = kept.join(control.select("family", "slice"), on=["family", "slice"], how="semi")
    assert (kept["energy"] - control["energy"]).abs().max() < 1e-4


def test_t7_says_what_a_family_does_not_have(sites):
    """IA3 changes k, v and down: o_proj is a line that says so, with no numbers"""
    gone = sites[1].filter(pl.col("status") != "scored")
    assert set(gone["family"]) == {"ia3"} and gone["effect"].null_count() == len(gone)
    assert set(gone.filter(pl.col("layer").is_null())["slice"]) == {
        "q_proj", "o_proj", "gate_proj", "up_proj", "up_gate",
    }  # fmt: skip
    assert gone["status"].str.starts_with("not applicable").all() and (gone["n"] == 0).all()
    assert set(gone["dataset"]) == {"claims", "dilemmas"}


def test_t7_rows_pair_up(sites):
    """row_diff = 0 for every scored line; slices with one content have one effect"""
    table = sites[1].filter(pl.col("status") == "scored")
    assert (table["row_diff"] == 0).all()
    early, layer = (
        table.filter(variant=v).sort("dataset", "family") for v in ("keep_early", "keep_layer_2")
    )
    assert early["effect"].equals(layer["effect"])
    zero = table.filter(variant="zero")
    assert (zero["effect"] == 0).all() and (zero["p"] == 1).all()


def test_t7_figures_and_verdicts(sites):
    """a figure and a heat map per data set; a verdict per partition and family in their table"""
    folder = sites[0]
    for name in ("claims", "dilemmas", "cells.claims", "cells.dilemmas"):
        assert all((folder / f"t7_sites.{name}.{kind}").stat().st_size for kind in ("png", "svg"))
    found = verdicts(folder, "t7_sites")
    assert len(found) == 2 * 5 * 3  # data sets, partitions, {all, lora, ia3}
    assert found["claims", "modules", None] == "refuted"


def test_t8_bands_are_shares_of_the_rank(coordinates):
    """dW of two rank-8 LoRAs has rank 16: the top quarter is 4 directions, and the table says so"""
    table = coordinates[1].filter(dataset="claims", keep_or_drop="keep")
    sizes = dict(
        table.filter(family="lora").select(
            pl.concat_str("coordinate_system", "component", separator=" "), "rank_or_group"
        ).iter_rows()
    )  # fmt: skip
    assert sizes["own top"] == "4 of rank 16" and sizes["own middle"] == "8 of rank 16"
    assert sizes["rank component_0"] == "1 of 8 components"
    assert sizes["base top"].endswith("of base directions 64-160")


def test_t8_parts_add_up(coordinates):
    """keep + rest = dW to 1e-5; own bands are orthogonal, so their energies sum to 1"""
    table = coordinates[1].filter(dataset="claims")
    assert table["parts_error"].max() < 1e-5
    kept = table.filter(keep_or_drop="keep")
    for family in ("lora", "oft"):
        own = kept.filter(family=family, coordinate_system="own")
        bands = own.filter(pl.col("component").is_in(["top", "middle", "bottom"]))["energy_frac"]
        assert bands.sum() == pytest.approx(1, abs=1e-5)
        half = own.filter(component="energy50")["energy_frac"].item()
        assert 0.5 <= half < own.filter(component="energy90")["energy_frac"].item()
        base = kept.filter(family=family, coordinate_system="base")
        parts = base.filter(pl.col("component").is_in(["top", "middle", "bottom"]))["energy_frac"]
        assert parts.sum() < 1  # blocks that join two bands belong to none
    kinds = dict(table.select("family", "parameterization_family").unique().iter_rows())
    assert kinds == {"lora": "low-rank", "oft": "orthogonal"}


def test_t8_reads_the_base_spectra_from_disk_the_second_time(
    coordinates, data, tmp_path, no_figures
):
    """one file a base; a second run has the same table and asks for the same deltas, to the bit"""
    folder, table, _ = coordinates
    (file,) = (folder / "cache").iterdir()
    before, known = file.stat().st_mtime_ns, finished(folder / "parts")
    options = dict(data=str(data), families=("lora", "oft"), svd_cache=folder / "cache")
    again, _ = run("t8_coordinates", tmp_path, **options, cache_dir=folder / "parts")
    assert again.equals(table) and file.stat().st_mtime_ns == before
    assert finished(folder / "parts") == known  # a result is kept under the hash of its delta


def test_t6_over_seeds(tmp_path, data):
    """several seeds: pooled lines with the spread within a family; bases from other seeds too"""
    table, meta = run(
        "t6_shared_svd", tmp_path, data=str(data), families=("lora", "oft"), seeds=(0, 1), K=(8,)
    )
    kept = table.filter(dataset="dilemmas", variant="keep_shared")
    assert (kept["seeds"] == 2).all() and (kept["seed_sd"] > 0).all()
    assert kept["retained_family_gap"].n_unique() == 1 and kept["retained_family_gap"][0] > 0
    assert {"keep_seeds", "drop_seeds", "keep_across", "drop_across"} <= set(table["variant"])
    own = table.filter(dataset="claims", variant="keep_own")
    assert (own["overlap_seeds"] > own["overlap_random"]).all()
    assert set(meta["deltas"]) == {"lora-s0", "lora-s1", "oft-s0", "oft-s1"}
    found = verdicts(tmp_path, "t6_shared_svd")
    assert {claim for _, claim, _ in found} == {"shared core", "basin divergence"}
    assert (tmp_path / "t6_shared_svd.png").stat().st_size


@pytest.fixture(scope="module")
def lora():
    from wsrun.models.load import load_model

    return pair_deltas(load_model(ORGANISM)[0], ADAPTERS / "lora-s0").dW


@pytest.fixture
def at(lora):
    return LensInput("lora", 0, Deltas({("lora", 0): lora}))


def test_parts_that_do_not_add_up_stop_the_run(lora, at):
    """kept + rest != whole: no table; nothing is computed before a variant is asked for"""
    ablation, half = Ablation(), {n: w / 2 for n, w in lora.items()}
    wrong = Cut("half", lambda: half, lambda: {n: 0.999 * w for n, w in half.items()})
    bad, _ = ablation.split(at, wrong)
    assert not ablation.facts
    with pytest.raises(RuntimeError, match="differs from the whole"):
        bad.intervention.delta()
    kept, rest = ablation.split(at, Cut("half", lambda: half, lambda: half))
    assert (kept.name, rest.name) == ("keep_half", "drop_half")
    assert kept.intervention.delta() is half
    found = ablation.facts["lora", "keep_half", None, 0]
    assert found["energy"] == pytest.approx(0.25) and found["parts_error"] < 1e-6


def test_a_control_has_the_spectrum_of_the_part(lora, at):
    """control = U' S V'^T: singular values of the kept part, other directions"""
    name = next(n for n in lora if site(n).proj == "o_proj")
    part = {name: lora[name]}
    (control,) = Ablation().split(at, Cut("x", lambda: part, dict, roles=("control",)))
    control = control.intervention.delta()
    mine, theirs = spectra(part)[name].S, spectra(control)[name].S
    assert len(mine) == len(theirs) and (mine - theirs).abs().max() < 1e-5 * mine[0]
    assert not control[name].allclose(part[name])


def test_absent_parts_are_noted_and_not_scored(at):
    """a cut that says why it is absent gives no variant"""
    ablation = Ablation()
    assert not [*ablation.split(at, Cut("x", dict, dict, absent="not applicable: none"))]
    assert ablation.absent["lora", "drop_x", None, 0]["status"] == "not applicable: none"


def test_summarise_pools_seeds_and_marks_absent_parts():
    """facts of two seeds are averaged, parts_error is the largest, an absent part has no numbers"""
    pulls = {"full": 1.0, "keep_x": 0.5}
    lines = [
        {"experiment": "e", "model": "m", "behaviour": "b", "dataset": "d", "prompt_style": "p",
         "method": "base" if a == 0 else "weights", "family": None if a == 0 else "lora",
         "variant": "base" if a == 0 else v, "k": None, "alpha": a,
         "seed": None if a == 0 else s, "item": f"{c}{y}", "cluster": c, "label": y,
         "margin": y * a * ((1 + 0.1 * s) * pulls.get(v, 0) + 0.1 * (c == "q")),
         "mass": 1.0, "flagged": False}
        for a, v, s in ((0.0, "base", 0), *((1.0, v, s) for v in pulls for s in (0, 1)))
        for c in "pqr" for y in (1, -1)
    ]  # fmt: skip
    ablation = Ablation()
    ablation.facts = {
        ("lora", v, None, s): {"energy": e + s / 10, "parts_error": s / 1e7}
        for v, e in (("full", 1.0), ("keep_x", 0.2))
        for s in (0, 1)
    }
    ablation.absent = {
        ("lora", "keep_y", None, 0): {"status": "not applicable: none", "slice": "y"}
    }
    rows = pl.DataFrame(lines, infer_schema_length=None)
    table = summarise(Options(), rows, ablation, "full")
    x = table.row(by_predicate=pl.col("variant") == "keep_x", named=True)
    assert x["energy"] == pytest.approx(0.25) and x["parts_error"] == 1e-7 and x["seeds"] == 2
    # per seed: gains 0.5 (1 + s/10) + 0.1/3; mean over seeds 0.525 + 0.0333
    assert x["effect"] == pytest.approx(0.5583, abs=1e-4)
    assert x["seed_sd"] == pytest.approx(0.05 / 2**0.5)
    y = table.row(by_predicate=pl.col("variant") == "keep_y", named=True)
    assert y["effect"] is None and y["n"] == 0 and y["slice"] == "y"
    assert verdict(table, Locus(("x", "y"))).outcome == "refuted"


@pytest.mark.parametrize("script", ["t7_sites", "t8_coordinates"])
@pytest.mark.parametrize(
    "flags, sentence",
    [
        (("--families", "banana"), "got 'banana'"),
        (("--seeds", "0", "0"), "name each one once; got 0 0"),
        (("--nulls", "-1"), "--nulls must be at least 0, got -1"),
        (("--adapters", "no/such"), "'no/such/lora-s0"),
    ],
)
def test_refusals(capsys, monkeypatch, tmp_path, data, script, flags, sentence):
    """a bad flag ends in one sentence that says what was asked and what to do"""
    from wsrun.script import guarded

    import sys

    module, out = experiment(script), tmp_path / "out"
    monkeypatch.chdir(ROOT)
    argv = [f"{script}.py", "--out", str(out), "--cache-dir", str(out / "parts"), *flags]
    argv += ["--data", str(data)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stop:
        guarded(module.main, module.Config)
    assert stop.value.code == 1 and not list(out.glob("*.parquet"))
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_the_short_table_fits_80_columns(sites, coordinates):
    """families down, parts across, kept/left with a mark where the rule's threshold is met"""
    for table, heads in (
        (sites[1], {s: s for s in sites[1]["slice"].drop_nulls().unique() if "cell" not in s}),
        (coordinates[1], {f"own_{b}": b for b in ("top", "middle", "bottom")}),
    ):
        part = table.filter(dataset="claims")
        families = part["family"].unique().to_list()
        console = Console(width=80, file=io.StringIO())
        for block in compact(part, families, heads, (0.7, 0.3), "full", 80):
            console.print(block)
        text = console.file.getvalue()
        assert max(map(len, text.splitlines())) <= 80 and "…" not in text
        for family in families:
            assert f" {family} " in text
    top = part.row(
        by_predicate=(pl.col("family") == "lora") & (pl.col("variant") == "keep_own_top"),
        named=True,
    )
    assert f"{top['retained']:.2f}*/" in text and top["retained_lo"] >= 0.7


def test_full_prints_every_line(tmp_path, few, capsys, no_figures):
    """--full: every part with its interval; the short table is not there"""
    run("t6_shared_svd", tmp_path, data=str(few), families=("lora", "oft"), K=(8,), full=True)
    said = capsys.readouterr().out
    assert "keep_random_matched" in said and "; ?: the effect of its whole" not in said
    assert "next: python experiments/t7_sites.py" in said
