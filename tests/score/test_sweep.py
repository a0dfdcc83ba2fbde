"""The sweep: rows that pair up, the same whatever engine, batch or order."""

from dataclasses import fields, replace

import polars as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from tests.conftest import bits, random_delta, same_bits
from wscore import paired, scale, site
from wscore.stats.schema import ROW_SCHEMA
from wsrun.data.items import Item, with_system
from wsrun.models.chat import Choices, choice_ids, render, user
from wsrun.models.hooks import hooked
from wsrun.score.plan import plan
from wsrun.score.readings import choice_scores
from wsrun.score.scorer import Engines, Levers, Scorer
from wsrun.score.sweep import _rows, score, sweep
from wsrun.score.variants import Variant
from wsrun.steer.interventions import AddVectors, SystemPrompt, WeightDelta
from wsrun.steer.weights import Rounding, steered

NAMES = {"experiment": "test", "model_name": "tiny", "behaviour": "honest"}


def test_margin_and_mass_known_answer():
    """p = (1/2, 1/4, 1/8, 1/8), Yes = {0}, No = {1, 2}: margin = ln(4/3), mass = 7/8"""
    # log p(yes) - log p(no) = ln(1/2) - ln(1/4 + 1/8) = ln(4/3) = 0.2876821
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log() + 3.0
    margin, mass = choice_scores(logits, Choices([0], [1, 2]))
    assert margin.item() == pytest.approx(0.2876821, abs=1e-6)
    assert mass.item() == pytest.approx(0.875, abs=1e-6)
    with pytest.raises(ValueError, match="not finite"):
        choice_scores(torch.tensor([[0.0, float("nan")]]), Choices([0], [1]))


@pytest.mark.parametrize("engine", ["plain", "cached"])
def test_batch_and_order_do_not_matter(model, tok, items, engine):
    """margin(batch 1) = margin(batch N) = margin(shuffled) = margin(common heads), within 1e-5"""

    def rows(items=items, **more):
        variants = {"v": random_delta(model)}
        return sweep(model, tok, items, variants, (1.0,), engine=engine, **more).sort("item")

    one = rows(tokens=1, levers=Levers(share_heads=False, last_token_only=False))
    for other in (rows(), rows(tokens=200), rows(items[::-1], tokens=200)):
        assert other["item"].equals(one["item"])
        assert (other["margin"] - one["margin"]).abs().max() < 1e-5
        assert (other["mass"] - one["mass"]).abs().max() < 1e-5


def test_both_engines_give_the_same_rows(model, tok, items):
    """engine plain = cached = auto: margins within 1e-5, all else equal; auto is the cached one"""
    variants = [
        Variant("w", WeightDelta(random_delta(model)), family="lora", seed=1),
        Variant("a", AddVectors({1: torch.ones(64)}) & SystemPrompt("You lie."), (0.5,)),
    ]
    plain, cached, auto = (
        sweep(model, tok, items, variants, (1.0,), engine=engine)
        for engine in ("plain", "cached", "auto")
    )
    assert auto.equals(cached)
    numbers = ("margin", "mass", "dtype_noise")
    assert plain.drop(numbers).equals(cached.drop(numbers))
    for column in numbers:
        assert (plain[column] - cached[column]).abs().max() < 1e-5
    with pytest.raises(ValueError, match="got 'fast'"):
        sweep(model, tok, items, variants, (1.0,), engine="fast")


def test_a_model_that_does_not_fit_is_swept_plainly(tok, items):
    """a model that mixes neighbours outside of attention: one notice, and the plain rows"""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tok), n_embd=64, n_head=4, n_layer=2, n_positions=512)
    model, notices = GPT2LMHeadModel(config).eval().requires_grad_(False), []
    embed = model.transformer.wte.forward
    model.transformer.wte.forward = lambda ids: embed(ids) + embed(ids.roll(1, -1))
    variants = [
        Variant("a", AddVectors({0: torch.ones(64)})),
        Variant("p", SystemPrompt("You lie."), (1.0,)),
    ]

    def rows(**more):
        return sweep(model, tok, items, variants, (1.0,), warn=notices.append, **more)

    auto = rows()
    (notice,) = notices
    assert notice.startswith("scored plainly: GPT2LMHeadModel") and "\n" not in notice
    assert auto.equals(rows(engine="plain")) and len(notices) == 1
    with pytest.raises(ValueError, match="GPT2LMHeadModel"):
        rows(engine="cached")


