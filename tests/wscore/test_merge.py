"""merge_adapter against PEFT's own merge, and what it refuses.

The oracle is the saved checkpoint, loaded by PEFT on an fp32 copy of the base, widened to float64
and merged there: merged - base in fp32 would lose the digits of a small change, in float64 it has
them all. Only PiSSA's oracle keeps fp32 errors, those of the residual base PEFT makes at load.
"""

import copy
import json
import math

import peft
import peft.tuners.boft.layer as peft_boft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from wscore.families import family, merge_adapter
from wscore.families.boft import boft_delta
from wscore.families.delora import delora_delta
from wscore.families.dora import dora_delta
from wscore.families.ia3 import ia3_delta
from wscore.families.loha import loha_delta
from wscore.families.lokr import lokr_delta
from wscore.families.lora import lora_delta
from wscore.families.oft import oft_delta
from wscore.families.pissa import pissa_delta, pissa_factors
from wscore.families.rotation import cayley, cayley_neumann

LINEARS = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
SIZES = dict(
    vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=2, head_dim=16,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
ARCHITECTURES = {
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
}
PATTERNS = dict(
    rank_pattern={"q_proj": 3, r"layers\.1\..*down_proj": 7},
    alpha_pattern={"model.layers.0.mlp.up_proj": 5},
)


def lora(**options):
    return peft.LoraConfig(r=4, lora_alpha=6, target_modules=LINEARS, **options)


def oft(**options):
    options = dict(oft_block_size=8, use_cayley_neumann=False) | options
    return peft.OFTConfig(target_modules=LINEARS, **options)


CASES = {
    "lora": lambda: lora(),
    "rslora": lambda: lora(use_rslora=True),
    "lora_patterns": lambda: lora(use_rslora=True, **PATTERNS),
    "lora_orthogonal": lambda: lora(init_lora_weights="orthogonal"),
    "dora": lambda: lora(use_dora=True),
    "dora_patterns": lambda: lora(use_dora=True, **PATTERNS),
    "pissa": lambda: lora(init_lora_weights="pissa"),
    "pissa_patterns": lambda: lora(init_lora_weights="pissa", use_rslora=True, **PATTERNS),
    "pissa_full": lambda: lora(init_lora_weights="pissa", rank_pattern={"k_proj": 40}),
    "delora": lambda: peft.DeloraConfig(
        r=4, delora_lambda=2, rank_pattern={"k_proj": 2}, target_modules=LINEARS
    ),
    "oft": lambda: oft(),
    "oft_neumann": lambda: oft(use_cayley_neumann=True),
    "oft_neumann_3": lambda: oft(use_cayley_neumann=True, num_cayley_neumann_terms=3),
    "oft_rank": lambda: oft(r=5, oft_block_size=0),
    "oft_shared": lambda: oft(block_share=True),
    "oft_constrained": lambda: oft(coft=True, eps=0.5),
    "boft": lambda: peft.BOFTConfig(boft_block_size=8, target_modules=LINEARS),
    "boft_blocks": lambda: peft.BOFTConfig(
        boft_block_size=0, boft_block_num=4, boft_n_butterfly_factor=2, target_modules=LINEARS
    ),
    "ia3": lambda: peft.IA3Config(
        target_modules=LINEARS, feedforward_modules=["down_proj", "o_proj"]
    ),
    "loha": lambda: peft.LoHaConfig(r=4, alpha=6, target_modules=LINEARS),
    "loha_patterns": lambda: peft.LoHaConfig(r=4, alpha=6, target_modules=LINEARS, **PATTERNS),
    "lokr": lambda: peft.LoKrConfig(r=3, alpha=6, target_modules=LINEARS),
    "lokr_whole": lambda: peft.LoKrConfig(r=16, alpha=40, target_modules=LINEARS),
    "lokr_both": lambda: peft.LoKrConfig(
        r=2, alpha=5, decompose_both=True, init_weights="lycoris", target_modules=LINEARS
    ),
    "lokr_patterns": lambda: peft.LoKrConfig(
        r=4, alpha=6, decompose_factor=4, target_modules=LINEARS, **PATTERNS
    ),
}


@pytest.fixture(autouse=True)
def no_extension(monkeypatch):
    """PEFT would try to compile a CUDA extension for BOFT; here it never does."""
    monkeypatch.setattr(peft_boft, "get_fbd_cuda", lambda: None)


def build(architecture, tied):
    make_config, make_model = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    model = make_model(make_config(**SIZES, tie_word_embeddings=tied)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero at init, and then no test could see them scaled
            torch.nn.init.normal_(parameter)
    return model


@pytest.fixture(scope="module")
def models():
    """(architecture, dtype, tied) -> model in fp32 whose weights are numbers of that dtype."""
    built = {}
    for architecture in ARCHITECTURES:
        for tied in (False, True):
            model = build(architecture, tied)
            built[architecture, torch.float32, tied] = model
            built[architecture, torch.bfloat16, tied] = copy.deepcopy(model).bfloat16().float()
    return built


@torch.no_grad()
def randomise(model, seed=1):
    """Move every adapter parameter away from its init, as far as training would or further."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "lora_magnitude" in name or "ia3_" in name or "boft_s" in name or "lambda" in name:
            parameter.mul_(1 + 0.2 * noise)
        elif "lora_" in name or "oft_R" in name:
            parameter.add_((0.1 if "oft_R" in name else 0.02) * noise)
        elif parameter.requires_grad:
            parameter.add_(0.1 * noise)


def save(model, config, path):
    """A checkpoint on disk and what is in it: (tensors, config)."""
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    randomise(adapted)
    adapted.save_pretrained(path)
    tensors = load_file(path / "adapter_model.safetensors")
    return tensors, json.loads((path / "adapter_config.json").read_text())


def oracle(model, path):
    """merged - base of every parameter that PEFT's merge changes, in float64."""
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(model), path).double()
    merged, base = adapted.merge_and_unload().state_dict(), model.state_dict()
    changes = {name: merged[name] - base[name].double() for name in base}
    return {name: change for name, change in changes.items() if change.any()}


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def flat(delta, names):
    return torch.cat([delta[name].double().flatten() for name in names])


FAMILIES = ["lora", "dora", "pissa", "delora", "oft", "boft", "ia3", "loha", "lokr"]
RUNS = [(case, torch.float32, False) for case in CASES]
RUNS += [(case, torch.float32, True) for case in FAMILIES]
RUNS += [(case, torch.bfloat16, tied) for case in FAMILIES for tied in (False, True)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case, dtype, tied", RUNS)
def test_merge_equals_peft(models, tmp_path, case, dtype, architecture, tied):
    """merge_adapter(adapter, config, W) = PEFT's merge - W, per tensor and in all, <= 1e-5."""
    model = models[architecture, dtype, tied]
    adapter, config = save(model, CASES[case](), tmp_path)
    base = {name: weight.to(dtype) for name, weight in model.state_dict().items()}
    delta, expected = merge_adapter(adapter, config, base), oracle(model, tmp_path)
    assert family(config) == case.split("_")[0].replace("rslora", "lora")
    assert delta.keys() == expected.keys()
    tolerance = 1e-5 if "pissa" in case else 3e-7
    for name in delta:
        assert delta[name].dtype == torch.float32 and delta[name].shape == base[name].shape
        assert relative(delta[name], expected[name]) <= tolerance, name
    assert relative(flat(delta, expected), flat(expected, expected)) <= tolerance
    size = flat(expected, expected).norm() / flat(base, expected).norm()
    assert 0.005 < size < 3, size  # neither a trace nor a different model


def test_butterfly_product_equals_peft(models, tmp_path, monkeypatch):
    """R = M_n .. M_1: three factors, as PEFT multiplies them where its extension builds."""

    class BlockDiagonal:  # stands in for the extension's kernel, [n, k, b, b] -> [n, kb, kb]
        apply = staticmethod(
            lambda blocks: torch.stack([torch.block_diag(*factor) for factor in blocks])
        )

    monkeypatch.setattr(peft_boft, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(peft_boft, "FastBlockDiag", BlockDiagonal)
    options = dict(boft_block_size=4, boft_n_butterfly_factor=3, target_modules=LINEARS)
    model = models["qwen3", torch.float32, False]
    adapter, config = save(model, peft.BOFTConfig(**options), tmp_path)
    assert {t.shape[0] for key, t in adapter.items() if "boft_R" in key} == {3}
    delta, expected = merge_adapter(adapter, config, model.state_dict()), oracle(model, tmp_path)
    assert delta.keys() == expected.keys()
    assert max(relative(delta[name], expected[name]) for name in expected) <= 3e-7


MODULE = "model.layers.0.self_attn.q_proj"
KEY = f"base_model.model.{MODULE}"


def handmade(d_out=3, d_in=4, r=2, **config):
    """A one-module LoRA checkpoint, its config and a base."""
    generator = torch.Generator().manual_seed(0)
    draw = {"A": (r, d_in), "B": (d_out, r), "W": (d_out, d_in)}
    draw = {k: torch.randn(shape, generator=generator) for k, shape in draw.items()}
    adapter = {f"{KEY}.lora_{factor}.weight": draw[factor] for factor in "AB"}
    config = {"peft_type": "LORA", "r": r, "lora_alpha": 3, "init_lora_weights": True} | config
    return adapter, config, {f"{MODULE}.weight": draw["W"]}


def f64(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_lora_by_hand():
    """dW = s B A."""
    # s = 0.5, B = (1, 2), A = (3, 4): 0.5 * [[1*3, 1*4], [2*3, 2*4]] = [[1.5, 2], [3, 4]]
    delta = lora_delta(f64([3.0, 4]), f64([1.0], [2]), 0.5)
    assert torch.equal(delta, f64([1.5, 2], [3, 4]))


def test_dora_by_hand():
    """dW = m V / |V| - W by rows, V = W + s B A."""
    # V = [[2, 4], [0, 1]] + [[1, 0], [0, 0]] = [[3, 4], [0, 1]], |V| = (5, 1), m = (10, 3)
    # m V / |V| = [[6, 8], [0, 3]], minus W = [[4, 4], [0, 2]]
    W = f64([2.0, 4], [0, 1])
    delta = dora_delta(f64([1.0, 0]), f64([2.0], [0]), 0.5, f64(10.0, 3), W)
    assert torch.equal(delta, f64([4.0, 4], [0, 2]))


def test_delora_by_hand():
    """dW = (lambda / r) sum b a / (|b| |a|) diag(w)."""
    # a = (3, 4) of norm 5, b = (0, 2) of norm 2, lambda = 10, r = 1, w = (1, 2):
    # row 1 is 10 * 2 * (3, 4) / (2 * 5) * (1, 2) = (6, 16)
    delta = delora_delta(f64([3.0, 4]), f64([0.0], [2]), f64(10.0), f64(1.0, 2))
    torch.testing.assert_close(delta, f64([0.0, 0], [6, 16]), atol=1e-14, rtol=0)


def test_oft_by_hand():
    """dW = W R^T - W with R = (I - Q)(I + Q)^-1."""
    # Q = [[0, 1], [-1, 0]]: (I + Q)^-1 = [[1, -1], [1, 1]] / 2, (I - Q) = [[1, -1], [1, 1]]
    # R = [[0, -1], [1, 0]]; W = (3, 5): W R^T = (-5, 3), minus W = (-8, -2)
    delta = oft_delta(f64([1.0]), f64([3.0, 5]))
    torch.testing.assert_close(delta, f64([-8.0, -2]), atol=1e-14, rtol=0)


def test_boft_by_hand():
    """dW = m W R^T - W, R from the skew part of theta."""
    # (theta - theta^T) / 2 = [[0, 1], [-1, 0]], so R as above; m = 2: 2 * (-5, 3) - (3, 5)
    delta = boft_delta(f64([[[7.0, 2], [0, 4]]]), f64([2.0]), f64([3.0, 5]))
    torch.testing.assert_close(delta, f64([-13.0, 1]), atol=1e-14, rtol=0)


def test_ia3_by_hand():
    """dW = (l - 1) * W, on rows or on columns."""
    # l - 1 = (1, -1): rows [[2, 4], [-3, -5]], columns [[2, -4], [3, -5]]
    W = f64([2.0, 4], [3, 5])
    assert torch.equal(ia3_delta(f64([2.0], [0]), W), f64([2.0, 4], [-3, -5]))
    assert torch.equal(ia3_delta(f64([2.0, 0]), W), f64([2.0, -4], [3, -5]))


def test_loha_by_hand():
    """dW = s (B1 A1) * (B2 A2)."""
    # B1 A1 = [[3, 4], [6, 8]], B2 A2 = [[5, 0], [1, 0]], product [[15, 0], [6, 0]], s = 0.5
    delta = loha_delta(f64([3.0, 4]), f64([1.0], [2]), f64([1.0, 0]), f64([5.0], [1]), 0.5)
    assert torch.equal(delta, f64([7.5, 0], [3, 0]))


def test_lokr_by_hand():
    """dW = s C (x) D: each entry of C times all of D."""
    delta = lokr_delta(f64([1.0, 2]), f64([3.0, 4], [5, 6]), 0.5)
    assert torch.equal(delta, f64([1.5, 2, 3, 4], [2.5, 3, 5, 6]))


def skew(k=3, b=4, size=0.1):
    Q = size * torch.randn(k, b, b, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Q - Q.mT


def test_cayley_is_orthogonal():
    """R R^T = I, and cayley(-Q) = cayley(Q)^T."""
    R = cayley(skew())
    torch.testing.assert_close(R @ R.mT, torch.eye(4, dtype=R.dtype).expand(3, 4, 4))
    torch.testing.assert_close(cayley(-skew()), R.mT)


def test_cayley_neumann_turns_the_other_way():
    """cayley_neumann(Q, t) -> cayley(Q)^T as t grows: the two settings are not interchangeable."""
    R = cayley(skew()).mT
    errors = [(cayley_neumann(skew(), terms) - R).norm().item() for terms in (5, 10, 40)]
    assert errors[0] > 10 * errors[1] and errors[1] > 1000 * errors[2] and errors[2] < 1e-10


def test_oft_sign_follows_the_setting(models, tmp_path):
    """One checkpoint read with use_cayley_neumann true and false gives (nearly) opposite turns."""
    model = models["llama", torch.float32, False]
    adapter, config = save(model, oft(), tmp_path)
    small = {key: 0.01 * tensor for key, tensor in adapter.items()}
    exact = merge_adapter(small, config, model.state_dict())
    series = merge_adapter(small, config | {"use_cayley_neumann": True}, model.state_dict())
    assert all(relative(-series[name], exact[name].double()) < 0.02 for name in exact)


def test_lora_delta_has_rank_r(models, tmp_path):
    """rank(s B A) = r at the precision of the fp32 result."""
    model = models["qwen3", torch.bfloat16, False]
    adapter, config = save(model, lora(**PATTERNS), tmp_path)
    base = {name: weight.to(torch.bfloat16) for name, weight in model.state_dict().items()}
    for name, change in merge_adapter(adapter, config, base).items():
        S = torch.linalg.svdvals(change.double())
        r = 3 if "q_proj" in name else 7 if "1.mlp.down_proj" in name else 4
        assert (S > 1e-6 * S[0]).sum() == r, name


def test_rslora_scale():
    """s = alpha / sqrt(r) in place of alpha / r: the delta grows by sqrt(r)."""
    adapter, config, base = handmade()
    plain = merge_adapter(adapter, config, base)[f"{MODULE}.weight"]
    stable = merge_adapter(adapter, config | {"use_rslora": True}, base)[f"{MODULE}.weight"]
    torch.testing.assert_close(stable, math.sqrt(2) * plain)


def test_pissa_of_stored_factors(models, tmp_path):
    """s (B A - B0 A0) is the same with B0 A0 stored by training and from the SVD of W."""
    model = models["qwen2", torch.float32, False]
    initial = peft.get_peft_model(copy.deepcopy(model), CASES["pissa"]()).state_dict()
    adapter, config = save(model, CASES["pissa"](), tmp_path)
    stored = {
        key.replace(".default.weight", "_init.weight"): tensor
        for key, tensor in initial.items()
        if "lora_" in key
    }
    delta = merge_adapter(adapter, config, model.state_dict())
    other = merge_adapter(adapter | stored, config, model.state_dict())
    assert max(relative(other[name], delta[name].double()) for name in delta) < 1e-5


def test_pissa_factors_are_the_top_part():
    """s B0 A0 = U_r S_r V_r^T, W - s B0 A0 keeps the other singular values; dW of the init is 0."""
    W = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A0, B0 = pissa_factors(W, 2, 0.5)
    rest = torch.linalg.svdvals(W - lora_delta(A0, B0, 0.5))
    torch.testing.assert_close(rest[:3], torch.linalg.svdvals(W)[2:])
    assert not pissa_delta(A0, B0, 0.5, A0, B0).any()


def test_keys_come_from_the_targets():
    """B = 0 is a change of zero under the target's key, never an absent key."""
    adapter, config, base = handmade()
    adapter[f"{KEY}.lora_B.weight"].zero_()
    delta = merge_adapter(adapter, config, base)
    assert list(delta) == [f"{MODULE}.weight"] and not delta[f"{MODULE}.weight"].any()


def test_prefix_of_the_checkpoint_is_optional():
    """`base_model.model.<name>` and `<name>` are the same module; inputs are left as they were."""
    adapter, config, base = handmade()
    before = copy.deepcopy((adapter, config, base))
    bare = {key.removeprefix("base_model.model."): tensor for key, tensor in adapter.items()}
    delta, other = merge_adapter(adapter, config, base), merge_adapter(bare, config, base)
    assert torch.equal(delta[f"{MODULE}.weight"], other[f"{MODULE}.weight"])
    for mapping, copied in zip((adapter, base), (before[0], before[2]), strict=True):
        assert all(torch.equal(mapping[key], copied[key]) for key in copied)


class Lazy(dict):
    """A mapping that notes which tensors were asked for."""

    def __init__(self, items):
        super().__init__(items)
        self.read = []

    def __getitem__(self, key):
        self.read.append(key)
        return super().__getitem__(key)


def test_base_is_read_by_target():
    """Only the weights of targets are read."""
    adapter, config, base = handmade()
    base = Lazy(base | {"model.embed_tokens.weight": torch.ones(2, 2)})
    merge_adapter(adapter, config, base)
    assert set(base.read) == {f"{MODULE}.weight"}  # the type checker of the tests reads it too


CONFIG_REFUSALS = {
    "unknown peft_type": (dict(peft_type="VERA"), "peft_type 'VERA'; train one of LORA"),
    "no peft_type": (dict(peft_type=None), "no 'peft_type'"),
    "no rank": (dict(r=None), "no 'r', only .*adapter_config.json"),
    "no alpha": (dict(lora_alpha=None), "no 'lora_alpha'"),
    "olora": (dict(init_lora_weights="olora"), "init_lora_weights 'olora'"),
    "corda": (dict(init_lora_weights="corda"), "init_lora_weights 'corda'"),
    "loftq": (dict(init_lora_weights="loftq"), "init_lora_weights 'loftq'"),
    "lora_ga": (dict(init_lora_weights="lora_ga"), "init_lora_weights 'lora_ga'"),
    "pissa_niter": (dict(init_lora_weights="pissa_niter_4"), "'pissa_niter_4'"),
    "pissa dora": (dict(init_lora_weights="pissa", use_dora=True), "'pissa' with use_dora True"),
    "modules_to_save": (dict(modules_to_save="lm_head"), "modules_to_save 'lm_head'"),
    "bias": (dict(bias="lora_only"), "bias to 'lora_only'"),
    "lora_bias": (dict(lora_bias=True), "lora_bias to True"),
    "fan_in_fan_out": (dict(fan_in_fan_out="yes"), "fan_in_fan_out 'yes'"),
    "tokens": (dict(trainable_token_indices=[3]), r"trainable_token_indices to \[3\]"),
    "alora": (dict(alora_invocation_tokens=[3]), "alora_invocation_tokens"),
    "other rank": (dict(r=3), r"lora_A.weight is \[2, 4\], .* config need \[3, 4\]"),
    "dora without m": (dict(use_dora=True), "no lora_magnitude_vector"),
}


@pytest.mark.parametrize("change, message", CONFIG_REFUSALS.values(), ids=CONFIG_REFUSALS)
def test_config_is_refused(change, message):
    """A config that means something else than one known rule raises, naming the field."""
    adapter, config, base = handmade()
    with pytest.raises(ValueError, match=f"merge_adapter: .*{message}"):
        merge_adapter(adapter, config | change, base)


EXTRA = torch.ones(3, 2)
BAD = torch.tensor([[1.0, math.nan], [0, 0], [0, 0]])
TENSOR_REFUSALS = {
    "empty": (lambda a, b: a.clear(), "no tensors"),
    "embedding": (lambda a, b: a.update({f"{KEY}.lora_embedding_A": EXTRA}), "lora_embedding_A"),
    "saved module": (lambda a, b: a.update({"base_model.model.lm_head.weight": EXTRA}), "lm_head"),
    "base bias": (lambda a, b: a.update({f"{KEY}.base_layer.bias": EXTRA}), "base_layer.bias"),
    "lora bias": (lambda a, b: a.update({f"{KEY}.lora_B.bias": EXTRA}), "lora_B.bias"),
    "adapter name": (lambda a, b: a.update({f"{KEY}.lora_A.default.weight": EXTRA}), "default"),
    "magnitude": (lambda a, b: a.update({f"{KEY}.lora_magnitude_vector": EXTRA}), "magnitude_v"),
    "half a pair": (lambda a, b: a.pop(f"{KEY}.lora_B.weight"), "no lora_B.weight; save"),
    "other adapter's delora": (lambda a, b: a.update({f"{KEY}.delora_A": EXTRA}), "delora_A"),
    "nan": (lambda a, b: a.update({f"{KEY}.lora_B.weight": BAD}), "lora_B.weight holds NaN or inf"),
    "other base": (
        lambda a, b: b.update({f"{MODULE}.weight": torch.ones(3, 5)}),
        r"q_proj.lora_A.weight is \[2, 4\], but base weight \[3, 5\] and config need \[2, 5\]",
    ),
    "other prefix": (
        lambda a, b: b.update({f"model.language_{MODULE}.weight": b.pop(f"{MODULE}.weight")}),
        rf"targets \['{MODULE}.weight'\].*model.language_model.*; pass the base",
    ),
    "convolution": (
        lambda a, b: b.update({f"{MODULE}.weight": torch.ones(3, 4, 1)}),
        r"float32 \[3, 4, 1\]; pass the unquantised",
    ),
    "quantised": (
        lambda a, b: b.update({f"{MODULE}.weight": torch.ones(3, 4, dtype=torch.int8)}),
        r"int8 \[3, 4\]; pass the unquantised",
    ),
}


@pytest.mark.parametrize("spoil, message", TENSOR_REFUSALS.values(), ids=TENSOR_REFUSALS)
def test_tensors_are_refused(spoil, message):
    """Every tensor has a rule and fits the base, or the merge raises and names it."""
    adapter, config, base = handmade()
    spoil(adapter, base)
    with pytest.raises(ValueError, match=f"merge_adapter: .*{message}"):
        merge_adapter(adapter, config, base)


def one(kind, config=(), **tensors):
    """A checkpoint of one [3, 12] module with the given tensor shapes."""
    adapter = {f"{KEY}.{name.replace('__', '.')}": torch.ones(s) for name, s in tensors.items()}
    return adapter, {"peft_type": kind} | dict(config), {f"{MODULE}.weight": torch.ones(3, 12)}


EXACT = dict(use_cayley_neumann=False)
SERIES = dict(use_cayley_neumann=True, num_cayley_neumann_terms=5)
FAMILY_REFUSALS = {
    "oft setting": (one("OFT", oft_R__weight=(3, 6)), "no 'use_cayley_neumann'"),
    "oft blocks": (one("OFT", EXACT, oft_R__weight=(4, 6)), r"is \[4, 6\].* need \[3, 6\]"),
    "oft size": (one("OFT", EXACT, oft_R__weight=(3, 7)), r"is \[3, 7\].* need \[3, 6\]"),
    "oft fit": (one("OFT", EXACT, oft_R__weight=(2, 10)), r"is \[2, 10\].* need \[0, 10\]"),
    "oft shared": (
        one("OFT", EXACT | dict(block_share=True), oft_R__weight=(3, 6)),
        r"is \[3, 6\].* need \[1, 6\]",
    ),
    "oft terms": (
        one("OFT", dict(use_cayley_neumann=True), oft_R__weight=(3, 6)),
        "no 'num_cayley_neumann_terms'",
    ),
    "oft eps": (one("OFT", EXACT | dict(coft=True), oft_R__weight=(3, 6)), "no 'eps'"),
    "oft series": (one("OFT", SERIES, oft_R__weight=(3, 6)), "of PEFT 0.0, whose series changed"),
    "boft blocks": (
        one("BOFT", boft_R=(1, 2, 4, 4), boft_s=(3, 1)),
        r"is \[1, 2, 4, 4\].* need \[1, 3, 4, 4\]",
    ),
    "boft factors": (
        one("BOFT", boft_R=(2, 3, 4, 4), boft_s=(3, 1)),
        r"is \[2, 3, 4, 4\].* need \[1, 3, 4, 4\]",
    ),
    "boft scale": (one("BOFT", boft_R=(1, 3, 4, 4)), "no boft_s"),
    "ia3": (one("IA3", ia3_l=(4, 1)), r"is \[4, 1\].* need \[3, 1\]"),
    "ia3 columns": (one("IA3", ia3_l=(1, 11)), r"is \[1, 11\].* need \[1, 12\]"),
    "loha rank": (
        one("LOHA", dict(r=2, alpha=2), hada_w1_a=(3, 4), hada_w2_a=(3, 2)),
        r"w1_a is \[3, 4\].* need \[3, 2\]",
    ),
    "loha convolution": (one("LOHA", dict(use_effective_conv2d=True)), "use_effective_conv2d True"),
    "lokr shape": (
        one("LOKR", dict(r=2, alpha=2), lokr_w1=(3, 2), lokr_w2=(1, 4)),
        r"make \[3, 8\], and the base weight is \[3, 12\]",
    ),
    "lokr rank": (
        one("LOKR", dict(r=2, alpha=2), lokr_w1=(3, 2), lokr_w2_a=(1, 3), lokr_w2_b=(3, 6)),
        r"w2_a is \[1, 3\].* need \[1, 2\]",
    ),
    "lokr twice": (
        one("LOKR", dict(r=2, alpha=2), lokr_w1=(3, 2), lokr_w1_a=(3, 2), lokr_w2=(1, 6)),
        "has lokr_w1 whole and in factors",
    ),
    "lokr convolution": (
        one("LOKR", dict(r=2, alpha=2), lokr_w1=(3, 2), lokr_w2=(1, 6, 3)),
        "is .1, 6, 3., not a matrix",
    ),
    "lokr tucker": (
        one("LOKR", dict(r=2, alpha=2), lokr_t2=(2, 2)),
        "no lokr rule reads .*lokr_t2",
    ),
    "delora": (
        one("DELORA", dict(r=2), delora_A=(2, 12), delora_B=(3, 2), delora_lambda=(1,)),
        "no delora_w_norm",
    ),
}


@pytest.mark.parametrize("checkpoint, message", FAMILY_REFUSALS.values(), ids=FAMILY_REFUSALS)
def test_family_tensors_are_refused(checkpoint, message):
    """Each family's own sizes and settings are checked against the base, never guessed."""
    with pytest.raises(ValueError, match=f"merge_adapter: .*{message}"):
        merge_adapter(*checkpoint)


def test_direction_of_zero_is_refused():
    """DoRA of a row V = 0 has no direction: the NaN is refused by name, not returned."""
    adapter, config, base = handmade(use_dora=True)
    adapter[f"{KEY}.lora_B.weight"].zero_()
    base[f"{MODULE}.weight"][1] = 0
    adapter[f"{KEY}.lora_magnitude_vector"] = torch.ones(3)
    with pytest.raises(ValueError, match=f"{MODULE}.weight changes by NaN or inf"):
        merge_adapter(adapter, config, base)
