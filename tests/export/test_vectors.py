"""Control vectors: what is written is read back, and means what it means in repeng."""

import json

import pytest
import torch

from tests.conftest import ORGANISM
from wscore import tensors_sha256
from wsrun import AddVectors, DirectionalAblation, applied, load_vectors, save_vectors
from wsrun.export.record import MANIFEST
from wsrun.models import tiny
from wsrun.models.load import load_model

gguf = pytest.importorskip("gguf")
TEXT = torch.arange(2 * 9).reshape(2, 9) * 7 % 500


def logits(model, **more):
    with torch.no_grad():
        return model(input_ids=TEXT, use_cache=False, **more)


def vectors(model, layers):
    random = torch.Generator().manual_seed(0)
    d = model.config.hidden_size
    return {n: torch.randn(d, generator=random) for n in layers}


@pytest.mark.parametrize("layers", [(1,), (0, 2, 3), (3, -2)])
def test_read_back_they_steer_the_same(tmp_path, layers):
    """load(save(v)) = v, bit for bit; layers counted from the end are told from the start"""
    model = tiny.tiny_qwen3()
    given = vectors(model, layers)
    out = save_vectors(model, AddVectors(given), tmp_path / "a")
    for path in (out, out / "vector.gguf"):
        found = load_vectors(path, model)
        assert type(found) is AddVectors and set(found.vectors) == {n % 4 for n in layers}
        assert all(torch.equal(found.vectors[n % 4], v) for n, v in given.items())
    with applied(model, AddVectors(given), 1.5):
        wanted = logits(model).logits
    with applied(model, load_vectors(out), 1.5):
        assert torch.equal(logits(model).logits, wanted)


def test_alpha_is_folded_in(tmp_path):
    """save at alpha, apply at 1: the logits of applying at alpha"""
    model = tiny.tiny_gemma3()
    given = vectors(model, (1, 3))
    save_vectors(model, given, tmp_path / "a", alpha=-1.5)
    with applied(model, AddVectors(given), -1.5):
        wanted = logits(model).logits
    with applied(model, load_vectors(tmp_path / "a", model), 1.0):
        assert torch.equal(logits(model).logits, wanted)
    manifest = json.loads((tmp_path / "a" / MANIFEST).read_text())
    assert manifest["alpha"] == -1.5 and manifest["layers"] == [1, 3] and manifest["width"] == 64
    assert manifest["delta"]["sha256"] == tensors_sha256({str(n): v for n, v in given.items()})


def test_the_file_is_as_repeng_writes_it(tmp_path):
    """general.architecture, model_hint, layer_count, direction.N in float32, and nothing else"""
    model, _ = load_model(ORGANISM)
    save_vectors(model, vectors(model, (2, 4)), tmp_path / "a")
    reader = gguf.GGUFReader(tmp_path / "a/vector.gguf")
    facts = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert facts == {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "qwen3",
        "controlvector.layer_count": 2,
    }
    assert [(t.name, list(t.shape), t.tensor_type.name) for t in reader.tensors] == [
        ("direction.2", [160], "F32"),
        ("direction.4", [160], "F32"),
    ]
    assert "direction.0" not in (tmp_path / "a/README.md").read_text()


def test_direction_n_is_hidden_state_n_plus_1(tmp_path):
    """what enters layer N + 1 is hidden_states[N + 1] of transformers, moved by direction.N"""
    model, entered = tiny.tiny_qwen3(), []
    given = vectors(model, (1,))
    save_vectors(model, given, tmp_path / "a")
    before = logits(model, output_hidden_states=True).hidden_states
    look = lambda module, args: entered.append(args[0])  # noqa: E731
    handles = [model.model.layers[n].register_forward_pre_hook(look) for n in (1, 2)]
    with applied(model, load_vectors(tmp_path / "a"), 1.0):
        logits(model)
    for handle in handles:
        handle.remove()
    assert torch.equal(entered[0], before[1])
    torch.testing.assert_close(entered[1], before[2] + given[1])


