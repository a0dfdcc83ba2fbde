"""Scored results on disk, addressed by everything that decides their numbers.

A run that is killed anywhere and started again finds what it had finished, and several processes
that share the folder find what any of them has finished before they begin on it. What two of them
begin on at once is scored by both, to the same bits.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from wscore import tensors_sha256
from wscore.files import write_whole
from wsrun.models.code import code_sha256
from wsrun.models.machine import machine_state

CODE = (  # what the numbers depend on
    "models/chat.py",
    "models/template.py",
    "score/activation_cache.py",
    "score/batching.py",
    "score/cached.py",
    "score/layer_steps.py",
    "score/plain.py",
    "score/plan.py",
    "score/readings.py",
    "data/replies.py",
    "score/scorer.py",
    "score/trie_attention.py",
    "steer/edits.py",
    "steer/interventions.py",
    "steer/weights.py",
)
Scored = tuple[Tensor, Tensor]  # margin, mass: [n] float64
NAMES = "margin", "mass"
CONTENT = "sha256"  # of the tensors, in a file's header


def run_key(
    model: PreTrainedModel,
    state: Mapping[str, str],
    sequences: Sequence[Sequence[int]],
    choices: object,
    style: str,
    settings: Mapping[str, object],
) -> dict[str, str]:
    """What decides the numbers of a run beside the change itself, as text by name.

    state: `model_state`. sequences: items, tokenizer, template and prefill, as token ids. settings:
    of the engine.
    """
    tokens = hashlib.sha256(json.dumps([list(s) for s in sequences]).encode())
    return {
        **state,
        **machine_state(model),
        "tokens": tokens.hexdigest(),
        "choices": json.dumps(choices),
        "style": style,
        "settings": json.dumps(dict(settings), sort_keys=True),
        "code": code_sha256(CODE),
    }


class Results:
    """One folder of finished results: get(delta hash, alpha) and put, under the key of a run.

    A file carries its key and the hash of its numbers: one that is damaged counts for nothing.
    """

    def __init__(self, folder: str | Path, run: Mapping[str, str], n: int) -> None:
        self.folder, self.run, self.n = Path(folder), dict(run), n

    def get(self, change: str, alpha: float) -> Scored | None:
        """The margins and masses of n items under a change at a dose.

        None where nobody has finished it, or where what stands there is not what was written.
        """
        path, key = self._at(change, alpha)
        with suppress(OSError, SafetensorError):
            with safe_open(path, framework="pt") as file:
                header, names = file.metadata() or {}, set(file.keys())
                if header.get("key") == key and names == set(NAMES):
                    margin, mass = (file.get_tensor(name) for name in NAMES)
                    content = self._content(margin, mass)
                    if content and header.get(CONTENT) == content:
                        return margin, mass
        return None

    def put(self, change: str, alpha: float, scored: Scored) -> None:
        """Keep a finished result, whole or not at all; what `get` would not give is not kept."""
        path, key = self._at(change, alpha)
        if content := self._content(*scored):
            header, tensors = {"key": key, CONTENT: content}, dict(zip(NAMES, scored, strict=True))
            write_whole(path, lambda tmp: save_file(tensors, tmp, metadata=header))

    def _content(self, *scored: Tensor) -> str | None:
        """The hash of margins and masses, None where they are not n finite float64 numbers each.

        A mass may be nan: replies have none.
        """
        fits = all(x.dtype == torch.float64 and x.shape == (self.n,) for x in scored)
        finite = fits and bool(scored[0].isfinite().all() and not scored[1].isinf().any())
        return tensors_sha256(dict(zip(NAMES, scored, strict=True))) if finite else None

    def _at(self, change: str, alpha: float) -> tuple[Path, str]:
        key = json.dumps(self.run | {"change": change, "alpha": repr(alpha)}, sort_keys=True)
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors", key
