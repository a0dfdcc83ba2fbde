"""Scoring: one renderer, the same numbers whatever the batch, and rows that pair up."""

from dataclasses import fields

import polars as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.conftest import bits, random_delta, same_bits
from wscore import entries_sha256, paired, scale, site
from wsrun.data.items import PREFILL, Item, with_system
from wsrun.models.chat import Choices, choice_ids, end_of_turn, render, user
from wsrun.models.hooks import add_vector, hooked
from wsrun.models.tiny import tiny_gemma3, tiny_qwen3
from wsrun.report.tables import ROW_SCHEMA
from wsrun.score.cached import BASE, OUT, STEPS, Change, Opened
from wsrun.score.sweep import Levers, Variant, _rows, choice_scores, plan, score, scored, sweep
from wsrun.steer.weights import Rounding, steered

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


def scores(model, tok, items, tokens=4096, share=True, narrow=True):
    """Margins and masses under one batch plan."""
    p = plan(tok, items, tokens, share)
    return scored(p, Opened(model, p.batches, narrow, limit=0).run())


def test_batch_and_order_do_not_matter(model, tok, items):
    """margin(batch 1) = margin(batch N) = margin(shuffled) = margin(common heads), within 1e-5"""
    one = scores(model, tok, items, tokens=1, share=False, narrow=False)
    for other in (
        scores(model, tok, items, tokens=200, share=False),
        scores(model, tok, items, share=False),
        scores(model, tok, items[::-1], tokens=200, share=False)[::-1],
        scores(model, tok, items, tokens=200),
        scores(model, tok, items),
        scores(model, tok, items[::-1], narrow=False)[::-1],
    ):
        assert other["item"].to_list() == one["item"].to_list()
        assert (other["margin"] - one["margin"]).abs().max() < 1e-5
        assert (other["mass"] - one["mass"]).abs().max() < 1e-5


def test_a_window_of_attention_is_that_of_the_plain_forward(tok, items):
    """a model whose layers look 8 tokens back: packed margins = those of the model's own masks"""
    model = tiny_gemma3(vocab_size=len(tok), sliding_window=8)
    yes, no = choice_ids(tok)
    packed = scores(model, tok, items)
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
    p, rows = plan(tok, items, tokens=10**6), {}
    for i, layer in enumerate(qwen.get_decoder().layers):
        layer.mlp.up_proj.register_forward_hook(
            lambda m, args, out, i=i: rows.update({i: args[0].shape[:-1].numel()})
        )
    Opened(qwen, p.batches).run()
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


