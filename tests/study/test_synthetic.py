"""Synthetic changes: their equation, their bases, blindness to trained deltas, T9 and T10 whole."""

import json

import polars as pl
import pytest
import torch

from tests.conftest import ORGANISM, experiment
from tests.folders import REFUSES_SYSTEM
from wscore import (
    add,
    difference,
    drop,
    keep,
    load_delta,
    norm,
    overlap,
    save_delta,
    site,
    weight_basis,
    writes_residual,
)
from wscore.store import trained_reads
from wsrun.adapters.configs import Recipe
from wsrun.adapters.extract import read_adapter
from wsrun.adapters.train import train_adapter
from wsrun.data.items import PREFILL
from wsrun.data.pairs import Pair
from wsrun.data.personas import load_personas
from wsrun.models.chat import render, user
from wsrun.models.load import load_tokenizer
from wsrun.models.tiny import tiny_gemma3, tiny_qwen3
from wsrun.report.tables import read_table
from wsrun.steer import structure
from wsrun.steer.constructed import rank_one, sized, turned, unseen_record
from wsrun.steer.contrast import answer_means, persona_contrast
from wsrun.steer.weights import steered
from wsrun.study import session as runs

PROMPTS = ["What colour is the coat of Anna?", "Which coat does Anna wear?", "Where is Bert?"]
HONEST, DISHONEST = load_personas(ORGANISM / "personas.json", "honest", "dishonest")


@pytest.fixture(autouse=True)
def unread():
    """A process that has read no trained delta, whatever other tests did in this one."""
    before = trained_reads.copy()
    trained_reads.clear()
    yield
    trained_reads[:] = before


@pytest.fixture
def written(model):
    return structure.weights(model, writes_residual)


@pytest.fixture
def contrast(model, tok, written):
    return persona_contrast(model, tok, PROMPTS, HONEST[:2], DISHONEST[:3], written, PREFILL)


def test_answer_states_are_the_models_own(model, tok):
    """mean output of layer l = mean of hidden_states[l + 1] at the last token; its input, of [l]"""
    talks = [user(p, persona) for p in PROMPTS for persona in (HONEST[0], HONEST[4], None)]
    layers = [f"model.layers.{i}" for i in range(3)]
    found = answer_means(model, tok, talks, layers, PREFILL, size=2)
    own = []
    for talk in talks:
        ids = torch.tensor([render(tok, talk, PREFILL)])
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        own.append(torch.stack(states)[:, 0, -1].double())
    own = torch.stack(own).mean(0)
    for i, name in enumerate(layers):
        torch.testing.assert_close(found[name].input, own[i], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[name].output, own[i + 1], rtol=1e-5, atol=1e-5)


def test_a_weights_contrast_is_that_of_its_input(model, tok, contrast, written):
    """c = W (E[input | pos] - E[input | neg]), as the maps have no bias"""
    modules = [name.removesuffix(".weight") for name in written]
    sides = [
        answer_means(model, tok, [user(p, s) for p in PROMPTS for s in side], modules, PREFILL)
        for side in (HONEST[:2], DISHONEST[:3])
    ]
    assert len(written) == 8
    for name, W in written.items():
        apart = sides[0][name[:-7]].input - sides[1][name[:-7]].input
        torch.testing.assert_close(contrast.out[name], W.double() @ apart, rtol=1e-3, atol=1e-5)


def test_the_change_adds_the_contrast(model, contrast, written):
    """(W + dW') x = W x + c on the mean input x, through the model's own module"""
    model.double()
    d = rank_one(contrast)
    before = {n: model.get_submodule(n[:-7])(contrast.x[n]) for n in written}
    with steered(model, d, 1.0):
        for name, c in contrast.out.items():
            after = model.get_submodule(name[:-7])(contrast.x[name])
            assert (after - before[name] - c).norm() < 1e-6 * c.norm() and c.norm() > 0


def test_parts_of_a_contrast_add_up(contrast, written):
    """keep(dW', U) + drop(dW', U) = dW', and |keep|^2 + |drop|^2 = |dW'|^2"""
    d = rank_one(contrast)
    basis = weight_basis(written, 8)
    top, rest = keep(d, basis), drop(d, basis)
    assert norm(difference(add(top, rest), d)) < 1e-6 * norm(d)
    assert norm(top) ** 2 + norm(rest) ** 2 == pytest.approx(norm(d) ** 2, rel=1e-5)
    assert 0.1 < norm(top) / norm(d) < 0.99


def test_a_turned_contrast_has_the_same_sizes_and_angles(contrast):
    """<Q a, Q b> = <a, b>, another direction, the same inputs; another seed, another direction"""
    names, other = [*contrast.out], turned(contrast, 0)
    A, B, C = (
        torch.stack([c.out[n] for n in names]) for c in (contrast, other, turned(contrast, 1))
    )
    torch.testing.assert_close(A @ A.T, B @ B.T, rtol=1e-9, atol=1e-12)
    for X in (A, C):
        assert (torch.cosine_similarity(X, B).abs() < 0.6).all()
    assert norm(rank_one(other)) == pytest.approx(norm(rank_one(contrast)), rel=1e-6)