def test_every_lever_off_gives_the_same_numbers(model, tok, items):
    """all levers on = all off within 1e-5; resume changes no bit"""
    d = random_delta(model)
    variants = {"v": d, "late": {n: t for n, t in d.items() if site(n).layer > 1}}

    def rows(**levers):
        return sweep(model, tok, items, variants, (1.0, -1.0), levers=Levers(**levers))

    on, names = rows(), [f.name for f in fields(Levers)]
    assert rows(resume=False).equals(on)
    for off in ({name: False} for name in names):
        assert (rows(**off)["margin"] - on["margin"]).abs().max() < 1e-5
    off = rows(**dict.fromkeys(names, False))
    assert (off["margin"] - on["margin"]).abs().max() < 1e-5
    assert (off["margin"] != on["margin"]).any()  # they are different sums


def test_noise_is_measured(qwen, tok, items):
    """rms of margin(h_0 (1 + eps u)) - margin(h_0) of the base: tiny in fp32, eps-fold in bf16"""
    d = {"v": random_delta(qwen)}
    fine = sweep(qwen, tok, items, d, (1.0,))["dtype_noise"]
    coarse = sweep(qwen.bfloat16(), tok, items, d, (1.0,))["dtype_noise"]
    assert fine.n_unique() == coarse.n_unique() == 2  # one of each data set
    assert fine.max() < 1e-5 < 1e-4 < coarse.min() and coarse.max() < 1


def test_noise_is_that_of_each_data_set(qwen, tok, items):
    """rms of the change of a data set's own margins, of two data sets in one sweep"""
    mixed = [replace(i, dataset="a" if n < 5 else "b") for n, i in enumerate(items)]
    both = sweep(qwen, tok, mixed, {"v": random_delta(qwen)}, (1.0,))
    p = plan(tok, mixed)
    scorer = Scorer(qwen, p, Engines(qwen, "auto", 4096, Levers(), print), None, {})
    change = (scorer.jittered()["margin"] - scorer.base["margin"]).to_numpy()
    for name, part in (("a", change[:5]), ("b", change[5:])):
        (noise,) = both.filter(dataset=name)["dtype_noise"].unique()
        assert noise == pytest.approx((part**2).mean() ** 0.5)


def test_margin_is_that_of_the_plain_forward(model, tok, items):
    """margin read off the full logits of one unpadded sequence, at its last position"""
    yes, no = choice_ids(tok)
    rows = score(model, tok, items)
    for i, item in enumerate(items[:3]):
        ids = torch.tensor([render(tok, item.turns, item.prefill)])
        with torch.no_grad():
            p = model(input_ids=ids).logits[0, -1].double().softmax(-1)
        assert rows["margin"][i] == pytest.approx(
            float((p[yes].sum() / p[no].sum()).log()), abs=1e-5
        )
        assert rows["mass"][i] == pytest.approx(float(p[yes].sum() + p[no].sum()), abs=1e-6)


def test_alpha_one_is_the_merged_model(qwen, tok, items):
    """margin(base + 1 * delta) = margin(PEFT's merge) within 1e-5"""
    import copy

    from wscore import merge_adapter

    wrapped = get_peft_model(copy.deepcopy(qwen), LoraConfig(r=4, target_modules=["q_proj"]))
    torch.nn.init.normal_(
        wrapped.base_model.model.model.layers[1].self_attn.q_proj.lora_B.default.weight
    )
    config = wrapped.peft_config["default"].to_dict()
    tensors = {
        n.replace(".default", ""): p.detach().clone()
        for n, p in wrapped.named_parameters()
        if "lora_" in n
    }
    tau = merge_adapter(tensors, config, dict(qwen.named_parameters()))
    merged = score(wrapped.merge_and_unload(), tok, items)
    with steered(qwen, tau, 1.0):
        ours = score(qwen, tok, items)
    assert (ours["margin"] - merged["margin"]).abs().max() < 1e-5
    assert (ours["margin"] - score(qwen, tok, items)["margin"]).abs().max() > 1e-3


