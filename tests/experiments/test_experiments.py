"""The scripts as a user runs them: results, and one clear sentence for every bad input."""

from wsrun.script import guarded

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import polars as pl
import pytest

from tests.conftest import ORGANISM, ROOT, bits, experiment, heeds_ctrl_c, same_bits
from wsrun.report.tables import read_table
from wsrun.study import start as runs

ADAPTERS = ORGANISM / "adapters"


def t6(tmp_path, data, **changes):
    """T6 on the organism with two families, few nulls and few items; returns its table."""
    module = experiment("t6_shared_svd")
    options = dict(
        K=(8,), families=("lora", "oft"), model=str(ORGANISM), data=str(data), adapters=ADAPTERS,
        nulls=3, resamples=200, out=tmp_path, cache_dir=tmp_path / "parts",
    )  # fmt: skip
    module.main(module.Config(**(options | changes)))
    return read_table(tmp_path / "t6_shared_svd.parquet")


def verdicts(folder):
    return read_table(folder / "t6_shared_svd.verdicts.parquet")[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory, few):
    folder = tmp_path_factory.mktemp("t6")
    return folder, *t6(folder, few)


def test_t6_rows_pair_up(run):
    """every (dataset, family, variant, k, alpha) has the reference's item ids, each once"""
    rows, _ = read_table(run[0] / "t6_shared_svd.rows.parquet")
    keys = ["dataset", "family", "variant", "k", "alpha"]
    ids = rows.group_by(keys).agg(pl.col("item").sort())
    for (dataset,), part in ids.group_by("dataset"):
        reference = part.filter(variant="base")["item"][0].to_list()
        assert all(found.to_list() == reference for found in part["item"]), dataset
    assert (run[1]["row_diff"] == 0).all()


def test_t6_parts_add_up(run):
    """energy(keep) + energy(drop) = 1, the whole has energy 1, zero has no effect at all"""
    table = run[1].filter(alpha=1.0)
    for family in ("lora", "oft"):
        share = dict(
            table.filter(family=family, dataset="claims").select("variant", "energy").rows()
        )
        for basis in ("shared", "shared_incl", "own"):
            assert share[f"keep_{basis}"] + share[f"drop_{basis}"] == pytest.approx(1, abs=1e-5)
        assert share["residual_full"] == pytest.approx(1) and share["zero"] == 0
        assert share["keep_own"] >= max(share["keep_shared"], share["keep_random"])
        assert share["keep_random_matched"] == pytest.approx(share["keep_shared"], rel=1e-3)
    zero = table.filter(variant="zero")
    assert (zero["effect"] == 0).all() and (zero["lo"] == 0).all() and (zero["hi"] == 0).all()
    whole = table.filter(variant="residual_full")["retained"].drop_nulls()
    assert (whole - 1).abs().max() < 1e-9


def test_t6_random_basis_keeps_its_share(run):
    """E energy(random, K) = K/d, within five times the spread of six Haar draws of 8 in 160"""
    shares = run[1].filter(variant="keep_random")["energy"]
    # one tensor: sd of |U^T v|^2 is sqrt(2 p (1 - p) / (d + 2)) = 0.024 at p = 8/160, d = 160
    assert all(abs(x - 8 / 160) < 0.05 for x in shares)


def test_t6_twice_is_identical(run, tmp_path, few, no_figures):
    """same command, same seed: the same summary and the same rows, bit for bit"""
    table, meta = t6(tmp_path, few)
    assert table.equals(run[1])
    rows = read_table(tmp_path / "t6_shared_svd.rows.parquet")[0]
    assert rows.equals(read_table(run[0] / "t6_shared_svd.rows.parquet")[0])
    assert verdicts(tmp_path).equals(verdicts(run[0])) and meta["deltas"] == run[2]["deltas"]


def test_t6_provenance(run):
    """the table carries what decided its numbers"""
    meta = run[2]
    assert set(meta["deltas"]) == {"lora-s0", "oft-s0"} and all(
        len(h) == 64 for h in meta["deltas"].values()
    )
    assert len(meta["base"]) == 64 and len(meta["items"]) == 64
    assert meta["config"]["K"] == [8] and meta["versions"]["peft"]
    assert set(verdicts(run[0])["dataset"]) == {"claims", "dilemmas"}


