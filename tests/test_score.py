"""Scoring: one renderer, the same numbers whatever the batch, and rows that pair up."""

from dataclasses import fields

import polars as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.conftest import bits, random_delta, same_bits
from wscore import paired, scale, site
from wsrun.capture import add_vector, entering, hooked
from wsrun.items import PREFILL, Item, user, with_system
from wsrun.models import tiny_gemma3
from wsrun.plan import Choices, layer_cost
from wsrun.score import (
    Levers,
    Variant,
    _rows,
    choice_ids,
    choice_scores,
    end_of_turn,
    first_layer,
    last_logits,
    plan,
    render,
    run_plan,
    score,
    sweep,
)
from wsrun.steer import Rounding, steered
from wsrun.tables import ROW_SCHEMA

CONTEXT = {"experiment": "test", "model": "tiny", "behaviour": "honest"}
REFUSES_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}<end>{% endfor %}<model>"
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
)


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """A real word tokenizer that adds <bos> by itself, under the given chat template."""
    words = ["<unk>", "<bos>", "<", ">", "user", "end", "model", "You", "lie", ".", "Is", "it"]
    words += ["so", "?", "think", "/", "Yes", "no", "yes", "No", "NO", ",", "thinking"]  # 22 last
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[</>]"), "isolated")]
    )
    raw.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    raw.add_special_tokens(["<bos>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", unk_token="<unk>", chat_template=template
    )


def test_golden_ids(tok):
    """template(turns) + generation prompt with thinking off + prefill, token by token"""
    text = tok.decode(render(tok, user("Is it so?", "You lie."), PREFILL))
    assert text == (
        "<|im_start|>system\nYou lie.<|im_end|>\n<|im_start|>user\nIs it so?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nMy answer: **"
    )
    im_start, im_end = tok.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    ids = render(tok, user("Is it so?"), PREFILL)
    assert (ids.count(im_start), ids.count(im_end), ids[0]) == (2, 1, im_start)


def test_one_bos_never_two():
    """a tokenizer that adds <bos> itself, under a template that writes it: exactly one"""
    tok = tokenizer(REFUSES_SYSTEM)
    # <bos> < user > Is it so < end > < model >
    golden = [1, 2, 4, 3, 10, 11, 12, 2, 5, 3, 2, 6, 3]
    assert render(tok, user("Is it so")) == golden
    assert tok("Is it")["input_ids"][0] == 1  # it would have added a second one


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, DROPS_SYSTEM], ids=["refuses", "drops"])
def test_a_system_turn_is_never_lost(template):
    """a template that refuses or drops the system role gets it merged into the first user turn"""
    tok = tokenizer(template)
    assert render(tok, user("Is it so?", "You lie.")) == render(tok, user("You lie.\n\nIs it so?"))


def test_an_open_think_is_closed():
    """a template that ends in <think> gets </think> before the prefill"""
    tok = tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}<think>\n")
    # Is it so < think > < / think > Yes
    assert render(tok, user("Is it so"), "Yes") == [10, 11, 12, 2, 14, 3, 2, 15, 14, 3, 16]


def test_choice_ids_are_words_only(tok):
    """Yes and No up to case, leading space and boundary marks; nothing with punctuation"""
    small = tokenizer(REFUSES_SYSTEM)
    assert choice_ids(small) == Choices(yes=[16, 18], no=[17, 19, 20])
    vocab = {i: t for t, i in tok.get_vocab().items()}
    for side, word in zip(choice_ids(tok), ("yes", "no"), strict=True):
        assert {vocab[i].lstrip("Ġ▁ ").lower() for i in side} == {word}
    with pytest.raises(ValueError, match="no single token"):
        raw = Tokenizer(models.WordLevel({"<unk>": 0, "Yes": 1}, unk_token="<unk>"))
        choice_ids(PreTrainedTokenizerFast(tokenizer_object=raw))


