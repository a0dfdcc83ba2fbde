"""Both engines: the logits of the model's own forward, for many architectures and interventions."""

import functools
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import bits, same_bits
from wscore import Factored
from wsrun.models.hooks import decoder_layers
from wsrun.models.tiny import tiny_gemma3, tiny_qwen3
from wsrun.score.batching import padded_batches
from wsrun.score.cached import CachedEngine, verify_logits
from wsrun.score.layer_steps import DOWN, OUT, STEPS, UP, WRITE
from wsrun.score.plain import PlainEngine
from wsrun.score.scorer import choose_engine
from wsrun.steer.edits import AddVector, Project
from wsrun.steer.interventions import Intervention
from wsrun.steer.weights import steered

TINY: Any = dict(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    initializer_range=0.1,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)
WINDOW: Any = dict(
    head_dim=16,
    sliding_window=8,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
)
ALL = {WRITE, UP, DOWN}
CACHED: Any = {  # model type: (configuration, steps at which its layers are entered)
    "llama": ({}, ALL),
    "mistral": (dict(sliding_window=8), ALL),
    "qwen3": (dict(head_dim=24, tie_word_embeddings=True), ALL),
    "gemma2": (WINDOW | dict(query_pre_attn_scalar=16, attn_logit_softcapping=2.0), ALL),
    "gemma3_text": (WINDOW, ALL),
    "phi3": ({}, ALL),
    "olmo2": ({}, ALL),
    "qwen3_moe": (
        dict(head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
        {WRITE, UP},
    ),
    "gpt_oss": (
        WINDOW | dict(num_local_experts=4, num_experts_per_tok=2, rope_parameters={
            "rope_type": "default", "rope_theta": 10000.0}),
        {WRITE, UP},
    ),
    "gpt2": (dict(n_embd=64, n_head=4, n_layer=3, n_positions=128), set()),
    "opt": (dict(ffn_dim=96, word_embed_proj_dim=64), set()),
}  # fmt: skip
PLAIN: Any = {  # model type: (configuration, what the reason names)
    "bloom": ({}, "position_ids"),
    "lfm2": (dict(layer_types=["conv", "full_attention", "conv"]), "logits differ"),  # convolutions
    "gemma4_text": (WINDOW | dict(vocab_size_per_layer_input=512), "shared_kv_states"),
}
VECTOR, DIRECTION = (torch.randn(2, 64, generator=torch.Generator().manual_seed(3))).unbind()


def tiny(kind: str) -> Any:
    """A random model of 3 layers and width 64; norms, biases and sinks are random, too."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(TINY | (CACHED | PLAIN)[kind][0]))
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for p in model.parameters():
        p.add_(0.05 * torch.randn(p.shape))
    return model


@pytest.fixture(scope="module", params=[*CACHED, *PLAIN])
def any_model(request):
    return tiny(request.param)


@pytest.fixture(scope="module", params=CACHED)
def cached_model(request):
    return tiny(request.param)


def sequences() -> list[list[int]]:
    """Two heads, one of them shared by many, lengths 1 to 20, no order, one sequence twice."""
    random = torch.Generator().manual_seed(1)
    head, other, *tails = (
        torch.randint(3, 512, (n,), generator=random).tolist() for n in (8, 5, 3, 12, 12, 1, 6, 9)
    )
    with_head = [head + tail for tail in tails[:4]]
    return [*with_head, other + tails[4], tails[5], with_head[1][:10], head, with_head[0], [7]]


SEQUENCES = sequences()


@dataclass(frozen=True)
class Change(Intervention):
    """What an engine asks of an intervention, and nothing else."""

    dW: Any = field(default_factory=dict)
    by_layer: dict[int, Any] = field(default_factory=dict)

    def delta(self):
        return self.dW

    def edits(self):
        return self.by_layer


def random_change(model: Any, names: list[str], seed: int = 0) -> dict[str, Tensor]:
    """|dW| = 0.2 |W| for each of the names."""
    random, out = torch.Generator().manual_seed(seed), {}
    for name in names:
        weight = model.get_parameter(name)
        noise = torch.randn(weight.shape, generator=random)
        out[name] = 0.2 * weight.norm() * noise / noise.norm()
    return out


def matrices(model: Any, layer: int) -> list[str]:
    """Names of the weights of a layer that have rows and columns, experts among them."""
    prefix = next(n for n, m in model.named_modules() if m is decoder_layers(model))
    return [
        name for name, p in model.named_parameters()
        if name.startswith(f"{prefix}.{layer}.") and p.ndim > 1
    ]  # fmt: skip


def interventions(model: Any) -> dict[str, Any]:
    """Each kind alone, and all at once."""
    middle, last = matrices(model, 1), matrices(model, 2)
    weights = random_change(model, [middle[0], middle[-1], last[1]])
    flat = [n for n in middle if model.get_parameter(n).ndim == 2]
    shapes = {n: model.get_parameter(n).shape for n in flat}
    factors = {n: (0.1 * torch.randn(r, 2), torch.randn(2, c)) for n, (r, c) in shapes.items()}
    edits = {0: AddVector(VECTOR), 1: Project(DIRECTION), 2: Project(VECTOR)}
    return {
        "weights": Change(weights),
        "factors": Change(Factored(factors)),
        "vectors": Change({}, {1: AddVector(VECTOR), -1: AddVector(DIRECTION)}),
        "projection": Change({}, {0: Project(DIRECTION), 1: Project(DIRECTION)}),
        "all": Change(weights, edits),
        "prompt": Change(),
    }


def edited(edit: Any, out: Any, alpha: float) -> Any:
    """What a layer gives, edited; some give more than hidden states."""
    return (edit(out[0], alpha), *out[1:]) if isinstance(out, tuple) else edit(out, alpha)


@torch.no_grad()
def own_forward(model: Any, change: Any = None, alpha: float = 0.0) -> Tensor:
    """Logits of one unpadded sequence after another, hooks and all written out here."""
    with ExitStack() as stack:
        if change is not None and change.dW:
            stack.enter_context(steered(model, change.dW, alpha))
        for layer, edit in (change.by_layer if change is not None else {}).items():
            handle = decoder_layers(model)[layer].register_forward_hook(
                lambda m, args, out, edit=edit: edited(edit, out, alpha)
            )
            stack.callback(handle.remove)
        return torch.cat(
            [model(input_ids=torch.tensor([s]), use_cache=False).logits[:, -1] for s in SEQUENCES]
        )


def close(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and bool((x - y).abs().max() < 1e-5 * y.abs().max().clamp(min=1))


@pytest.mark.parametrize("kind", CACHED)
def test_the_cached_engine_takes(kind):
    """each of these architectures, entered at the steps that it has"""
    engine, reason = choose_engine(tiny(kind), SEQUENCES)
    assert isinstance(engine, CachedEngine) and reason is None
    engine.run()
    assert {key.step % STEPS for key in engine.cache.states} - {OUT} == CACHED[kind][1]


@pytest.mark.parametrize("kind", PLAIN)
def test_the_plain_engine_takes_the_rest(kind):
    """what mixes tokens or layers otherwise, with the reason in one line"""
    model = tiny(kind)
    engine, reason = choose_engine(model, SEQUENCES)
    assert isinstance(engine, PlainEngine) and reason is not None
    assert reason.startswith("scored plainly: ") and "\n" not in reason
    assert type(model).__name__ in reason and PLAIN[kind][1] in reason
    with pytest.raises(ValueError, match=type(model).__name__):
        choose_engine(model, SEQUENCES, engine="cached")
    assert not any("forward" in vars(m) for m in model.modules())


def test_an_engine_can_be_asked_for(qwen):
    """engine: cached or plain as asked, no reason; anything else is refused"""
    assert isinstance(choose_engine(qwen, SEQUENCES, engine="cached")[0], CachedEngine)
    engine, reason = choose_engine(qwen, SEQUENCES, engine="plain")
    assert isinstance(engine, PlainEngine) and reason is None
    with pytest.raises(ValueError, match="got 'fast'"):
        choose_engine(qwen, SEQUENCES, engine="fast")


def test_logits_are_those_of_the_models_own_forward(any_model):
    """cached = plain = own, within 1e-5; alpha = 0 = base bit for bit; no weight, no hook stays"""
    before, own = bits(any_model), own_forward(any_model)
    chosen, _ = choose_engine(any_model, SEQUENCES, 60)
    for engine in (PlainEngine(any_model, SEQUENCES, 60), chosen):
        base = engine.run()
        assert base.dtype == torch.float32 and close(base, own)
        for name, change in interventions(any_model).items():
            for alpha in (1.0, -0.5):
                found = engine.run(change, alpha)
                assert close(found, own_forward(any_model, change, alpha)), name
                assert (name == "prompt") == torch.equal(found, base), name
            assert torch.equal(engine.run(change, 0.0), base), name
        assert torch.equal(engine.run(), base)
    assert same_bits(any_model, before)
    assert not any("forward" in vars(m) for m in any_model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in any_model.modules())


def test_every_parameter_is_changed_before_its_first_use(cached_model):
    """a change of any one parameter, resumed from the base's states = the whole forward steered"""
    engine = CachedEngine(cached_model, SEQUENCES)
    base = engine.run()
    for name, _ in cached_model.named_parameters():
        change = Change(random_change(cached_model, [name]))
        with steered(cached_model, change.dW, 1.0):
            fresh = CachedEngine(cached_model, SEQUENCES, cache_bytes=0).run()
        found = engine.run(change, 1.0)
        assert close(found, fresh), name
        assert not torch.equal(found, base), name


def test_batches_and_options_do_not_matter(any_model):
    """batch 1 = batch N, shuffled or not, heads shared or not, all tokens or the last: 1e-5"""
    plain = PlainEngine(any_model, SEQUENCES).run()
    assert close(PlainEngine(any_model, SEQUENCES, 1).run(), plain)
    assert close(PlainEngine(any_model, SEQUENCES[::-1], 50).run().flip(0), plain)
    engine, reason = choose_engine(any_model, SEQUENCES)
    if reason is None:
        tried: list[dict[str, Any]] = [
            dict(tokens=1),
            dict(tokens=30),
            dict(share_heads=False),
            dict(last_token_only=False),
            dict(tokens=1, share_heads=False, last_token_only=False, cache_bytes=0),
        ]
        for options in tried:
            assert close(CachedEngine(any_model, SEQUENCES, **options).run(), plain), options


def test_resuming_changes_no_bit(cached_model):
    """states kept, or none kept: one change after another, bit for bit"""
    kept, none = (CachedEngine(cached_model, SEQUENCES, cache_bytes=n) for n in (None, 0))
    for change in interventions(cached_model).values():
        for alpha in (1.0, -0.5):
            assert torch.equal(kept.run(change, alpha), none.run(change, alpha))
    assert kept.cache.size > 0 == none.cache.size


def test_what_enters_the_first_layer_can_be_jittered(any_model):
    """jitter: h' = 2 h before layer 0, for either engine; nothing of it is kept"""
    with torch.no_grad():
        handle = decoder_layers(any_model)[0].register_forward_pre_hook(
            lambda m, args: (2 * args[0], *args[1:])
        )
        own = own_forward(any_model)
        handle.remove()
    chosen, _ = choose_engine(any_model, SEQUENCES)
    for engine in (PlainEngine(any_model, SEQUENCES), chosen):
        base = engine.run()
        assert close(engine.run(jitter=lambda h: 2 * h), own)
        assert torch.equal(engine.run(), base)


def test_half_precision(qwen):
    """bf16: within 0.05 of the own forward, float32 logits, an edit in the model's dtype"""
    model = qwen.bfloat16()
    assert verify_logits(model, SEQUENCES[1]) < 0.05
    change = Change({}, {1: AddVector(VECTOR), 2: Project(DIRECTION)})
    for engine in (CachedEngine(model, SEQUENCES), PlainEngine(model, SEQUENCES)):
        assert engine.run(change, 1.0).dtype == torch.float32


def test_another_forward_is_refused(qwen):
    """a model that scales its states after the layers where it is called with tokens alone"""
    decoder, own = qwen.get_decoder(), type(qwen.get_decoder()).forward

    @functools.wraps(own)
    def forward(*args, **more):
        out = own(decoder, *args, **more)
        if more.get("position_ids") is None:
            out.last_hidden_state = -out.last_hidden_state
        return out

    decoder.forward = forward
    with pytest.raises(ValueError, match="logits differ"):
        verify_logits(qwen, SEQUENCES[0])
    assert choose_engine(qwen, SEQUENCES)[1] is not None


def test_a_layer_that_cannot_be_entered_inside_is_refused(qwen):
    """an MLP that does more after its down_proj: right as a whole, wrong when entered there"""
    mlp = qwen.get_decoder().layers[1].mlp
    own = mlp.forward
    mlp.forward = doubled = lambda x: 2 * own(x)
    with pytest.raises(ValueError, match="logits differ"):
        verify_logits(qwen, SEQUENCES[0])
    assert mlp.forward is doubled, "what was there before comes back"


def test_unknown_names_are_refused(qwen):
    """a delta of a deeper model, and an edit of a layer that is not there"""
    deeper = Change({"model.layers.9.mlp.up_proj.weight": torch.zeros(96, 64)})
    beyond = Change({}, {9: AddVector(VECTOR)})
    for engine in (CachedEngine(qwen, SEQUENCES), PlainEngine(qwen, SEQUENCES)):
        with pytest.raises(ValueError, match="not parameters of the model"):
            engine.run(deeper, 1.0)
        with pytest.raises(ValueError, match=r"got \[9\]"):
            engine.run(beyond, 1.0)


def test_a_model_whose_layers_share_weights_runs_plainly(qwen):
    """one weight in two layers is changed in both; layer by layer it would be in one"""
    qwen.model.layers[2].mlp.up_proj.weight = qwen.model.layers[1].mlp.up_proj.weight
    assert "shared between layers" in (choose_engine(qwen, SEQUENCES)[1] or "")


def test_the_decoder_layers_are_found(any_model):
    """a list of 3 under whatever name; a clear sentence where there is none"""
    assert len(decoder_layers(any_model)) == 3


def test_a_model_without_a_list_of_layers(qwen):
    """a clear sentence that names the model; the plain engine scores it, and edits no layer"""
    qwen.model.middle = qwen.model.layers
    del qwen.model.layers
    with pytest.raises(ValueError, match="Qwen3ForCausalLM has no list of layers"):
        decoder_layers(qwen)
    assert "has no list of layers" in (choose_engine(qwen, SEQUENCES)[1] or "")


def test_padded_batches_by_hand():
    """lengths 3 1 2 2: shortest first, (count) x (longest) at most 4; a long one alone"""
    # 1 2 | 2 | 3 : 2 x 2 = 4; a third would make 3 x 2 = 6
    assert padded_batches([[1] * 3, [1], [1] * 2, [1] * 2], 4) == [[1, 2], [3], [0]]
    assert padded_batches([[1] * 9], 4) == [[0]]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        padded_batches([[1]], 0)


def watch(model: Any, *modules: str) -> list[str]:
    """The named modules of each layer write into the list when they run."""
    ran: list[str] = []
    for i, layer in enumerate(decoder_layers(model)):
        for name in modules:
            layer.get_submodule(name).register_forward_hook(
                lambda *args, i=i, name=name: ran.append(f"{name} {i}".strip())
            )
    return ran


def of_layers(model: Any, *layers: int, size: float = 1.0) -> Change:
    """A change of all matrices of some layers."""
    names = [n for layer in layers for n in matrices(model, layer)]
    return Change({n: size * t for n, t in random_change(model, names).items()})


def test_resuming_skips_what_is_known(qwen):
    """keep layers 2 and 3: 0, 1 do not run; drop layer 3 from that: only 3 does, as the base's"""
    full, two = of_layers(qwen, 2, 3), of_layers(qwen, 2)
    two = Change({n: full.dW[n] for n in two.dW})
    down = Change({n: t for n, t in two.dW.items() if "down_proj" in n})
    engine, did = CachedEngine(qwen, SEQUENCES), {}
    ran = watch(qwen, "self_attn.q_proj", "mlp.up_proj")
    for name, change in {"base": None, "full": full, "without 3": two, "down": down}.items():
        engine.run(change, 1.0)
        did[name] = [x.split(".")[1] for x in ran]
        ran.clear()
    zero, one, last, three = ([f"q_proj {i}", f"up_proj {i}"] for i in range(4))
    assert did["base"] == [*zero, *one, *last, *three]
    assert did["full"] == [*last, *three] and did["without 3"] == did["down"] == three


def test_an_edit_resumes_at_its_layer(qwen):
    """h' of layer 2 runs layer 3 alone, at every alpha; the base's state is the one it needs"""
    engine, ran = CachedEngine(qwen, SEQUENCES), watch(qwen, "mlp")
    engine.run()
    ran.clear()
    for alpha in (1.0, 2.0):
        engine.run(Change({}, {2: AddVector(VECTOR)}), alpha)
    assert ran == ["mlp 3", "mlp 3"]


def test_the_last_layer_runs_only_where_logits_are_read(qwen):
    """MLP rows of the last layer = distinct sequences; of the others, all tokens of the trie"""
    rows = {}
    for i, layer in enumerate(decoder_layers(qwen)):
        layer.get_submodule("mlp.up_proj").register_forward_hook(
            lambda m, args, out, i=i: rows.update({i: args[0].shape[:-1].numel()})
        )
    engine = CachedEngine(qwen, SEQUENCES)
    engine.run()
    (batch,) = engine.batches
    assert rows[3] == len(SEQUENCES) and rows[0] == rows[1] == rows[2] == batch.ids.numel()


def test_states_stay_within_their_room(qwen):
    """kept bytes <= limit; the state that a change sets in at outlives those nobody asked for"""
    one = sum(h.nbytes for h in CachedEngine(qwen, SEQUENCES, cache_bytes=0).embedded)
    engine, ran = CachedEngine(qwen, SEQUENCES, cache_bytes=3 * one), watch(qwen, "mlp")
    for i in range(4):
        engine.run(of_layers(qwen, 2, 3, size=i + 1.0), 1.0)
        assert 0 < engine.cache.size <= 3 * one
        assert {key.step % STEPS for key in engine.cache.states} == {OUT}, "no room inside layers"
    assert ran.count("mlp 1") == 1, "layer 1 runs for the first change only"


def test_what_is_made_twice_is_kept(tok):
    """with little room, dW without layer 4 makes dW's states again; without layer 5 finds them"""
    model = tiny_qwen3(vocab_size=len(tok), num_hidden_layers=6)
    room = 3 * sum(h.nbytes for h in CachedEngine(model, SEQUENCES, cache_bytes=0).embedded)
    engine, ran = CachedEngine(model, SEQUENCES, cache_bytes=room), watch(model, "")
    whole = of_layers(model, 1, 2, 3, 4, 5).dW

    def run(size: float = 1.0, without: int | None = None) -> list[str]:
        ran.clear()
        names = [n for n in whole if f"layers.{without}." not in n]
        engine.run(Change({n: size * whole[n] for n in names}), 1.0)
        return list(ran)

    for size in (1.0, 2.0, 3.0):
        run(size)
    assert run(without=4) == ["1", "2", "3", "4", "5"] and run(without=5) == ["4", "5"]


def test_a_window_is_that_of_the_models_own_masks(tok):
    """layers that look 8 tokens back, sequences longer than that"""
    model = tiny_gemma3(vocab_size=len(tok), sliding_window=8)
    assert max(map(len, SEQUENCES)) > 2 * 8
    assert close(CachedEngine(model, SEQUENCES).run(), own_forward(model))
    assert not close(own_forward(tiny_gemma3(vocab_size=len(tok))), own_forward(model))
