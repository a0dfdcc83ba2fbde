"""T2: doses of dW on dilemmas, beside a planted bias and nothing at all."""

from wsrun.script import guarded

import hashlib
import sys

import polars as pl
import pytest
import torch

from tests.conftest import ORGANISM, ROOT, experiment
from tests.folders import small_data, tiny_folder
from wsrun.data.source import load_items
from wsrun.models.chat import render
from wsrun.models.tiny import tiny_gemma3, tiny_qwen3
from wsrun.report.tables import read_table
from wsrun.score.sweep import sweep
from wsrun.study.controls import final_states, yes_bias
from wsrun.study.dilemmas import STEP, rises

t2 = experiment("t2_dilemmas")


def run(tmp_path, **changes):
    """(table, rows, provenance) of T2 with one family and few resamples."""
    options = dict(
        families=("lora",), model=str(ORGANISM), data=str(ORGANISM), adapters=ORGANISM / "adapters",
        dilemmas=4, resamples=200, out=tmp_path, cache_dir=tmp_path / "parts",
    )  # fmt: skip
    t2.main(t2.Config(**(options | changes)))
    table, made = read_table(tmp_path / "t2_dilemmas.parquet")
    return table, read_table(tmp_path / "t2_dilemmas.rows.parquet")[0], made


@pytest.fixture(scope="module")
def organism(tmp_path_factory):
    return run(tmp_path_factory.mktemp("t2"), families=("lora", "ia3"))


@pytest.mark.parametrize(
    "make, tied", [(tiny_qwen3, True), (tiny_qwen3, False), (tiny_gemma3, True)]
)
def test_a_planted_bias_is_a_dot_product(make, tied, tok, items):
    """margin_i(planted) - margin_i = nats <h_i, h> / |h|^2, h_i = what the readout sees"""
    model = make(vocab_size=len(tok), tie_word_embeddings=tied)
    states = final_states(model, tok, items)
    logits = model.get_output_embeddings()(states)
    at = model(torch.tensor([render(tok, items[0].turns, items[0].prefill)])).logits[0, -1]
    assert (logits[0] - at).abs().max() < 1e-4
    delta = yes_bias(model, tok, states, nats=1.5)
    assert list(delta) == ["model.embed_tokens.weight" if tied else "lm_head.weight"]
    rows = sweep(model, tok, items, {"yes": delta}, (1.0,))
    base, moved = (rows.filter(variant=v)["margin"].to_torch() for v in ("base", "yes"))
    h = states.double().mean(0)
    assert (moved - base - 1.5 * (states.double() @ h) / (h @ h)).abs().max() < 1e-4


def test_a_planted_bias_is_no_discrimination(organism):
    """yes_bias: bias = 2 nats, discrimination = 0, effect = 0 on balanced labels"""
    line = organism[0].filter(variant="yes_bias", dataset="dilemmas").row(0, named=True)
    assert line["bias"] == pytest.approx(2, abs=0.1)
    assert abs(line["discrimination"]) < 0.02 * line["bias"]
    assert line["effect"] == pytest.approx(line["discrimination"])
    assert line["method"] == "synthetic" and line["family"] is None


def test_nothing_has_no_effect(organism):
    """effect, interval, bias and discrimination of zero and of dose 0 are exactly 0"""
    table, _, _ = organism
    nil = table.filter((pl.col("variant") == "zero") | (pl.col("alpha") == 0))
    assert set(nil["variant"]) == {"zero", "base"} and len(nil) == 2 + 4
    for column in ("effect", "lo", "hi", "bias", "discrimination"):
        assert (nil[column] == 0).all()


def test_every_dose_has_the_same_rows(organism):
    """each family has a line at -2 -1 0 1 2, all of n items; the base's mass is the rows' own"""
    table, rows, _ = organism
    curves = table.filter(pl.col("variant").is_in(["dW", "base"]), dataset="dilemmas")
    for (family,), part in curves.group_by("family"):
        assert part["alpha"].sort().to_list() == [-2, -1, 0, 1, 2], family
        assert (part["n"] == 8).all() and (part["row_diff"] == 0).all()
    base = rows.filter(variant="base", dataset="dilemmas")
    assert curves.filter(alpha=0)["mass"].unique().to_list() == pytest.approx([base["mass"].mean()])