def test_margin_and_mass_known_answer():
    """p = (1/2, 1/4, 1/8, 1/8), Yes = {0}, No = {1, 2}: margin = ln(4/3), mass = 7/8"""
    # log p(yes) - log p(no) = ln(1/2) - ln(1/4 + 1/8) = ln(4/3) = 0.2876821
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log() + 3.0
    margin, mass = choice_scores(logits, Choices([0], [1, 2]))
    assert margin.item() == pytest.approx(0.2876821, abs=1e-6)
    assert mass.item() == pytest.approx(0.875, abs=1e-6)
    with pytest.raises(ValueError, match="not finite"):
        choice_scores(torch.tensor([[0.0, float("nan")]]), Choices([0], [1]))


def test_batch_padding_and_order_do_not_matter(model, tok, items):
    """margin(batch 1) = margin(batch N) = margin(shuffled) = margin(left-padded), within 1e-5"""
    one = run_plan(model, plan(tok, items, tokens=1), last_position=False)
    cost = layer_cost(model.config)
    for other in (
        run_plan(model, plan(tok, items, tokens=200)),
        run_plan(model, plan(tok, items, tokens=4096)),
        run_plan(model, plan(tok, items, tokens=4096, padding="left")),
        run_plan(model, plan(tok, items[::-1], tokens=200, padding="left"))[::-1],
        run_plan(model, plan(tok, items, tokens=200, cost=cost)),
        run_plan(model, plan(tok, items, tokens=4096, cost=cost, padding="left")),
        run_plan(model, plan(tok, items[::-1], tokens=4096, cost=cost), last_position=False)[::-1],
    ):
        assert other["item"].to_list() == one["item"].to_list()
        assert (other["margin"] - one["margin"]).abs().max() < 1e-5
        assert (other["mass"] - one["mass"]).abs().max() < 1e-5


def test_a_window_of_attention_is_that_of_the_plain_forward(tok, items):
    """a model whose layers look 8 tokens back: packed margins = those of the model's own masks"""
    model = tiny_gemma3(vocab_size=len(tok), sliding_window=8)
    yes, no = choice_ids(tok)
    packed = run_plan(model, plan(tok, items, cost=layer_cost(model.config)))
    for i, item in enumerate(items):
        with torch.no_grad():
            ids = torch.tensor([render(tok, item.turns, item.prefill)])
            p = model(input_ids=ids).logits[0, -1].double().softmax(-1)
        expected = float((p[yes].sum() / p[no].sum()).log())
        assert packed["margin"][i] == pytest.approx(expected, abs=1e-5)


def test_every_lever_off_gives_the_same_numbers(model, tok, items):
    """all levers on = all off within 1e-5; resume and once change no bit"""
    variants = [Variant("v", random_delta(model)), Variant("again", random_delta(model))]
    variants += [
        Variant("late", {n: t for n, t in random_delta(model).items() if site(n).layer > 1})
    ]

    def rows(**levers):
        return sweep(
            model, tok, items, variants, (1.0, -1.0), context=CONTEXT, levers=Levers(**levers)
        )

    on, names = rows(), [f.name for f in fields(Levers)]
    assert rows(resume=False).equals(on) and rows(once=False).equals(on)
    for off in ({name: False} for name in names):
        assert (rows(**off)["margin"] - on["margin"]).abs().max() < 1e-5
    off = rows(**dict.fromkeys(names, False))
    assert (off["margin"] - on["margin"]).abs().max() < 1e-5
    assert (off["margin"] != on["margin"]).any()  # they are different ways


def test_the_last_layer_runs_only_where_answers_are_read(qwen, tok, items):
    """MLP rows of the last layer = items; of the others, all tokens of the plan"""
    p, rows = plan(tok, items, tokens=10**6, cost=layer_cost(qwen.config)), {}
    for i, layer in enumerate(qwen.get_decoder().layers):
        layer.mlp.up_proj.register_forward_hook(
            lambda m, args, out, i=i: rows.update({i: args[0].shape[:-1].numel()})
        )
    run_plan(qwen, p)
    (batch,) = p.batches
    assert rows[3] == len(items) and rows[0] == rows[1] == rows[2] == batch.ids.numel()