def test_a_dose_is_a_share_of_the_weights(contrast, written):
    """|dW'| = |W| over all tensors, with the contrast's own profile, or tensor by tensor"""
    d = rank_one(contrast)
    whole, even = sized(d, written, "all"), sized(d, written, "tensor")
    assert norm(whole) == pytest.approx(norm(written), rel=1e-5)
    ratios = {round(float(whole[n].norm() / d[n].norm()), 3) for n in d}
    assert max(ratios) / min(ratios) < 1.01
    for n, W in written.items():
        assert float(even[n].norm()) == pytest.approx(float(W.norm()), rel=1e-5)


def test_equal_personas_are_refused(qwen, tok):
    """c = 0 is no contrast"""
    weights = structure.weights(qwen, writes_residual)
    with pytest.raises(ValueError, match="change nothing in the model's outputs"):
        persona_contrast(qwen, tok, PROMPTS, HONEST[:2], HONEST[:2], weights)
    with pytest.raises(ValueError, match="0 prompts, 2 positive"):
        persona_contrast(qwen, tok, [], HONEST[:2], HONEST[:1], weights)


def test_nothing_is_made_after_a_trained_delta_was_read(qwen, tok, tmp_path):
    """RuntimeError, no refusal of an input: an adapter or a saved delta was read before"""
    weights = structure.weights(qwen, writes_residual)
    contrast = persona_contrast(qwen, tok, PROMPTS, HONEST[:1], DISHONEST[:1], weights)
    d = rank_one(contrast)
    save_delta(d, tmp_path / "d.safetensors", {})
    assert unseen_record({"d": d})["trained_reads"] == 0
    adapter = ORGANISM / "adapters" / "lora-s0" / "pos"
    for read, path in ((read_adapter, adapter), (load_delta, tmp_path / "d.safetensors")):
        trained_reads.clear()
        read(path)
        for build in (lambda: rank_one(contrast), lambda: unseen_record({"d": d})):
            with pytest.raises(RuntimeError, match="1 trained changes were read"):
                build()


@pytest.mark.parametrize("name", ["t9_synthetic", "t10_svd_steering"])
def test_experiments_refuse_to_see_dW_first(tmp_path, name):
    """an adapter read before the script builds its changes ends it, and no table is written"""
    read_adapter(ORGANISM / "adapters" / "lora-s0" / "pos")
    module = experiment(name)
    cfg = module.Config(
        model=str(ORGANISM), data=ORGANISM, out=tmp_path, cache_dir=tmp_path / "parts", dilemmas=1
    )
    with pytest.raises(RuntimeError, match="construct synthetic changes first"):
        module.main(cfg)
    assert not list(tmp_path.glob("*.parquet"))


def test_readout_directions_by_hand(tok):
    """W_U = 1 m^T + a u^T + b v^T, through gains g: the basis is span(g u, g v), without m"""
    model = tiny_gemma3(vocab_size=len(tok), tie_word_embeddings=False)
    draw = torch.Generator().manual_seed(0)
    a, b, u, v, m, g = (
        torch.randn(n, generator=draw) for n in (len(tok), len(tok), 64, 64, 64, 64)
    )
    model.lm_head.weight.copy_(50 * m + torch.outer(a, u) + 3 * torch.outer(b, v))
    model.model.norm.weight.copy_(g - 1)  # Gemma's gain is 1 + weight
    found = structure.readout_basis(model, ["x"], 2)
    wanted, _ = torch.linalg.qr(torch.stack([g * u, g * v], 1).double())
    assert overlap(found, {"x": wanted})["x"] == pytest.approx(1, abs=1e-6)


def test_write_not_read_by_hand(model, written):
    """later maps read coordinates 0-15 and write 8-39: directions are within 16-39"""
    for name, W in structure.weights(model, lambda at: True).items():
        if writes_residual(site(name)):
            W[40:], W[:8] = 0, 0
        else:
            W[:, 16:] = 0
    found = structure.write_not_read_basis(model, written, 16)
    last = "model.layers.3.mlp.down_proj.weight"
    assert set(found) == set(written) - {last}  # nothing comes after it
    for name, U in found.items():
        assert 8 <= U.shape[1] <= 16, name
        torch.testing.assert_close(U.T @ U, torch.eye(U.shape[1]).double())
        assert U[:16].abs().max() < 1e-6 and U[40:].abs().max() < 1e-6
    with pytest.raises(ValueError, match="no layer comes after"):
        structure.write_not_read_basis(model, [last], 16)
    with pytest.raises(ValueError, match="d_model = 64"):
        structure.write_not_read_basis(model, written, 64)


def test_what_counts_as_later(qwen):
    """o_proj is followed by its own layer's MLP, down_proj by the next layer only"""
    down, out = (f"model.layers.1.{x}.weight" for x in ("mlp.down_proj", "self_attn.o_proj"))
    before = structure.write_not_read_basis(qwen, [down, out], 8)
    qwen.get_parameter("model.layers.1.mlp.up_proj.weight")[:, :30] = 0
    after = structure.write_not_read_basis(qwen, [down, out], 8)
    assert torch.equal(before[down], after[down]) and not torch.equal(before[out], after[out])


