"""Adapters from elsewhere: other layouts, whole modules, unknown bases, broken and unsafe files."""

import copy
import json
import math
import pickle
import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.wscore.test_merge import oracle, randomise, relative
from wscore.families import merge_adapter
from wsrun.adapters.base import BaseWarning, base_record, short_name
from wsrun.adapters.extract import PairDelta, adapter_delta, pair_deltas
from wsrun.models.tiny import tiny_qwen3

pytestmark = pytest.mark.filterwarnings("ignore::wsrun.adapters.base.BaseWarning")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def saved(model, config, path, seed=1, name=None):
    """A folder with an adapter of that config, moved from its start."""
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    randomise(adapted, seed)
    adapted.peft_config["default"].base_model_name_or_path = name
    adapted.save_pretrained(path)
    return path


def changed(path, **fields):
    config = json.loads((path / CONFIG).read_text(encoding="utf-8")) | fields
    (path / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return path


def equal(delta, expected, tolerance=1e-6):
    assert delta.keys() == expected.keys()
    assert all(relative(delta[n], expected[n]) <= tolerance for n in expected)


def lora(**options):
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"]} | options)


@pytest.fixture(scope="module")
def untied():
    return tiny_qwen3(vocab_size=64, num_hidden_layers=2, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def tied():
    return tiny_qwen3(vocab_size=64, num_hidden_layers=2)


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero at init, and then no test could see them scaled
            torch.nn.init.normal_(parameter)
    return model


# Whole modules and heads


@pytest.mark.parametrize("names", [["embed_tokens", "lm_head"], ["lm_head"], ["norm"]])
def test_saved_modules_of_an_untied_model(untied, tmp_path, names):
    """tau = saved - base for modules_to_save, proved on the model and from weights alone"""
    path = saved(untied, lora(modules_to_save=names), tmp_path)
    delta = adapter_delta(untied, path)
    equal(delta, oracle(untied, path))
    assert sum(any(name in key for name in names) for key in delta) >= len(names)
    assert all(
        torch.equal(delta[n], w) for n, w in adapter_delta(untied.state_dict(), path).items()
    )


@pytest.mark.parametrize("names", [["embed_tokens", "lm_head"], ["embed_tokens"], ["lm_head"]])
def test_saved_modules_of_a_tied_model_are_refused(tied, tmp_path, names):
    """an adapter on one of two tied modules unties them"""
    path = saved(tied, lora(modules_to_save=names), tmp_path)
    for base in (tied, tied.state_dict()):
        with pytest.raises(ValueError, match="is tied to"):
            adapter_delta(base, path)


def test_saved_modules_must_be_there(untied, tmp_path):
    """a saved module that is absent, or of another vocabulary, is named"""
    path = saved(untied, lora(modules_to_save=["lm_head"]), tmp_path)
    tensors = load_file(path / WEIGHTS)
    key = "base_model.model.lm_head.weight"
    for other in ({}, {key: tensors[key][:9].clone()}):
        save_file({k: t for k, t in tensors.items() if k != key} | other, path / WEIGHTS)
        with pytest.raises(ValueError, match="lm_head"):
            adapter_delta(untied, path)


def test_a_pair_with_saved_modules_is_not_factored(untied, tmp_path):
    """dW of lora holds the change of the head, at full rank"""
    for side, seed in (("pos", 1), ("neg", 2)):
        saved(untied, lora(modules_to_save=["lm_head"]), tmp_path / side, seed)
    pair = pair_deltas(untied, tmp_path)
    expected = [oracle(untied, tmp_path / side)["lm_head.weight"] for side in ("pos", "neg")]
    assert relative(pair.dW["lm_head.weight"], expected[0] - expected[1]) < 1e-6
    assert isinstance(pair.dW, dict)


def test_lora_on_the_head(untied, tied, tmp_path):
    """read where head and embedding are two weights, refused where they are one"""
    path = saved(untied, lora(target_modules=["lm_head", "q_proj"]), tmp_path / "untied")
    copy_of_base = "base_model.model.lm_head.base_layer.weight"
    tensors = load_file(path / WEIGHTS)
    assert copy_of_base in tensors  # PEFT writes the base's head beside the factors
    for base in (untied, untied.state_dict()):
        delta = adapter_delta(base, path)
        equal(delta, oracle(untied, path))
        assert "lm_head.weight" in delta
    other = untied.state_dict() | {"lm_head.weight": untied.lm_head.weight + 1e-3}
    with pytest.raises(ValueError, match="would take the place of the base's 'lm_head.weight'"):
        adapter_delta(other, path)
    del tensors[copy_of_base]
    save_file(tensors, path / WEIGHTS)
    copied = {name: w.clone() for name, w in tied.state_dict().items()}
    for base in (tied, tied.state_dict(), copied):
        with pytest.raises(ValueError, match="'lm_head.weight', which is tied to"):
            adapter_delta(base, path)


# Layouts


@pytest.mark.parametrize("kind", ["lora", "dora", "pissa", "ia3"])
def test_conv1d(gpt2, tmp_path, kind):
    """GPT-2 stores [d_in, d_out], and so does the delta: PEFT's merge - W"""
    inner = "mlp.c_proj" if kind == "ia3" else "c_proj"
    options = dict(target_modules=["c_attn", "c_fc", inner], fan_in_fan_out=True)
    config = {
        "dora": lambda: lora(**options, use_dora=True),
        "pissa": lambda: lora(**options, init_lora_weights="pissa"),
        "ia3": lambda: peft.IA3Config(**options, feedforward_modules=["mlp.c_proj"]),
    }.get(kind, lambda: lora(**options))()
    path = saved(gpt2, config, tmp_path)
    delta = adapter_delta(gpt2, path)
    equal(delta, oracle(gpt2, path), 1e-5)
    assert delta["transformer.h.0.attn.c_attn.weight"].shape == (32, 96)
    from_weights = adapter_delta(gpt2.state_dict(), path)
    assert all(torch.equal(delta[n], w) for n, w in from_weights.items())


def test_square_weights_of_unknown_layout_are_refused(gpt2, tmp_path):
    """a flag that other shapes contradict says nothing about a square weight"""
    path = saved(gpt2, lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True), tmp_path)
    with pytest.raises(ValueError, match="how the square weight of .*c_proj is stored is unknown"):
        adapter_delta(gpt2.state_dict(), changed(path, fan_in_fan_out=False))


# Names and numbers


def test_numbers_as_text_are_read(untied, tmp_path):
    """r "4" and lora_alpha "6" mean 4 and 6, also in the proof"""
    path = saved(untied, lora(), tmp_path)
    expected = adapter_delta(untied, path)
    delta = adapter_delta(untied, changed(path, r="4", lora_alpha="6"))
    assert all(torch.equal(delta[n], w) for n, w in expected.items())


OUTSIDE = [
    dict(target_modules=["v_proj"]),
    dict(layers_to_transform=[1]),
    dict(exclude_modules=["layers.0.self_attn.q_proj"]),
    dict(target_modules=r".*\.1\..*q_proj"),
    dict(layers_to_transform=[0, 1], layers_pattern="h"),
]


@pytest.mark.parametrize("fields", OUTSIDE, ids=str)
def test_tensors_outside_the_targets_are_refused(untied, tmp_path, fields):
    """PEFT drops them without a word; here they are named, with a model and without"""
    path = changed(saved(untied, lora(), tmp_path), **fields)
    for base in (untied, untied.state_dict()):
        with pytest.raises(ValueError, match="has tensors for .*q_proj.* leave out"):
            adapter_delta(base, path)


@pytest.mark.parametrize("fields", [dict(target_modules=["q_proj", "v_proj"]), dict()], ids=str)
def test_targets_without_tensors_are_refused(untied, tmp_path, fields):
    """PEFT draws them anew; here they are named"""
    path = changed(saved(untied, lora(), tmp_path), **fields)
    if not fields:
        tensors = load_file(path / WEIGHTS)
        save_file({k: t for k, t in tensors.items() if "layers.1" not in k}, path / WEIGHTS)
    for base in (untied, untied.state_dict()):
        with pytest.raises(ValueError, match=r"names \['model.layers..*has no tensors"):
            adapter_delta(base, path)


@pytest.mark.parametrize("kind", ["olora", "pissa_niter_4", "corda"])
def test_conversion_is_named(untied, tmp_path, kind):
    """an init that changed the base says how PEFT turns the adapter into a plain LoRA"""
    path = changed(saved(untied, lora(), tmp_path), init_lora_weights=kind)
    with pytest.raises(ValueError, match=f"{kind}.*path_initial_model_for_weight_conversion"):
        adapter_delta(untied, path)


def test_loftq_is_merged_by_peft(untied, tmp_path):
    """its base is the quantised one: merge it there, and read the two full models"""
    path = changed(saved(untied, lora(), tmp_path), init_lora_weights="loftq")
    with pytest.raises(ValueError, match="loftq.*merge it with PEFT and read the two models"):
        adapter_delta(untied, path)


# Bases


def named(model, name):
    model = copy.deepcopy(model)
    model.config._name_or_path = name
    return model


@pytest.mark.parametrize(
    "stated, own",
    [("Qwen/Qwen3-4B", "/models/Qwen3-4B/"), ("data/tiny", "/x/y/data/tiny"),
     ("Qwen/Qwen3-4B", "/c/hub/models--Qwen--Qwen3-4B/snapshots/0a1b"), ("a/b", "a--b")],
)  # fmt: skip
def test_names_of_one_model_agree(untied, tmp_path, stated, own):
    """a folder, a hub's name and the hub's cache may be one model"""
    path = saved(untied, lora(), tmp_path, name=stated)
    assert short_name(stated) == short_name(own)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BaseWarning)
        adapter_delta(named(untied, own), path)
        adapter_delta(untied.state_dict(), path, name=own)