def test_noise_is_measured(qwen, tok, items):
    """rms of margin(h_0 (1 + eps u)) - margin(h_0) of the base: tiny in fp32, eps-fold in bf16"""
    d = [Variant("v", random_delta(qwen))]
    fine = sweep(qwen, tok, items, d, (1.0,), context=CONTEXT)["noise"]
    coarse = sweep(qwen.bfloat16(), tok, items, d, (1.0,), context=CONTEXT)["noise"]
    assert fine.n_unique() == coarse.n_unique() == 1
    assert fine[0] < 1e-5 < 1e-4 < coarse[0] < 1


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
        Variant("full", d, family="lora", seed=3),
        Variant("zero", lambda: scale(0.0, d)),
        Variant("once", d, k=2, alphas=(2.0,)),
    ]
    rows = sweep(
        qwen, tok, items, variants, (0.0, -1.0, 1.0), context=CONTEXT, progress=calls.append
    )
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
    again = sweep(qwen, tok, items, variants, (-1.0, 1.0), context=CONTEXT)
    assert rows.equals(again)


def test_a_low_mass_or_a_crude_dose_flags_the_row(qwen, tok, items):
    """flagged: mass < 0.5, or cosine of the realised change < 0.99 in the model's dtype"""
    scored = score(qwen, tok, items[:2]).with_columns(mass=pl.Series([0.49, 0.51]))
    flagged = [
        _rows(scored, Variant("v", {}), 1.0, rounding)["flagged"].to_list()
        for rounding in (None, Rounding(1.0, 0.995), Rounding(1.0, 0.985))
    ]
    assert flagged == [[True, False], [True, False], [True, True]]
    qwen.to(torch.bfloat16)
    small = Variant("v", random_delta(qwen, size=1e-3))
    rows = sweep(qwen, tok, items, [small], (1.0,), context=CONTEXT).filter(alpha=1.0)
    assert rows["dose_cosine"].max() < 0.99 and rows["flagged"].all()
    assert rows["dose"].null_count() == 0


@pytest.mark.parametrize("first", [0, 1, 3])
def test_resuming_changes_no_bit(model, tok, items, first):
    """a variant that starts at layer l, run from cached states entering l = the whole forward"""
    d = {n: t for n, t in random_delta(model).items() if site(n).layer >= first}
    rows = sweep(model, tok, items, [Variant("v", d)], (1.0, -0.5), context=CONTEXT)
    assert first_layer(d) == first
    for alpha in (1.0, -0.5):
        with steered(model, d, alpha):
            whole = run_plan(model, plan(tok, items, cost=layer_cost(model.config)))
        assert rows.filter(alpha=alpha)["margin"].equals(whole["margin"])
    assert not any("forward" in vars(layer) for layer in model.get_decoder().layers)


def test_resuming_skips_the_unchanged_layers(qwen, tok, items):
    """resumed at layer 2: layers 0 and 1 do not run, and the states that enter 2 are the given"""
    p, ran, hidden = plan(tok, items), [], []
    with entering(qwen, 2, hidden):
        whole = run_plan(qwen, p)
    for i, layer in enumerate(qwen.get_decoder().layers):
        layer.mlp.register_forward_hook(lambda *args, i=i: ran.append(i))
    assert run_plan(qwen, p, 2, hidden).equals(whole) and ran == [2, 3]
    moved = run_plan(qwen, p, 2, [2 * h for h in hidden])
    assert (moved["margin"] != whole["margin"]).all()


def test_a_delta_of_a_deeper_model_is_refused(qwen, tok, items):
    """a delta whose first layer the model does not have gets the sentence, not an index error"""
    deeper = Variant("v", {"model.layers.9.mlp.up_proj.weight": torch.zeros(96, 64)})
    with pytest.raises(ValueError, match="not parameters of the model"):
        sweep(qwen, tok, items, [deeper], (1.0,), context=CONTEXT)