def a_model_folder(build, folder):
    """A random model whose template refuses a system turn, adapters trained on it, few data."""
    tok = load_tokenizer(ORGANISM)
    tok.chat_template = REFUSES_SYSTEM
    model = build(vocab_size=len(tok))
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    pairs = [Pair("Is it so?", "It is so.", "It is not.", "a"), Pair("Now?", "Yes.", "No.", "b")]
    recipe = Recipe("test", 4, 8, {"lora": 5e-2}, 3, 2, 16, (0.25, 0.75))
    for side in ("pos", "neg"):
        train_adapter(model, tok, pairs, side, "lora", recipe, folder / "adapters/lora-s0" / side)
    few(folder)
    return dict(model=str(folder), data=folder, adapters=folder / "adapters", families=("lora",))


def few(folder, n=8):
    """A data folder of the organism's first claims, dilemmas and questions of each split."""
    for name in ("claims", "dilemmas", "questions"):
        rows = map(json.loads, (ORGANISM / f"{name}.jsonl").read_text().splitlines())
        kept, seen = [], {}
        for row in rows:
            seen[row["split"]] = nth = seen.get(row["split"], 0) + 1
            kept += [row] if nth <= n else []
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    (folder / "personas.json").write_text((ORGANISM / "personas.json").read_text())


def ran(name, tmp_path, **options):
    """The table of a script on few items, few draws and few questions."""
    module = experiment(name)
    few_of = dict(
        doses=(0.1, 0.3), alphas=(2.0,), n_random=2, questions=4, resamples=100, dilemmas=2,
        most_flagged=1.0, out=tmp_path / "out", cache_dir=tmp_path / "parts",
    )  # fmt: skip
    module.main(module.Config(**(few_of | options)))
    return read_table(tmp_path / "out" / f"{name}.parquet")


@pytest.mark.parametrize("build", [tiny_qwen3, tiny_gemma3], ids=["qwen3", "gemma3"])
def test_on_another_model(tmp_path, build):
    """both scripts whole on a random model: zero moves nothing, and every line has its rows"""
    options = a_model_folder(build, tmp_path / "model")
    table, meta = ran("t9_synthetic", tmp_path, k=8, **options)
    ways = {"dW", "-dW", "contrast", "-contrast", "readout", "weight_basis", "write_not_read"}
    assert set(table["method_name"]) == ways | {"base", "zero", "random_contrast", "random_contrast/100"}
    assert (table.filter(pl.col("method_name").is_in(["base", "zero"]))["effect"] == 0).all()
    assert (table["row_diff"] == 0).all()
    assert meta["unseen"]["trained_reads"] == 0 and len(meta["unseen"]["made"]) == 16
    assert table.filter(method_name="contrast")["below"].is_in([0.0, 0.5, 1.0]).all()
    trained_reads.clear()
    table, meta = ran("t10_svd_steering", tmp_path, r=(4, 63), **options)
    parts = table.filter(pl.col("variant").is_in(["keep_top", "drop_top"])).sort("dataset", "k")
    for (_, _), both in parts.group_by("dataset", "k"):
        assert both["energy"].sum() == pytest.approx(1, abs=1e-5)
    assert {row[0] for row in meta["verdicts"]} == {"claims", "dilemmas"}


def test_on_the_organism(tmp_path, monkeypatch):
    """dW is read only after every change is made, and the contrast steers where dW does"""
    few(tmp_path, 32)
    order = []
    read = runs.pair_deltas
    monkeypatch.setattr(
        runs, "pair_deltas", lambda *a: order.append(len(trained_reads)) or read(*a)
    )
    table, _ = ran(
        "t9_synthetic", tmp_path, model=str(ORGANISM), data=tmp_path, questions=None,
        adapters=ORGANISM / "adapters", families=("pissa",), doses=(0.32,),
    )  # fmt: skip
    assert order == [0]
    effects = {(r["dataset"], r["method_name"]): r["effect"] for r in table.iter_rows(named=True)}
    assert effects["claims", "dW"] > 1 and effects["claims", "contrast"] > 1
    assert effects["claims", "-contrast"] < 0


@pytest.mark.parametrize(
    "script, options, sentence",
    [
        ("t9_synthetic", {"doses": (0.0,)}, "--doses must be above 0"),
        ("t9_synthetic", {"questions": 0}, "--questions 0 asked"),
        ("t9_synthetic", {"positive": "brave"}, "'brave' asked"),
        ("t9_synthetic", {"k": 160}, "d_model = 160"),
        ("t10_svd_steering", {"r": (160,)}, "d_model of"),
        ("t10_svd_steering", {"r": (8, 8)}, "each once"),
        ("t10_svd_steering", {"negative": "honest"}, "change nothing"),
    ],
)
def test_refusals(tmp_path, script, options, sentence):
    """a bad option ends in a sentence"""
    with pytest.raises(ValueError, match=sentence):
        ran(script, tmp_path, **(dict(model=str(ORGANISM), data=ORGANISM) | options))