MODULES = "self_attn.q_proj self_attn.o_proj mlp.gate_proj mlp.down_proj input_layernorm".split()


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_resuming_changes_no_bit(model, tok, items, layer):
    """a change that begins at any step, from kept states = the whole forward, bit for bit"""
    later = {n: t for n, t in random_delta(model).items() if site(n).layer > layer}
    for module in MODULES:
        name = f"model.layers.{layer}.{module}.weight"
        weight, random = model.get_parameter(name), torch.Generator().manual_seed(1)
        d = later | {name: 0.05 * torch.randn(weight.shape, generator=random)}
        rows = sweep(model, tok, items, [Variant("v", d)], (1.0, -0.5), context=CONTEXT)
        for alpha in (1.0, -0.5):
            with steered(model, d, alpha):
                whole = scores(model, tok, items)
            assert rows.filter(alpha=alpha)["margin"].equals(whole["margin"]), module
    assert not any("forward" in vars(m) for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_resuming_skips_what_is_known(qwen, tok, items):
    """keep layers 2 and 3: 0, 1 do not run; drop layer 3 from that: only 3 does, as the base's"""
    d, ran = random_delta(qwen), []
    parts = {
        "base": {},
        "full": {n: t for n, t in d.items() if site(n).layer in (2, 3)},
        "without 3": {n: t for n, t in d.items() if site(n).layer == 2},
        "down": {n: t for n, t in d.items() if site(n).layer == 2 and site(n).proj == "down_proj"},
    }
    opened = Opened(qwen, plan(tok, items).batches)
    for i, layer in enumerate(qwen.get_decoder().layers):
        layer.mlp.up_proj.register_forward_hook(lambda *args, i=i: ran.append(f"up {i}"))
        layer.self_attn.q_proj.register_forward_hook(lambda *args, i=i: ran.append(f"q {i}"))
    did = {}
    for name, delta in parts.items():
        opened.run(Change(delta, {}, 1.0, entries_sha256(delta)) if delta else BASE)
        did[name] = list(ran)
        ran.clear()
    two, three = ["q 2", "up 2"], ["q 3", "up 3"]
    assert did["base"] == ["q 0", "up 0", "q 1", "up 1", *two, *three]
    assert did["full"] == [*two, *three] and did["without 3"] == three and did["down"] == three


def test_states_stay_within_their_room(qwen, tok, items):
    """kept bytes <= limit; the state that a change sets in at outlives those nobody asked for"""
    d = {n: t for n, t in random_delta(qwen).items() if site(n).layer >= 2}
    p, ran = plan(tok, items).batches, []
    one = sum(4 * len(b.ids) * 64 for b in p)
    opened = Opened(qwen, p, limit=3 * one)
    qwen.get_decoder().layers[1].mlp.register_forward_hook(lambda *args: ran.append(1))
    for i in range(4):
        change = {n: (i + 1.0) * t for n, t in d.items()}
        opened.run(Change(change, {}, 1.0, entries_sha256(change)))
        assert 0 < opened.states.size <= 3 * one
        assert {step % STEPS for step, _ in opened.states.kept} == {OUT}, "no room inside layers"
    assert len(ran) == len(p), "layer 1 runs for the first change only"
    nothing = Opened(qwen, p, limit=0)
    nothing.run()
    assert nothing.states.size == 0


def test_what_is_made_twice_is_kept(tok, items):
    """with little room, dW without layer 4 makes dW's states again; without layer 5 finds them"""
    model, ran = tiny_qwen3(vocab_size=len(tok), num_hidden_layers=6), []
    p = plan(tok, items).batches
    d = {n: t for n, t in random_delta(model).items() if site(n).layer >= 1}
    opened = Opened(model, p[:1], limit=3 * 4 * len(p[0].ids) * 64)
    for i, layer in enumerate(model.get_decoder().layers):
        layer.register_forward_hook(lambda *args, i=i: ran.append(i))

    def run(delta):
        ran.clear()
        opened.run(Change(delta, {}, 1.0, entries_sha256(delta)))
        return list(ran)

    for size in (1.0, 2.0, 3.0):
        run({n: size * t for n, t in d.items()})
    assert run({n: t for n, t in d.items() if site(n).layer != 4}) == [1, 2, 3, 4, 5]
    assert run({n: t for n, t in d.items() if site(n).layer != 5}) == [4, 5]


def test_a_delta_of_a_deeper_model_is_refused(qwen, tok, items):
    """a delta whose first layer the model does not have gets the sentence, not an index error"""
    deeper = Variant("v", {"model.layers.9.mlp.up_proj.weight": torch.zeros(96, 64)})
    with pytest.raises(ValueError, match="not parameters of the model"):
        sweep(qwen, tok, items, [deeper], (1.0,), context=CONTEXT)


def test_a_change_outside_the_layers(model, tok, items):
    """a change of the embedding, or of the last norm, = the model steered by it"""
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        weight = model.get_parameter(name)
        d = {name: 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))}
        rows = sweep(model, tok, items, [Variant("v", d)], (1.0,), context=CONTEXT)
        with steered(model, d, 1.0):
            whole = scores(model, tok, items)
        assert (rows.filter(alpha=1.0)["margin"] - whole["margin"]).abs().max() < 1e-5


def test_another_forward_is_refused(qwen, tok, items):
    """a model that scales its states between the layers: compared with its own forward, refused"""
    decoder, own = qwen.get_decoder(), type(qwen.get_decoder()).forward

    def forward(*args, **more):
        out = own(decoder, *args, **more)
        if more.get("inputs_embeds") is None:
            out.last_hidden_state = -out.last_hidden_state
        return out

    decoder.forward = forward
    with pytest.raises(ValueError, match="this architecture is not supported"):
        sweep(qwen, tok, items, [Variant("v", random_delta(qwen))], (1.0,), context=CONTEXT)


def test_the_end_of_a_turn_is_the_template_s(tok):
    """the token that the template writes after an assistant's turn, not the tokenizer's eos"""
    assert end_of_turn(tok) == tok.convert_tokens_to_ids("<|im_end|>")
    gemma = tokenizer("{% for m in messages %}{{ m.role }} {{ m.content }} no {% endfor %}")
    assert end_of_turn(gemma) == gemma.convert_tokens_to_ids("no") != gemma.bos_token_id


def test_hooks_see_and_add_and_go(model, tok, items):
    """h' = h + c v inside the block; no hook stays after it, also after an exception"""
    seen = {}
    ids = torch.tensor([render(tok, items[0].turns)])
    base = model(input_ids=ids).logits
    with hooked(model, {1: lambda h: seen.update(h=h.shape)}):
        assert torch.equal(model(input_ids=ids).logits, base)
    assert seen["h"] == (*ids.shape, 64)
    vector = torch.ones(64)
    with pytest.raises(KeyError), hooked(model, {-1: add_vector(vector, 2.0)}):
        assert not torch.equal(model(input_ids=ids).logits, base)
        raise KeyError
    assert torch.equal(model(input_ids=ids).logits, base)
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
