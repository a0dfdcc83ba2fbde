"""Adapters written by PEFT 0.6 to 0.21 (make.py), read as the version that wrote them merged them.

The oracle is that version's own float64 merge, kept beside each adapter.
"""

import shutil
from pathlib import Path

import peft.tuners.boft.layer as peft_boft
import pytest
import transformers
from safetensors.torch import load_file

from wscore import merge_adapter
from wsrun.adapters.extract import adapter_delta, read_adapter

ADAPTERS = Path(__file__).parent / "adapters.tar.xz"
VERSIONS = """0.6.2 0.7.1 0.8.2 0.9.0 0.10.0 0.11.1 0.12.0 0.13.2 0.14.0 0.15.2 0.16.0 0.17.1
    0.18.1 0.19.1 0.20.0 0.21.2""".split()
SINCE = {
    "lora": "0.6", "lora_regex": "0.6", "lora_patterns": "0.6", "lora_alternatives": "0.6",
    "lora_layers": "0.6", "lora_layer": "0.6", "lora_exclude": "0.14", "lora_head": "0.6",
    "lora_saved": "0.6", "lora_conv1d": "0.6", "rslora": "0.8", "dora": "0.9", "pissa": "0.11",
    "pissa_patterns": "0.11", "olora": "0.12", "ia3": "0.6", "ia3_conv1d": "0.6", "oft": "0.7",
    "oft_shared": "0.7", "oft_constrained": "0.7", "oft_neumann": "0.16", "boft": "0.11",
    "loha": "0.6", "lokr": "0.6", "lokr_both": "0.6", "delora": "0.18",
}  # fmt: skip
"""case of write.py -> the first minor version that knows it"""
REFUSED = {
    "olora": ("0.12", "0.21", "olora"),
    "oft": ("0.7", "0.15", "oft_r"),
    "oft_shared": ("0.7", "0.15", "oft_r"),
    "oft_constrained": ("0.7", "0.15", "oft_r"),
    "oft_neumann": ("0.16", "0.17", "use_cayley_neumann"),  # its series changed in 0.18
    "lokr": ("0.6", "0.13", r"0\.14"),  # no alpha / r before 0.14
    "lokr_both": ("0.6", "0.13", r"0\.14"),
    "lora_alternatives": ("0.6", "0.14", "alpha_pattern"),  # a pattern a|b meant a alone
}
"""case -> (first, last) minor version whose adapters are refused, and what the sentence names"""


def minor(version):
    return tuple(int(part) for part in version.split(".")[:2])


def named(version, case):
    """What the refusal must name, None where the adapter is to be read."""
    first, last, name = REFUSED.get(case, ("9.9", "9.9", None))
    return name if minor(first) <= minor(version) <= minor(last) else None


ALL = [(v, case) for v in VERSIONS for case in SINCE if minor(v) >= minor(SINCE[case])]
READ = [pair for pair in ALL if not named(*pair)]
OLDEST = {case: version for version, case in reversed(READ)}
NEWEST = {case: version for version, case in READ}
VERIFIED = sorted({(v, case) for of in (OLDEST, NEWEST) for case, v in of.items()})


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """The folders version/case of the archive."""
    folder = tmp_path_factory.mktemp("adapters")
    shutil.unpack_archive(ADAPTERS, folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def base(adapters):
    return load_file(adapters / "base.safetensors")


@pytest.fixture(scope="module")
def model(base):
    """A Qwen2 with these weights, lm_head untied."""
    config = transformers.Qwen2Config(
        vocab_size=12, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config).eval()
    weights = {name: w for name, w in base.items() if not name.startswith("transformer.")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all("norm" in name for name in missing)
    return model


@pytest.fixture(autouse=True)
def no_extension(monkeypatch):
    """PEFT would try to compile a CUDA extension for BOFT; here it never does."""
    monkeypatch.setattr(peft_boft, "get_fbd_cuda", lambda: None)


def test_what_was_written(adapters):
    """The folders are those of the table: every version wrote each case that it knows."""
    assert {(path.parent.name, path.name) for path in adapters.glob("*/*/")} == set(ALL)


@pytest.mark.parametrize("version, case", ALL)
def test_read_as_it_was_merged(adapters, base, version, case):
    """merge_adapter(adapter, config, W) = that PEFT's merge - W, or it is refused by name."""
    folder, name = adapters / version / case, named(version, case)
    if name:
        with pytest.raises(ValueError, match=name):
            merge_adapter(*read_adapter(folder), base)
    else:
        check(merge_adapter(*read_adapter(folder), base), folder)


@pytest.mark.parametrize("version, case", [pair for pair in VERIFIED if "conv1d" not in pair[1]])
def test_verified_on_a_model(adapters, model, version, case):
    """adapter_delta(model, folder), which runs today's PEFT, has nothing against the oldest and the
    newest of each case, and gives the same"""
    folder = adapters / version / case
    check(adapter_delta(model, folder), folder)


def check(found, folder):
    """The same tensors, each within the tolerance."""
    expected = load_file(folder / "merged.safetensors")
    # PiSSA's oracle has the fp32 errors of the residual base that PEFT makes
    tolerance = 1e-5 if folder.name.startswith("pissa") else 1e-6
    assert found.keys() == expected.keys()
    errors = {name: error(found[name], expected[name]) for name in found}
    assert max(errors.values()) <= tolerance, errors


def error(found, expected):
    """|found - expected| / |expected|"""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