def test_steps_add_up(organism):
    """sum of steps = effect(2) - effect(-2), per data set and family"""
    curves = organism[0].filter(pl.col("variant").is_in(["dW", "base"]))
    for _, part in curves.group_by("dataset", "family"):
        ends = dict(part.select("alpha", "effect").rows())
        assert part["step"].sum() == pytest.approx(ends[2] - ends[-2])
        assert part["step"].null_count() == 1  # of the lowest dose
        inner = part.filter(pl.col("step").is_not_null())
        assert ((inner["step_lo"] <= inner["step"]) & (inner["step"] <= inner["step_hi"])).all()


def curve(*steps):
    """A dose-response with given (step, lo, hi) above the lowest dose."""
    lines = [(a, "dW", *s) for a, s in zip((-1.0, 1.0, 2.0), (3 * (None,), *steps), strict=True)]
    table = pl.DataFrame(lines, schema=["alpha", "variant", *STEP], orient="row")
    return table.with_columns(dataset=pl.lit("d"), family=pl.lit("lora"))


@pytest.mark.parametrize(
    "steps, outcome, words",
    [
        ([(2.0, 1.0, 3.0), (0.5, 0.1, 0.9)], "supported", "least from 1 to 2 by +0.50"),
        ([(2.0, 1.0, 3.0), (0.5, -0.1, 0.9)], "undetermined", "not clearly from 1 to 2"),
        ([(-0.2, -0.5, 0.1), (0.5, 0.1, 0.9)], "undetermined", "from -1 to 1 by -0.20"),
        ([(2.0, 1.0, 3.0), (-0.5, -0.9, -0.1)], "refuted", "does not rise at every dose"),
    ],
)
def test_the_rule(steps, outcome, words):
    """supported: every step_lo > 0; refuted: some step_hi < 0; else undetermined"""
    found = rises(curve(*steps), "d", "lora")
    assert found.outcome == outcome and words in found.sentence


@pytest.mark.parametrize("make", [tiny_qwen3, tiny_gemma3])
def test_a_local_source_with_flags(make, tok, tmp_path):
    """rows about honesty are those whose own action is flagged, scored once; the file is named"""
    data = small_data(
        tmp_path / "data",
        to_do_has_positive_honesty=lambda r: r["dilemma_idx"] % 2 == 0,
        not_to_do_has_negative_honesty=lambda r: False,
    )
    source = tmp_path / "set.parquet"
    pl.read_ndjson(data / "dilemmas.jsonl").write_parquet(source)
    flags = tiny_folder(tmp_path, make, tok)
    table, rows, made = run(
        tmp_path / "out", model=str(flags["model"]), adapters=flags["adapters"], data=str(data),
        dilemmas=None, source=str(source), alphas=(-1.0, 1.0),
    )  # fmt: skip
    about = rows.filter(dataset="dilemmas_honesty")
    items = {i.id for i in load_items(data, "test") if i.dataset == "dilemmas"}
    assert set(rows.filter(dataset="dilemmas")["item"]) == items
    assert set(about["item"]) == {i for i in items if "not" not in i and int(i[:-6]) % 2 == 0}
    both = about.join(rows.filter(dataset="dilemmas"), on=["item", "variant", "alpha"])
    assert len(both) == len(about) and (both["margin"] == both["margin_right"]).all()
    assert set(table["dataset"]) == {"dilemmas", "dilemmas_honesty"}
    assert made["dilemmas"] == {
        "source": str(source),
        "revision": hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    assert (tmp_path / "out" / "t2_dilemmas.svg").is_file() or "matplotlib" not in sys.modules


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (("--alphas", "0"), "--alphas needs one that is not 0"),
        (("--source", "wassname/daily_dilemmas-self-honesty"), "without network, pass a local"),
        (("--source", "no/such.parquet"), "no file or folder 'no/such.parquet'"),
        (("--dilemmas", "0"), "at least 1"),
    ],
)
def test_refusals(flags, sentence, tmp_path, monkeypatch, capsys):
    """one sentence, exit code 1, no table"""
    monkeypatch.chdir(ROOT)
    out = ["--out", str(tmp_path), "--cache-dir", str(tmp_path / "parts")]
    monkeypatch.setattr(sys, "argv", ["t2_dilemmas.py", *out, *flags])
    with pytest.raises(SystemExit) as stop:
        guarded(t2.main, t2.Config)
    said = " ".join(capsys.readouterr().err.split())
    assert stop.value.code == 1 and sentence in said
    assert not list(tmp_path.glob("*.parquet"))