def test_a_file_as_repeng_makes_it_is_read(tmp_path):
    """written by the lines of repeng's export_gguf, half precision too"""
    model = tiny.tiny_qwen3()
    given = vectors(model, (1, 2, 3))
    writer = gguf.GGUFWriter(tmp_path / "r.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", 3)
    for layer in (3, 2, 1):
        writer.add_tensor(f"direction.{layer}", given[layer].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = load_vectors(tmp_path / "r.gguf", model).vectors
    assert all(torch.equal(found[n], given[n]) for n in given)


def written(path, architecture="controlvector", **tensors):
    writer = gguf.GGUFWriter(path, architecture)
    for name, w in tensors.items():
        writer.add_tensor(name.replace("_", "."), w.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


BAD = [
    (dict(architecture="llama", direction_1=torch.ones(64)), ("'llama'", "controlvector")),
    (dict(direction_1=torch.ones(65)), ("[65]", "width 64")),
    (dict(direction_1=torch.ones(64), direction_2=torch.ones(32)), ("[32]", "[64]")),
    (dict(direction_1=torch.ones(2, 64)), ("[2, 64]", "width 64")),
    (dict(direction_4=torch.ones(64)), ("0 to 3", "[4]")),
    (dict(direction_x=torch.ones(64)), ("direction.x",)),
    (dict(other=torch.ones(64)), ("other", "direction.N")),
    (dict(direction_1=torch.full((64,), float("inf"))), ("layer 1", "inf")),
    (dict(direction_1=torch.ones(64, dtype=torch.int32)), ("direction.1", "I32")),
]


@pytest.mark.parametrize(("content", "parts"), BAD)
def test_a_file_of_another_model_is_refused(tmp_path, content, parts):
    """one printable sentence that names the file and what it has"""
    written(tmp_path / "v.gguf", **content)
    with pytest.raises(ValueError) as caught:
        load_vectors(tmp_path / "v.gguf", tiny.tiny_qwen3())
    said = str(caught.value)
    assert all(part in said for part in parts) and said.isprintable(), said


def test_what_is_no_gguf_is_refused(tmp_path):
    """no file, text, and a file cut anywhere"""
    model = tiny.tiny_qwen3()
    save_vectors(model, vectors(model, (1, 2)), tmp_path / "a")
    whole = (tmp_path / "a/vector.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for raw in (b"", b"GGUF", b"\xff" * 99, *(whole[:n] for n in range(1, len(whole) - 64, 37))):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match="load_vectors.*(cut.gguf|direction)") as caught:
            load_vectors(path, model)
        assert str(caught.value).isprintable()
    with pytest.raises(ValueError, match="no file.*nowhere.gguf"):
        load_vectors(tmp_path / "nowhere.gguf")


def test_what_cannot_be_exported_is_refused(tmp_path):
    """another width, another layer, a projection, none, alpha 0; nothing is written"""
    model = tiny.tiny_qwen3()
    good = vectors(model, (1,))
    cases = [
        (({1: torch.ones(32)}, {}), ("[32]", "width 64")),
        (({9: torch.ones(64)}, {}), ("0 to 3", "[9]")),
        ((DirectionalAblation(good), {}), ("projection", "AddVectors")),
        (({}, {}), ("no vector",)),
        ((good, {"alpha": 0.0}), ("alpha is 0",)),
        (({1: torch.full((64,), float("nan"))}, {}), ("layer 1", "NaN")),
    ]
    for (given, more), parts in cases:
        with pytest.raises(ValueError) as caught:
            save_vectors(model, given, tmp_path / "a", **more)
        assert all(part in str(caught.value) for part in parts), caught.value
    assert not (tmp_path / "a").exists()
    save_vectors(model, vectors(model, (0,)), tmp_path / "a")
    assert "llama.cpp refuses" in (tmp_path / "a/README.md").read_text()


def test_persona_vectors_begin_with_the_embedding(tmp_path):
    """row h of [layers + 1, d] is hidden_states[h], the output of decoder layer h - 1"""
    model = tiny.tiny_qwen3()
    states = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    torch.save(states.half(), tmp_path / "v.pt")
    found = load_vectors(tmp_path / "v.pt", model).vectors
    assert set(found) == {0, 1, 2, 3}
    assert all(torch.equal(v, states[n + 1].half().float()) for n, v in found.items())


def test_layers_of_steering_vectors_count_from_0(tmp_path):
    """{layer: v}, and what AddVectors.save wrote, are read as they are"""
    model = tiny.tiny_qwen3()
    given = vectors(model, (0, 3))
    torch.save(given, tmp_path / "v.pth")
    AddVectors(given).save(tmp_path / "v.safetensors", {})
    for name in ("v.pth", "v.safetensors"):
        found = load_vectors(tmp_path / name, model).vectors
        assert set(found) == {0, 3} and all(torch.equal(found[n], given[n]) for n in given)


class Pickled:
    """an object of some package"""


@pytest.mark.parametrize(
    "content, words",
    [
        (Pickled(), ("no plain tensors", "layer_activations")),
        (torch.ones(64), ("[64]", "[layers + 1, d]")),
        ({"a": torch.ones(64)}, ("dict of a tensor",)),
        ({}, ("dict of a tensor",)),
        ([torch.ones(64)], ("dict of a tensor",)),
        (torch.ones(7, 64), ("0 to 3",)),
        ({1: torch.ones(2, 64)}, ("[2, 64]", "width 64")),
    ],
)
def test_other_torch_files_are_refused(tmp_path, content, words):
    """objects are not unpickled; one sentence names the file"""
    torch.save(content, tmp_path / "v.pt")
    with pytest.raises(ValueError) as told:
        load_vectors(tmp_path / "v.pt", tiny.tiny_qwen3())
    said = str(told.value)
    assert "v.pt" in said and "\n" not in said and all(w in said for w in words)


@pytest.mark.parametrize("name, word", [("v.pt", "no file"), ("v.npy", "no known kind")])
def test_a_file_of_no_known_kind(tmp_path, name, word):
    if word != "no file":
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"{name}.*{word}.*GGUF control vector|{word}.*{name}"):
        load_vectors(tmp_path / name)
