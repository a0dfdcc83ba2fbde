"""What was chosen on validation items, in files: one dW for all scripts, and T11 takes the rest."""

from wsrun.script import guarded

import json
import random
import sys
from dataclasses import replace

import polars as pl
import pytest
import torch

from tests.conftest import ORGANISM, ROOT, experiment, random_delta
from wscore import Factored, save_delta, tensors_sha256
from wsrun.adapters.extract import PairDelta
from wsrun.data.replies import load_neutral
from wsrun.data.source import load_items
from wsrun.models.load import load_model
from wsrun.report.tables import read_table
from wsrun.score.capability import TEXT, Capability
from wsrun.score.variants import Dose, Variant
from wsrun.steer.interventions import AddVectors, ConstructedDelta, SystemPrompt, WeightDelta
from wsrun.study import costs
from wsrun.study.comparison import compare_on_test
from wsrun.study.controls import zero_control
from wsrun.study.options import BenchmarkOptions
from wsrun.study.selected import FOLDER, Selection, Selections, load_selected, save_selected
from wsrun.study.selection import select_dW
from wsrun.study.session import Session

ABOUT = {"experiment": "t1_activation", "model": "m", "behaviour": "honest", "match_dose": None}
TEXTS = load_neutral(ORGANISM / "neutral.jsonl", "test")[:6]


@pytest.fixture(scope="module")
def organism():
    return load_model(ORGANISM)


def vectors(*layers: int) -> AddVectors:
    random = torch.Generator().manual_seed(1)
    return AddVectors({n: torch.randn(160, generator=random) for n in layers})


def factored(model) -> Factored:
    name = "model.layers.1.mlp.down_proj.weight"
    d_out, d_in = model.get_parameter(name).shape
    random = torch.Generator().manual_seed(2)
    return Factored(
        {name: (torch.randn(d_out, 1, generator=random), torch.randn(1, d_in, generator=random))}
    )


def pairs_of(model, *families: str) -> dict:
    """Random poles of some families, of seed 0."""
    found = {}
    for i, family in enumerate(families):
        pos, neg = random_delta(model, 2 * i), random_delta(model, 2 * i + 1)
        dW = {n: pos[n] - neg[n] for n in pos}
        found[family, 0] = PairDelta(family, pos, neg, dW)
    return found


def test_one_choice_of_dW(qwen, tok, items, tmp_path, capsys):
    """select_dW scores once; read again it is the same, variant by variant, to the last bit"""
    options = dict(data=str(ORGANISM), out=tmp_path, cache_dir=tmp_path / "cache", most_flagged=1.0)
    cfg = BenchmarkOptions(model="m/x", **options)
    session, pairs = Session(qwen, tok, items), pairs_of(qwen, "lora", "oft")
    first = select_dW(cfg, session, pairs)
    path = tmp_path / FOLDER / "x.organism.json"
    assert path.is_file() and not list(path.parent.glob("*partial*"))
    assert "kept in" in capsys.readouterr().out
    before = path.stat().st_mtime_ns
    again = select_dW(cfg, session, pairs)
    assert "as chosen in" in capsys.readouterr().out and path.stat().st_mtime_ns == before
    assert list(first) == list(again) and set(first) == {"dW", "-dW", "tau_pos", "-tau_neg"}
    for name, s in first.items():
        new = again[name]
        assert (s.validation, s.role, s.alpha) == (new.validation, new.role, new.alpha)
        old = (s.variant, new.variant)
        assert old[0].family == old[1].family and old[0].seed == old[1].seed
        assert old[0].intervention.fingerprint() == old[1].intervention.fingerprint()
    found = json.loads(path.read_text())["chosen"]["dW"]
    assert (found["family"], found["alpha"]) == (first["dW"].variant.family, first["dW"].alpha)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"alphas": (1.0, 3.0)}, "alphas"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"items": slice(1, None)}, "items"),
        ({"families": ("lora",)}, "deltas"),
    ],
)
def test_another_choice_is_made_anew(qwen, tok, items, tmp_path, capsys, change, named):
    """whatever decides the choice is in its key; the line that is printed names what differs"""
    options = dict(data=str(ORGANISM), out=tmp_path, cache_dir=tmp_path / "cache", most_flagged=1.0)
    items, families = list(items), ("lora", "oft")
    select_dW(BenchmarkOptions(**options), Session(qwen, tok, items), pairs_of(qwen, *families))
    capsys.readouterr()
    items = items[change.pop("items", slice(None))]
    families = change.pop("families", families)
    cfg = BenchmarkOptions(**(options | change))
    select_dW(cfg, Session(qwen, tok, items), pairs_of(qwen, *families))
    assert f"chosen anew, {named} differ" in " ".join(capsys.readouterr().out.split())


