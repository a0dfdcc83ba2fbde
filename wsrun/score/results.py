"""Scored results on disk, addressed by everything that decides their numbers.

A run that is killed anywhere and started again finds what it had finished, and several processes
that share the folder share the work.
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from wscore.files import write_whole
from wsrun.models.code import code_sha256

CODE = (  # what the numbers depend on
    "models/chat.py",
    "score/activation_cache.py",
    "score/batching.py",
    "score/cached.py",
    "score/layer_steps.py",
    "score/plain.py",
    "score/plan.py",
    "data/replies.py",
    "score/scorer.py",
    "score/trie_attention.py",
    "steer/edits.py",
    "steer/interventions.py",
    "steer/weights.py",
)
Scored = tuple[Tensor, Tensor]  # margin, mass: [n] float64


def run_key(
    model: PreTrainedModel,
    base: str,
    sequences: Sequence[Sequence[int]],
    choices: object,
    style: str,
    settings: Mapping[str, object],
) -> dict[str, str]:
    """What decides the numbers of a run beside the change itself, as text by name.

    base: the hash of the model's weights. sequences: items, tokenizer, template and prefill, as
    token ids. settings: of the engine.
    """
    weight = next(model.parameters())
    tokens = hashlib.sha256(json.dumps([list(s) for s in sequences]).encode())
    return {
        "base": base,
        "config": hashlib.sha256(model.config.to_json_string().encode()).hexdigest(),
        "tokens": tokens.hexdigest(),
        "choices": json.dumps(choices),
        "style": style,
        "dtype": str(weight.dtype),
        "device": weight.device.type + _device_name(weight.device),
        "attention": str(model.config._attn_implementation),
        "threads": str(torch.get_num_threads()),
        "settings": json.dumps(dict(settings), sort_keys=True),
        "code": code_sha256(CODE),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _device_name(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f" {name}"


class Results:
    """One folder of finished results: get(delta hash, alpha) and put, under the key of a run."""

    def __init__(self, folder: str | Path, run: Mapping[str, str]) -> None:
        self.folder, self.run = Path(folder), dict(run)

    def get(self, change: str, alpha: float) -> Scored | None:
        """The margins and masses of a change at a dose, None where nobody has finished it."""
        path, key = self._at(change, alpha)
        with suppress(OSError, SafetensorError):
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") == key:
                    return file.get_tensor("margin"), file.get_tensor("mass")
        return None

    def put(self, change: str, alpha: float, scored: Scored) -> None:
        """Keep a finished result; whole or not at all."""
        path, key = self._at(change, alpha)
        tensors: dict[str, Tensor] = dict(zip(("margin", "mass"), scored, strict=True))
        write_whole(path, lambda tmp: save_file(tensors, tmp, metadata={"key": key}))

    def _at(self, change: str, alpha: float) -> tuple[Path, str]:
        key = json.dumps(self.run | {"change": change, "alpha": repr(alpha)}, sort_keys=True)
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors", key