def test_sweep_rows(qwen, tok, items):
    """one row per (variant, alpha, item), the base once, weights untouched, zero dW = no effect"""
    before, d = bits(qwen), random_delta(qwen)
    calls = []
    variants = [
        Variant("full", WeightDelta(d), family="lora", seed=3),
        Variant("zero", WeightDelta(lambda: scale(0.0, d))),
        Variant("once", WeightDelta(d), k=2, alphas=(2.0,)),
    ]
    alphas = (0.0, -1.0, 1.0)
    rows = sweep(qwen, tok, items, variants, alphas, progress=calls.append, **NAMES)
    assert same_bits(qwen, before)
    assert dict(rows.schema) == ROW_SCHEMA
    counts = {(v, a): n for v, a, n in rows.group_by("variant", "alpha").len().iter_rows()}
    n = len(items)
    assert counts == {
        ("base", 0.0): n, ("full", -1.0): n, ("full", 1.0): n,
        ("zero", -1.0): n, ("zero", 1.0): n, ("once", 2.0): n,
    }  # fmt: skip
    assert calls == ["base", "full", "full", "zero", "zero", "once"]
    gains = paired(rows)
    assert (gains.filter(variant="zero")["gain"] == 0).all()
    assert (gains.filter(variant="full")["gain"] != 0).all()
    again = sweep(qwen, tok, items, variants, (-1.0, 1.0), **NAMES)
    assert rows.equals(again)
    named = rows.select("experiment", "model", "behaviour", "prompt_style").unique().row(0)
    assert named == ("test", "tiny", "honest", "chat-yesno-1")


def test_deltas_and_interventions_by_name(qwen, tok, items):
    """{name: delta or intervention} = the variants of these names"""
    d, vectors = random_delta(qwen), AddVectors({1: torch.ones(64)})
    named = sweep(qwen, tok, items, {"w": d, "a": vectors}, (1.0,))
    variants = [Variant("w", WeightDelta(d)), Variant("a", vectors)]
    assert named.equals(sweep(qwen, tok, items, variants, (1.0,)))
    methods = named.group_by("variant").agg(pl.col("method").unique()).sort("variant")
    assert methods["method"].to_list() == [["activation"], ["base"], ["weights"]]
    assert set(named["model"]) == {""}


def test_a_low_mass_or_a_crude_dose_flags_the_row(qwen, tok, items):
    """flagged: mass < 0.5, or cosine of the realised change < 0.99 in the model's dtype"""
    scored = score(qwen, tok, items[:2]).with_columns(mass=pl.Series([0.49, 0.51]))
    flagged = [
        _rows(scored, Variant("v", WeightDelta({})), 1.0, rounding)["flagged"].to_list()
        for rounding in (None, Rounding(1.0, 0.995), Rounding(1.0, 0.985))
    ]
    assert flagged == [[True, False], [True, False], [True, True]]
    qwen.to(torch.bfloat16)
    small = {"v": random_delta(qwen, size=1e-3)}
    rows = sweep(qwen, tok, items, small, (1.0,)).filter(alpha=1.0)
    assert rows["realised_cosine"].max() < 0.99 and rows["flagged"].all()
    assert rows["realised_norm_ratio"].null_count() == 0


def test_the_item_decides_nothing_but_its_prompt(qwen, tok):
    """two items with one prompt and opposite labels have one margin"""
    twins = [Item("a", "c", user("Is it so?"), 1), Item("b", "c", user("Is it so?"), -1)]
    rows = score(qwen, tok, twins)
    assert rows["margin"][0] == rows["margin"][1]