def test_a_file_that_is_no_selection_is_made_anew(qwen, tok, items, tmp_path):
    """half a file, as of a disk that was full, is as good as none"""
    cfg = BenchmarkOptions(
        data=str(ORGANISM), out=tmp_path, cache_dir=tmp_path / "cache", most_flagged=1.0
    )
    path = tmp_path / FOLDER / "organism.organism.json"
    path.parent.mkdir()
    path.write_text('{"key": ')
    select_dW(cfg, Session(qwen, tok, items), pairs_of(qwen, "lora"))
    assert json.loads(path.read_text())["chosen"]["dW"]["family"] == "lora"


def test_a_damaged_choice_is_made_anew(qwen, tok, items, tmp_path, capsys):
    """an alpha that was changed in the file is not believed: chosen anew, the same file again"""
    options = dict(data=str(ORGANISM), out=tmp_path, cache_dir=tmp_path / "cache", most_flagged=1.0)
    ask = BenchmarkOptions(**options), Session(qwen, tok, items), pairs_of(qwen, "lora")
    first = select_dW(*ask)
    path = tmp_path / FOLDER / "organism.organism.json"
    text, alpha = path.read_text(), first["dW"].alpha
    path.write_text(text.replace(f'"alpha": {alpha}', '"alpha": 3.0', 1))
    capsys.readouterr()
    assert select_dW(*ask)["dW"].alpha == alpha and path.read_text() == text
    assert "chosen anew, the file was damaged" in " ".join(capsys.readouterr().out.split())


def test_a_damaged_vector_is_refused(tmp_path):
    """each of 100 flipped bits: refused in a sentence that names the file"""
    add = Selection(Variant("add@1", vectors(1), alphas=(1.0,)), 1.0)
    (path,) = save_selected(tmp_path, {"add": add}, "base", ABOUT)
    whole = path.read_bytes()
    for at in random.Random(0).sample(range(64, 8 * len(whole)), 100):
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(bytes(flipped))
        with pytest.raises(ValueError, match=r"00_add\.safetensors' is not a file of a selection"):
            load_selected(tmp_path, "base")


def test_load_is_what_was_kept(tmp_path, qwen):
    """load_selected(save_selected(c)) = c bit by bit, with its dose; dW and prompts are not kept"""
    d, v, dose = factored(qwen), vectors(0, 3), Dose(None, 0.1 + 0.2, True)
    add = Variant("add@a b", v, alphas=(1 / 3,))
    made = Variant("made@x", ConstructedDelta(d), k=4, seed=0, alphas=(-0.1,))
    other = replace(made, intervention=ConstructedDelta(random_delta(qwen)), seed=1)
    dosed = Variant("dosed", v, alphas=(2.0,), dose=dose)
    say = Variant("say@0", SystemPrompt("s"), alphas=(1.0,))
    dW = Variant("dW", WeightDelta(random_delta(qwen)), family="lora", alphas=(1.0,))
    chosen = {
        "dW": Selection(dW, 9.0),
        "say": Selection(say, 9.0),
        "add": Selection(add, 0.1 + 0.7),
        "made": Selection(made, -1 / 7, (other,), "flagged"),
        "dosed": Selection(dosed, 1.0),
        "taken": Selection(replace(add, name="taken"), 1.0, source="t9"),
    }
    save_selected(tmp_path, chosen, "base", ABOUT)
    found = {header["method_name"]: (c, header) for c, header in load_selected(tmp_path, "base")}
    assert list(found) == ["add", "made", "dosed"]
    for name, (c, header) in found.items():
        kept = chosen[name]
        assert (c.validation, c.role, c.source) == (kept.validation, kept.role, "t1_activation")
        assert header["match_dose"] is None and header["model"] == "m"
        for new, old in zip(c.variants, kept.variants, strict=True):
            for field in ("name", "method", "family", "k", "seed", "alphas", "dose"):
                assert getattr(new, field) == getattr(old, field)
            assert new.intervention.fingerprint() == old.intervention.fingerprint()
            delta = new.intervention.delta()
            assert not delta or tensors_sha256(delta) == tensors_sha256(old.intervention.delta())
    assert isinstance(found["made"][0].variant.intervention.delta(), Factored)
    assert found["dosed"][0].variant.dose == dose
    save_selected(tmp_path, {"add": chosen["add"]}, "base", ABOUT)
    assert len(load_selected(tmp_path, "base")) == 1