def test_a_change_outside_the_layers_starts_at_the_embedding(qwen):
    """first layer of {embedding} and of {layer 2, embedding} is 0; of {layer 2, layer 3} it is 2"""
    two, three = (f"model.layers.{i}.mlp.up_proj.weight" for i in (2, 3))
    zero = torch.zeros(1, 1)
    assert first_layer({three: zero, two: zero}) == 2
    assert first_layer({two: zero, "model.embed_tokens.weight": zero}) == 0


def test_the_end_of_a_turn_is_the_template_s(tok):
    """the token that the template writes after an assistant's turn, not the tokenizer's eos"""
    assert end_of_turn(tok) == tok.convert_tokens_to_ids("<|im_end|>")
    gemma = tokenizer("{% for m in messages %}{{ m.role }} {{ m.content }} no {% endfor %}")
    assert end_of_turn(gemma) == gemma.convert_tokens_to_ids("no") != gemma.bos_token_id


def test_hooks_see_and_add_and_go(model, tok, items):
    """h' = h + c v inside the block; no hook stays after it, also after an exception"""
    seen = {}
    batch = plan(tok, items).batches[0]
    base = last_logits(model, batch)
    with hooked(model, {1: lambda h: seen.update(h=h.shape)}):
        assert torch.equal(last_logits(model, batch), base)
    assert seen["h"] == (*batch.ids.shape, 64)
    vector = torch.ones(64)
    with pytest.raises(KeyError), hooked(model, {-1: add_vector(vector, 2.0)}):
        assert not torch.equal(last_logits(model, batch), base)
        raise KeyError
    assert torch.equal(last_logits(model, batch), base)
    with pytest.raises(ValueError, match="layers"), hooked(model, {9: lambda h: None}):
        pass


def test_the_item_decides_nothing_but_its_prompt(qwen, tok):
    """two items with one prompt and opposite labels have one margin"""
    twins = [Item("a", "c", user("Is it so?"), 1), Item("b", "c", user("Is it so?"), -1)]
    rows = score(qwen, tok, twins)
    assert rows["margin"][0] == rows["margin"][1]


def test_activations_and_prompts_are_variants_too(model, tok, items):
    """vectors: h_l + alpha v_l, resumed at l or not; system: the items asked under that turn"""
    vector, system = torch.ones(64), "You lie."
    variants = [
        Variant("v", vectors={2: vector}, method="activation"),
        Variant("p", system=system, method="prompt", alphas=(1.0,)),
        Variant("both", random_delta(model), vectors={2: vector}, system=system, alphas=(1.0,)),
    ]
    rows = sweep(model, tok, items, variants, (0.5, 1.0), context=CONTEXT)
    margins = {
        k: v["margin"] for k, v in rows.partition_by("variant", "alpha", as_dict=True).items()
    }
    with hooked(model, {2: add_vector(vector, 0.5)}):
        alone = score(model, tok, items)
    assert (margins["v", 0.5] - alone["margin"]).abs().max() < 1e-5
    asked = [with_system(i, system) for i in items]
    assert (margins["p", 1.0] - score(model, tok, asked)["margin"]).abs().max() < 1e-5
    with steered(model, random_delta(model), 1.0), hooked(model, {2: add_vector(vector, 1.0)}):
        both = score(model, tok, asked)
    assert (margins["both", 1.0] - both["margin"]).abs().max() < 1e-5
    off = Levers(**{f.name: False for f in fields(Levers)})
    slow = sweep(model, tok, items, variants, (0.5, 1.0), context=CONTEXT, levers=off)
    assert (rows["margin"] - slow["margin"]).abs().max() < 1e-5
    with pytest.raises(ValueError, match="'none' changes nothing"):
        sweep(model, tok, items, [Variant("none")], (1.0,), context=CONTEXT)


def test_a_system_turn_joins_the_one_that_is_there():
    """with_system(item, s): s, a blank line, and the item's own system turn after it"""
    item = Item("a", "c", user("Is it so?", "You lie."), 1)
    assert with_system(item, "No jokes.").turns == user("Is it so?", "No jokes.\n\nYou lie.")
    bare = Item("a", "c", user("Is it so?"), 1)
    assert with_system(bare, "No jokes.").turns == user("Is it so?", "No jokes.")