def test_activations_and_prompts_are_variants_too(model, tok, items):
    """h_l + alpha v_l, resumed at l or not; a system turn: the items asked under it; and all"""
    d, vector, system = random_delta(model), torch.ones(64), "You lie."
    all_three = WeightDelta(d) & AddVectors({2: vector}) & SystemPrompt(system)
    variants = [
        Variant("v", AddVectors({2: vector})),
        Variant("p", SystemPrompt(system), (1.0,)),
        Variant("all", all_three, (1.0,)),
    ]
    rows = sweep(model, tok, items, variants, (0.5, 1.0))
    margins = {
        k: v["margin"] for k, v in rows.partition_by("variant", "alpha", as_dict=True).items()
    }
    with hooked(model, {2: lambda h: h + 0.5 * vector}):
        alone = score(model, tok, items)
    assert (margins["v", 0.5] - alone["margin"]).abs().max() < 1e-5
    asked = [with_system(i, system) for i in items]
    assert (margins["p", 1.0] - score(model, tok, asked)["margin"]).abs().max() < 1e-5
    with steered(model, d, 1.0), hooked(model, {2: lambda h: h + vector}):
        together = score(model, tok, asked)
    assert (margins["all", 1.0] - together["margin"]).abs().max() < 1e-5


def test_what_does_not_fit_is_refused(qwen, tok, items):
    """a delta of a deeper model, a layer beyond the last, and what changes nothing"""
    deeper = {"model.layers.9.mlp.up_proj.weight": torch.zeros(96, 64)}
    for name, intervention, match in [
        ("deeper", WeightDelta(deeper), "not parameters of the model"),
        ("beyond", AddVectors({9: torch.ones(64)}), r"got \[9\]"),
        ("none", WeightDelta({}), "'none' changes nothing"),
    ]:
        with pytest.raises(ValueError, match=match):
            sweep(qwen, tok, items, {name: intervention}, (1.0,))


def test_a_change_is_made_once_and_let_go(qwen, tok, items):
    """a callable dW: made when its turn comes, once for all alphas"""
    calls = []

    def make():
        calls.append(len(made))
        return random_delta(qwen)

    made: list[str] = []
    variants = [Variant(name, WeightDelta(make)) for name in "ab"]
    sweep(qwen, tok, items, variants, (1.0, -1.0, 2.0), progress=made.append)
    assert calls == [1, 4]  # after the base, and after the three alphas of a


def test_the_room_is_its_function_too(qwen, tok, items):
    """from wsrun import score, sweep: both can be called, whatever was imported before"""
    from wsrun import score as room
    from wsrun import sweep as function

    assert room(qwen, tok, items).equals(score(qwen, tok, items)) and function is sweep


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_an_alpha_that_is_no_finite_number_is_refused(qwen, tok, items, alpha):
    """in a sentence that names the variant"""
    with pytest.raises(ValueError, match="sweep: an alpha of 'a' is .*; use a finite number"):
        sweep(qwen, tok, items, {"a": random_delta(qwen)}, (alpha,))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_a_delta_of_no_floating_numbers_is_refused(qwen, tok, items, dtype):
    delta = {name: w.to(dtype) for name, w in random_delta(qwen).items()}
    with pytest.raises(ValueError, match="float"):
        sweep(qwen, tok, items, {"a": delta}, (1.0,))


def test_running_out_of_memory_is_no_reason_to_run_plainly(qwen, tok, items, monkeypatch):
    """the proof of the cached engine runs out: a sentence, and not the plain engine"""
    for error in (MemoryError(), torch.OutOfMemoryError("out of memory"),
                  RuntimeError("DefaultCPUAllocator: can't allocate memory")):  # fmt: skip

        def prove(*args, error=error):
            raise error

        monkeypatch.setattr("wsrun.score.scorer.verify_logits", prove)
        with pytest.raises(ValueError, match="score: batches of 4096 tokens: out of memory"):
            sweep(qwen, tok, items, {"a": random_delta(qwen)}, (1.0,))
        with pytest.raises(ValueError, match="score: out of memory"):
            score(qwen, tok, items)


def test_an_item_that_fits_no_memory_is_refused(qwen, tok, items, monkeypatch):
    """before it is run, naming the longest item, its tokens, what it takes and what is free"""
    monkeypatch.setattr("wsrun.models.memory.free_bytes", lambda device: 1000)
    lengths = {i.id: len(render(tok, i.turns, i.prefill)) for i in items}
    longest = max(lengths, key=lambda name: lengths[name])
    said = rf"score: item {longest!r} of \d+ tokens would take .* GiB .* free on 'cpu'; shorten"
    with pytest.raises(ValueError, match=said):
        sweep(qwen, tok, items, {"a": random_delta(qwen)}, (1.0,))
    with pytest.raises(ValueError, match=said):
        score(qwen, tok, items)