def test_another_base_and_foreign_files_are_refused(tmp_path, qwen):
    """a file of other base weights, or one that save_selected did not write: one sentence"""
    add = Selection(Variant("add@1", vectors(1), alphas=(1.0,)), 1.0)
    assert load_selected(tmp_path / "none", "base") == []
    (path,) = save_selected(tmp_path, {"add": add}, "base", ABOUT)
    with pytest.raises(ValueError, match="other base weights, of 'm'; run t1_activation on this"):
        load_selected(tmp_path, "another base")
    save_delta({"w": torch.ones(2, 2)}, path, {"method_name": "add"})
    with pytest.raises(ValueError, match="is not a file of a selection"):
        load_selected(tmp_path, "base")


def run_t11(monkeypatch, out, *more: str):
    monkeypatch.chdir(ROOT)
    module = experiment("t11_degradation")
    own = costs.load_questions
    monkeypatch.setattr(costs, "load_neutral", lambda *_: TEXTS)
    monkeypatch.setattr(costs, "load_questions", lambda *a: own(*a)[:4])
    flags = "--families oft --dilemmas 1 --limit 4 --check-limit 4 --n-random 2 --alphas 1".split()
    flags += ["--resamples", "20"]
    where = ["--out", str(out), "--cache-dir", str(out / "parts")]
    monkeypatch.setattr(sys, "argv", ["t11", *flags, *where, *more])
    guarded(module.main, module.Config)
    return read_table(out / "t11_degradation.parquet")[0]


def test_t11_takes_what_others_chose(monkeypatch, tmp_path, organism, capsys, no_figures):
    """cost of a selection = change of the mean nats under its own vectors and alpha"""
    module = experiment("t11_degradation")
    cfg = module.Config(out=tmp_path, cache_dir=tmp_path / "parts", resamples=20)
    model, tok = organism
    session = Session(model, tok, load_items(ORGANISM, "test", 1)[:4])
    dW = Variant("dW", WeightDelta(random_delta(model)), family="oft", seed=0, alphas=(1.0,))
    add = Variant("add@layer 2", vectors(2), alphas=(1.5,))
    made = Variant("made@x", ConstructedDelta(factored(model)), alphas=(-0.05,))
    chosen = Selections({v.name.partition("@")[0]: Selection(v, 1.25) for v in (dW, add, made)})
    for script in ("t1_like", "t9_like"):  # the second one chose the same: taken once
        compare_on_test(cfg, script, session, chosen, [zero_control(dW)])
    about = ABOUT | {"experiment": "t5_replicate"}
    folder = tmp_path / FOLDER
    save_selected(folder / "t5_replicate", {"add": Selection(add, 9.0)}, "another base", about)
    table = run_t11(monkeypatch, tmp_path)
    capability = Capability(model, tok, {TEXT: TEXTS})
    base = sum(capability.values()[TEXT]) / len(TEXTS)
    for v in (add, made):
        lines = table.filter(variant=v.name)
        assert lines["alpha"].unique().to_list() == list(v.alphas or ())
        assert set(lines["role"]) == {"selected"} and set(lines["validation"]) == {1.25}
        nats = sum(capability.values(v.intervention, v.alphas[0])[TEXT]) / len(TEXTS)
        assert lines["nll"].to_list() == pytest.approx([nats - base] * len(lines), abs=1e-9)
        assert abs(nats - base) > 1e-3
    rows = read_table(tmp_path / "t11_degradation.rows.parquet")[0]
    assert rows.filter(pl.col("dataset") == TEXT, variant="add@layer 2").height == len(TEXTS)
    assert not list((folder / "t11_degradation").glob("*"))
    said = " ".join(capsys.readouterr().out.split())
    assert "add:" in said and "other base weights, of 'm'; run t5_replicate on this model" in said

    english = replace(cfg, data="data/english")
    compare_on_test(english, "t9_like", session, chosen, [zero_control(dW)])
    base = tensors_sha256(dict(model.named_parameters()))
    found = costs.chosen_elsewhere(cfg, base, "t11")
    assert {*found} == {"add of t1_like", "made of t1_like"}
    said = " ".join(capsys.readouterr().out.split())
    assert "made of t9_like, chosen under {'data': 'english'}" in said

    other = ConstructedDelta(random_delta(model))
    chosen["made"] = Selection(replace(made, intervention=other), 1.0)
    compare_on_test(cfg, "t9_like", session, chosen, [zero_control(dW)])
    with pytest.raises(SystemExit):
        run_t11(monkeypatch, tmp_path)
    assert "have one name and coefficient, and differ" in " ".join(capsys.readouterr().err.split())