@pytest.mark.parametrize("stated", ["Qwen/Qwen3-4B-Base", None, ""])
def test_an_unknown_base_is_told_and_recorded(untied, tmp_path, stated):
    """no record of the weights, and another name or none: a warning, and a note in the pair"""
    for side, seed in (("pos", 1), ("neg", 2)):
        saved(untied, lora(), tmp_path / side, seed, name=stated)
    model = named(untied, "Qwen/Qwen3-4B")
    with pytest.warns(BaseWarning, match="Qwen/Qwen3-4B"):
        pair = pair_deltas(model, tmp_path)
    assert isinstance(pair, PairDelta) and len(pair.notes) == 1 and pair.notes[0].isprintable()
    assert (repr(stated) if stated else "names no base") in pair.notes[0]
    with pytest.warns(BaseWarning):
        adapter_delta(untied.state_dict(), tmp_path / "pos")


def test_a_record_decides_with_weights_alone_too(untied, tmp_path):
    """base.json names the weights by their bits: the same ones pass, others are refused"""
    path = saved(untied, lora(), tmp_path, name="elsewhere")
    record = base_record(untied, r".*q_proj")
    (path / "base.json").write_text(json.dumps(record), encoding="utf-8")
    base = {name: w.clone() for name, w in untied.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", BaseWarning)
        adapter_delta(base, path)
    base["model.layers.0.self_attn.q_proj.weight"][0, 0] += 1e-3
    with pytest.raises(ValueError, match="trained on another base"):
        adapter_delta(base, path)


def test_initial_factors_of_another_base_are_refused(untied):
    """PiSSA's stored start is singular pairs of the base: W a = S b"""
    name = "model.layers.0.self_attn.q_proj"
    W = untied.state_dict()[f"{name}.weight"]
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    A0, B0 = S[:4, None].sqrt() * Vt[:4], U[:, :4] * S[:4].sqrt()
    keys = [f"base_model.model.{name}.lora_{x}.weight" for x in ("A", "B", "A_init", "B_init")]
    adapter = dict(zip(keys, (A0 + 0.01, B0 - 0.01, A0, B0), strict=True))
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "init_lora_weights": "pissa"}
    merge_adapter(adapter, config, {f"{name}.weight": W})
    noise = 0.3 * W.std() * torch.randn(W.shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="initial factors of .* are not those of the base"):
        merge_adapter(adapter, config, {f"{name}.weight": W + noise})