def fails(capsys, monkeypatch, tmp_path, *flags, script="t6_shared_svd"):
    """The one sentence a bad call ends with; checks exit code 1 and that no table was written."""
    module, out = experiment(script), tmp_path / "out"
    monkeypatch.chdir(ROOT)
    parts = () if script == "t0_train" else ("--cache-dir", str(out / "parts"))
    argv = [f"{script}.py", "--out", str(out), *parts, *map(str, flags)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stop:
        guarded(module.main, module.Config)
    assert stop.value.code == 1
    assert not list(out.glob("*.parquet"))
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (("--families", "lora", "banana"), "got 'banana'"),
        (("--families", "lora"), "--families needs 2 values or more"),
        (("--K", "0"), "--K must be at least 1"),
        (("--K", "-3"), "--K must be at least 1"),
        (("--K", "161"), "K must be at most d_model = 160, got 161"),
        (("--rule-alpha", "3"), "must be one of --alphas"),
        (("--nulls", "-1"), "must be at least 0, got -1"),
        (("--alphas", "1", "nan"), "must be finite"),
        (("--keep-at-least", "nan"), "--keep-at-least 'nan' must be finite"),
        (("--K", "8", "8"), "name each one once"),
        (("--resamples", "0"), "must be at least 1, got 0"),
        (("--adapters", "no/such"), "'no/such/lora-s0"),
        (("--data", "no/such"), "no folder 'no/such'"),
        (("--model", "./no-such"), "no folder './no-such'"),
        (("--model", "some/hub-name"), "pass the folder, --model path/to/folder"),
        (("--dtype", "float8"), "got 'float8'"),
        (("--seeds", "7"), "lora-s7"),
        (("--seeds", "0", "0"), "name each one once"),
    ],
)
def test_t6_refuses(capsys, monkeypatch, tmp_path, few, flags, sentence):
    """a bad flag ends in one sentence that says what was asked and what to do"""
    if "--data" not in flags:
        flags = (*flags, "--data", few)
    assert sentence in fails(capsys, monkeypatch, tmp_path, *flags)


def test_t6_refuses_an_output_that_cannot_be_written(capsys, monkeypatch, tmp_path):
    """an output folder under a file"""
    (tmp_path / "file").write_text("")
    module = experiment("t6_shared_svd")
    monkeypatch.setattr(sys, "argv", ["t6", "--out", str(tmp_path / "file" / "out")])
    with pytest.raises(SystemExit) as stop:
        guarded(module.main, module.Config)
    assert stop.value.code == 1 and "cannot be written" in capsys.readouterr().err


def test_t6_refuses_a_broken_model_folder(capsys, monkeypatch, tmp_path, few):
    """a model folder without tokenizer, and one of another width"""
    bare, narrow = tmp_path / "bare", tmp_path / "narrow"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(ORGANISM / name, bare / name)
    assert "no tokenizer in folder" in fails(capsys, monkeypatch, tmp_path, "--model", bare)

    from wsrun.models.load import load_tokenizer
    from wsrun.models.tiny import tiny_qwen3

    tok = load_tokenizer(ORGANISM)
    tiny_qwen3(vocab_size=len(tok), num_hidden_layers=6).save_pretrained(narrow)
    tok.save_pretrained(narrow)
    sentence = fails(capsys, monkeypatch, tmp_path, "--model", narrow, "--K", "8", "--data", few)
    assert "but base weight" in sentence and "lora-s0" in sentence


def test_t6_refuses_broken_items(capsys, monkeypatch, tmp_path):
    """a data folder whose claims lack a column, carry a wrong label, repeat an id, or are none"""
    lines = (ORGANISM / "claims.jsonl").read_text().splitlines()
    row = next(r for r in map(json.loads, lines) if r["split"] == "test")
    cases = {
        "column 'label' is missing": [{k: v for k, v in row.items() if k != "label"}],
        "must be +1 or -1": [row | {"label": 2}],
        "more than once": [row, row],
        "has no rows": [],
    }
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(ORGANISM / "dilemmas.jsonl", data)
    for sentence, rows in cases.items():
        (data / "claims.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        assert sentence in fails(capsys, monkeypatch, tmp_path, "--data", data)


def test_ctrl_c_restores_the_model_and_writes_nothing(monkeypatch, tmp_path, few):
    """KeyboardInterrupt in the middle of a sweep: weights bit-identical, no table"""
    module, seen = experiment("t6_shared_svd"), {}
    load = runs.load_model

    def loaded(*args):
        seen["model"], tok = load(*args)
        seen["before"] = bits(seen["model"])
        seen["model"].get_decoder().layers[3].register_forward_pre_hook(interrupted)
        return seen["model"], tok

    def interrupted(module, args):
        if not same_bits(seen["model"], seen["before"]):
            seen["moved"] = True
            raise KeyboardInterrupt

    monkeypatch.setattr(runs, "load_model", loaded)
    with pytest.raises(KeyboardInterrupt):
        module.main(
            module.Config(
                K=(8,),
                families=("lora", "oft"),
                model=str(ORGANISM),
                data=str(few),
                adapters=ADAPTERS,
                out=tmp_path,
                cache_dir=tmp_path / "parts",
            )  # fmt: skip
        )
    assert seen["moved"] and same_bits(seen["model"], seen["before"])
    assert not list(tmp_path.glob("*.parquet"))


def test_ctrl_c_from_the_terminal(tmp_path, few):
    """SIGINT to the real process: exit code 130, one line, no table"""
    command = [sys.executable, "experiments/t6_shared_svd.py", "--families", "lora", "oft"]
    command += ["--data", str(few), "--out", str(tmp_path), "--cache-dir", str(tmp_path / "parts")]
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, preexec_fn=heeds_ctrl_c,
    )  # fmt: skip
    end = time.monotonic() + 300
    try:
        assert any("runs" in x for x in iter(child.stdout.readline, ""))  # right before the sweep
        while not list((tmp_path / "parts").rglob("*.safetensors")) and time.monotonic() < end:
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=300)
    finally:
        child.kill()
    assert child.returncode == 130 and "stopped; no table was written" in err
    assert "Traceback" not in err and not list(tmp_path.glob("*.parquet"))
    assert list((tmp_path / "parts").rglob("*.safetensors"))  # the next run goes on from here
