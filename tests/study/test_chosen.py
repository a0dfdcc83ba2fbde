"""What a script chose, kept and taken up by T11 at the very dose."""

import sys
from dataclasses import replace

import polars as pl
import pytest
import torch

from tests.conftest import ORGANISM, ROOT, experiment, random_delta
from wscore import Factored, save_delta, tensors_sha256
from wsrun.data.items import load_items
from wsrun.data.replies import load_neutral
from wsrun.models.load import load_model
from wsrun.report.console import guarded
from wsrun.report.tables import read_table
from wsrun.score.capability import TEXT, Quality
from wsrun.score.doses import Dose, Dosed
from wsrun.score.sweep import Variant
from wsrun.study.benchmark import report_on
from wsrun.study.controls import nothing
from wsrun.study.selection import Chosen, keep_chosen, load_chosen
from wsrun.study.session import Loaded

ABOUT = {"experiment": "t1_activation", "model": "m", "behaviour": "honest", "match": None}
TEXTS = load_neutral(ORGANISM / "neutral.jsonl", "test")[:6]


@pytest.fixture(scope="module")
def organism():
    return load_model(ORGANISM)


def vectors(*layers: int) -> dict[int, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {n: torch.randn(160, generator=random) for n in layers}


def factored(model) -> Factored:
    name = "model.layers.1.mlp.down_proj.weight"
    d_out, d_in = model.get_parameter(name).shape
    random = torch.Generator().manual_seed(2)
    return Factored(
        {name: (torch.randn(d_out, 1, generator=random), torch.randn(1, d_in, generator=random))}
    )


def test_load_is_what_was_kept(tmp_path, qwen):
    """load_chosen(keep_chosen(c)) = c bit by bit, with its dose; dW and prompts are not kept"""
    d, v, dose = factored(qwen), vectors(0, 3), Dose(None, 0.1 + 0.2, True)
    add = Variant("add@a b", None, "activation", alphas=(1 / 3,), vectors=v)
    made = Variant("made@x", d, "synthetic", k=4, seed=0, alphas=(-0.1,))
    other = replace(made, delta=random_delta(qwen), seed=1)
    dosed = Dosed("dosed", None, "activation", alphas=(2.0,), vectors=v, dose=dose)
    say = Variant("say@0", method="prompt", system="s", alphas=(1.0,))
    dW = Variant("dW", random_delta(qwen), family="lora", alphas=(1.0,))
    chosen = {
        "dW": Chosen(dW, 9.0),
        "say": Chosen(say, 9.0),
        "add": Chosen(add, 0.1 + 0.7),
        "made": Chosen(made, -1 / 7, (other,), "flagged"),
        "dosed": Chosen(dosed, 1.0),
        "taken": Chosen(replace(add, name="taken"), 1.0, source="t9"),
    }
    keep_chosen(tmp_path, chosen, "base", ABOUT)
    found = {told["way"]: (c, told) for c, told in load_chosen(tmp_path, "base")}
    assert list(found) == ["add", "made", "dosed"]
    for way, (c, told) in found.items():
        kept = chosen[way]
        assert (c.validation, c.role, c.source) == (kept.validation, kept.role, "t1_activation")
        assert told["match"] is None and told["model"] == "m"
        pairs = zip((c.variant, *c.others), (kept.variant, *kept.others), strict=True)
        for new, old in pairs:
            for field in ("name", "method", "family", "k", "seed", "alphas", "system"):
                assert getattr(new, field) == getattr(old, field)
            assert {n: x.tolist() for n, x in (new.vectors or {}).items()} == {
                n: x.tolist() for n, x in (old.vectors or {}).items()
            }
            assert tensors_sha256(new.change()) == tensors_sha256(old.change())
    last = found["dosed"][0].variant
    assert isinstance(found["made"][0].variant.delta, Factored)
    assert isinstance(last, Dosed) and last.dose == dose
    keep_chosen(tmp_path, {"add": chosen["add"]}, "base", ABOUT)
    assert len(load_chosen(tmp_path, "base")) == 1


def test_another_base_and_foreign_files_are_refused(tmp_path, qwen):
    """a file of other base weights, or one that keep_chosen did not write: one sentence"""
    add = Chosen(Variant("add@1", None, "activation", alphas=(1.0,), vectors=vectors(1)), 1.0)
    assert load_chosen(tmp_path / "none", "base") == []
    (path,) = keep_chosen(tmp_path, {"add": add}, "base", ABOUT)
    with pytest.raises(ValueError, match="other base weights, of 'm'; run t1_activation on this"):
        load_chosen(tmp_path, "another base")
    save_delta({"w": torch.ones(2, 2)}, path, {"way": "add"})
    with pytest.raises(ValueError, match="is not a file of a chosen way"):
        load_chosen(tmp_path, "base")


def run_t11(monkeypatch, out, *more: str):
    monkeypatch.chdir(ROOT)
    module = experiment("t11_degradation")
    own = module.load_questions
    monkeypatch.setattr(module, "load_neutral", lambda *_: TEXTS)
    monkeypatch.setattr(module, "load_questions", lambda *a: own(*a)[:4])
    flags = "--families oft --dilemmas 1 --randoms 2 --alphas 1 --resamples 20".split()
    where = ["--out", str(out), "--parts", str(out / "parts")]
    monkeypatch.setattr(sys, "argv", ["t11", *flags, *where, *more])
    guarded(module.main, module.Config)
    return read_table(out / "t11_degradation.parquet")[0]


def test_t11_takes_what_others_chose(monkeypatch, tmp_path, organism, capsys):
    """cost of a way of report_on = change of the mean nats under its own vectors and dose"""
    module = experiment("t11_degradation")
    cfg = module.Config(out=tmp_path, parts=tmp_path / "parts", resamples=20)
    model, tok = organism
    at = Loaded(model, tok, load_items(ORGANISM, "test", 1)[:4])
    dW = Variant("dW", random_delta(model), family="oft", seed=0, alphas=(1.0,))
    add = Variant("add@layer 2", None, "activation", alphas=(1.5,), vectors=vectors(2))
    made = Variant("made@x", factored(model), "synthetic", alphas=(-0.05,))
    chosen = {v.name.partition("@")[0]: Chosen(v, 1.25) for v in (dW, add, made)}
    for script in ("t1_like", "t9_like"):  # the second one chose the same: taken once
        report_on(cfg, script, at, chosen, [nothing(chosen)])
    about = ABOUT | {"experiment": "t5_replicate"}
    keep_chosen(tmp_path / "t5_replicate.chosen", {"add": Chosen(add, 9.0)}, "another base", about)
    table = run_t11(monkeypatch, tmp_path)
    q = Quality(model, tok, TEXTS, [])
    base = sum(q.values()[0]) / len(TEXTS)
    for v in (add, made):
        lines = table.filter(variant=v.name)
        assert lines["alpha"].unique().to_list() == list(v.alphas or ())
        assert set(lines["role"]) == {"selected"} and set(lines["validation"]) == {1.25}
        nats = sum(q.values(v, (v.alphas or (0.0,))[0])[0]) / len(TEXTS)
        assert lines["nll"].to_list() == pytest.approx([nats - base] * len(lines), abs=1e-9)
        assert abs(nats - base) > 1e-3
    rows = read_table(tmp_path / "t11_degradation.rows.parquet")[0]
    assert rows.filter(pl.col("dataset") == TEXT, variant="add@layer 2").height == len(TEXTS)
    assert not (tmp_path / "t11_degradation.chosen").exists()
    said = " ".join(capsys.readouterr().out.split())
    assert "add:" in said and "other base weights, of 'm'; run t5_replicate on this model" in said

    chosen["made"] = Chosen(replace(made, delta=random_delta(model)), 1.0)
    report_on(cfg, "t9_like", at, chosen, [nothing(chosen)])
    with pytest.raises(SystemExit):
        run_t11(monkeypatch, tmp_path)
    assert "have one name and dose, and are different changes" in " ".join(
        capsys.readouterr().err.split()
    )
