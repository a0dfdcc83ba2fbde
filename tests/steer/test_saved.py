"""Interventions in files: bit by bit what was saved, or one sentence that names the file."""

import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from wscore import Factored
from wsrun.steer import (
    AddVectors,
    DirectionalAblation,
    SystemPrompt,
    WeightDelta,
    load_intervention,
)

V = torch.arange(1.0, 5.0)
DW = {"a.weight": torch.ones(3, 4)}
INTERVENTIONS = {
    "weights": WeightDelta(DW),
    "activation": AddVectors({0: V, 3: -V}),
    "prompt": SystemPrompt("Be frank."),
    "combined": WeightDelta(Factored({"a": (torch.ones(3, 1), torch.ones(1, 4))}))
    & DirectionalAblation({1: V})
    & SystemPrompt("Be frank."),
}


@pytest.mark.parametrize("kind", INTERVENTIONS)
def test_a_flipped_bit_is_refused(kind, tmp_path):
    """what is loaded of a file with one flipped bit is refused, at the latest when it is read"""
    path = INTERVENTIONS[kind].save(tmp_path / "x.safetensors", {"seed": "0"})
    whole, rng = path.read_bytes(), random.Random(0)
    loaded, header = load_intervention(path)
    assert loaded.fingerprint() == INTERVENTIONS[kind].fingerprint() and header == {"seed": "0"}
    end = len(whole) if kind == "prompt" else len(whole) - 3 * 4 * 4
    # the tests' type checker reads the first tensor of every mapping: that one is left whole
    for at in range(0, end, 11):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="x.safetensors"):
            load_intervention(path)


REWRITTEN = {
    "a vector that is a matrix": ("activation", {"layer 0": torch.ones(2, 2)}, {}, "not vectors"),
    "a layer without number": ("activation", {"layer x": V}, {}, "invalid literal"),
    "one layer twice": ("activation", {"layer 1": V, "layer 01": -V}, {}, "not vectors named"),
    "vectors of a prompt": ("prompt", {"layer 0": V}, {}, "says prompt, and it has 1 tensors"),
    "weights without any": ("weights", {}, {}, "says weights, and it has 0 tensors"),
    "a prompt without text": ("prompt", {}, {"system": None}, "its system is None"),
    "an unknown kind": ("prompt", {}, {"intervention": "x"}, "its header says intervention 'x'"),
    "parts that are no list": ("combined", {}, {"parts": "{}"}, "not a list of headers"),
    "parts too deep": ("combined", {}, {"parts": "[" * 9999}, "its list of parts is not JSON"),
    "half a factor": ("combined", {"0/a|L": V}, {}, "an L or R without the other"),
    "a part too many": ("combined", {"7/a": V}, {}, "belong to none of its 3 parts"),
}


@pytest.mark.parametrize("case", REWRITTEN)
def test_files_that_hold_something_else(case, tmp_path):
    """a file rewritten without hashes is refused in a sentence that names it and what is wrong"""
    kind, tensors, changes, match = REWRITTEN[case]
    path = tmp_path / "x.safetensors"
    header = INTERVENTIONS[kind].texts() | changes
    save_file(tensors, path, {k: v for k, v in header.items() if v is not None})
    with pytest.raises(ValueError, match=f"x.safetensors' holds no intervention .*{match}"):
        load_intervention(path)


def test_a_file_without_hashes_is_read(tmp_path):
    """what earlier versions wrote"""
    path = INTERVENTIONS["activation"].save(tmp_path / "new.safetensors")
    save_file(load_file(path), tmp_path / "old.safetensors", {"intervention": "activation"})
    loaded, _ = load_intervention(tmp_path / "old.safetensors")
    assert loaded.fingerprint() == INTERVENTIONS["activation"].fingerprint()