# Files


class Bomb:
    def __reduce__(self):
        return (print, ("a pickle ran",))


@pytest.mark.parametrize("beside", [False, True])
def test_a_pickle_is_never_read(untied, tmp_path, capfd, beside):
    """adapter_model.bin is refused, or left alone beside safetensors; nothing in it runs"""
    path = saved(untied, lora(), tmp_path)
    (path / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    if beside:
        adapter_delta(untied, path)
    else:
        (path / WEIGHTS).unlink()
        with pytest.raises(ValueError, match="adapter_model.bin.*pickle may run"):
            adapter_delta(untied, path)
    assert "a pickle ran" not in capfd.readouterr().out


def test_no_library_of_the_config_is_imported(untied, tmp_path, capfd):
    """auto_mapping and megatron_core name modules that are not imported"""
    library = dict(base_model_class="X", parent_library="this")  # it prints on import
    path = changed(saved(untied, lora(), tmp_path), auto_mapping=library, megatron_core="this")
    adapter_delta(untied, path)
    with pytest.raises(ValueError, match="megatron_config"):
        adapter_delta(untied, changed(path, megatron_config={"a": 1}))
    assert "Zen" not in capfd.readouterr().out


def test_broken_files_are_refused_in_a_sentence(untied, tmp_path):
    """deep JSON, endless patterns, a size of terabytes, and what makes PEFT itself raise"""
    path = saved(untied, lora(), tmp_path)
    text = (path / CONFIG).read_text(encoding="utf-8")
    cases = [
        (dict(r=10**9), "need .1000000000, "),
        (dict(rank_pattern={"(x+x+)+y": 3}), "rank_pattern .*forever"),
        (dict(target_modules="(a+)+$"), "target_modules .*forever"),
        (dict(target_modules="("), "no regular expression"),
        (dict(task_type="CHAT"), "task_type"),
        (dict(r=math.nan), "r nan"),
    ]
    for fields, match in cases:
        (path / CONFIG).write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=match):
            adapter_delta(untied, changed(path, **fields))
    (path / CONFIG).write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(ValueError, match="adapter_config.json.* is not JSON"):
        adapter_delta(untied, path)
    (path / CONFIG).write_text(text, encoding="utf-8")
    record = dict(weights="(a+)+$", dtype="torch.float32", sha256="0" * 64)
    (path / "base.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match="base.json.* is broken .*forever"):
        adapter_delta(untied, path)


def test_errors_of_peft_are_one_sentence(untied, tmp_path, monkeypatch):
    """whatever PEFT raises in the proof is told with the folder's name, and the model is whole"""
    path = saved(untied, lora(), tmp_path)

    def fail(*args, **more):
        raise TypeError("unsupported\noperand " + "x" * 5000)

    monkeypatch.setattr(peft.PeftModel, "from_pretrained", fail)
    with pytest.raises(ValueError, match="PEFT cannot load or run .*unsupported operand") as told:
        adapter_delta(untied, path)
    assert str(told.value).isprintable() and len(str(told.value)) < 500
