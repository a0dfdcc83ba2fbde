"""llama.cpp asked through llama-cpp-python: log p of given tokens, greedy answers, a live scale.

    python llama_worker.py request.json reply.json

Run by the Python that has llama_cpp; beside it only numpy and the standard library are imported.
request: gguf, lora, cache (16 or 32 bits), scales, end, new_tokens, questions {prompt, replies
{ids, positions, targets}}. reply: [{log_p, answers}], one a scale, of one loaded model and adapter
whose scale is set anew: nothing is loaded twice.
"""

import json
import sys
from ctypes import c_float
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np


def main(request: dict[str, Any]) -> list[dict[str, Any]]:
    """What the model gives at each scale."""
    cpp: Any = import_module("llama_cpp")
    keep_layout(import_module("llama_cpp.llama_cpp"))
    longest = max(len(reply["ids"]) for q in request["questions"] for reply in q["replies"])
    cache = None if request["cache"] == 16 else cpp.GGML_TYPE_F32
    model = cpp.Llama(
        request["gguf"], n_ctx=longest + request["new_tokens"] + 1, n_threads=1, n_threads_batch=1,
        logits_all=True, verbose=False, type_k=cache, type_v=cache,
        lora_path=request["lora"],
    )  # fmt: skip
    return [under(cpp, model, request, scale) for scale in request["scales"]]


def keep_layout(library: Any) -> None:
    """Leave weights as the file holds them; `Llama` has no option for it.

    Repacked, they go through kernels of the machine: other roundings, and an illegal instruction
    where a sandbox shows AMX but does not let it run.
    """
    defaults = library.llama_model_default_params

    def as_stored() -> Any:
        params = defaults()
        params.use_extra_bufts = False
        return params

    library.llama_model_default_params = as_stored


def under(cpp: Any, model: Any, request: dict[str, Any], scale: float) -> dict[str, Any]:
    """log p of every sequence and the answers at one scale of the adapter."""
    adapters = (cpp.llama_adapter_lora_p_ctypes * 1)(model._lora_adapter)
    if cpp.llama_set_adapters_lora(model._ctx.ctx, adapters, 1, (c_float * 1)(scale)):
        raise RuntimeError("llama.cpp did not take the scale")
    reader = Reader(model)
    found: dict[str, Any] = {"log_p": [], "answers": []}
    for question in request["questions"]:
        found["log_p"] += [reader.log_p(**reply) for reply in question["replies"]]
        end, new_tokens = request["end"], request["new_tokens"]
        found["answers"].append(reader.answer(question["prompt"], end, new_tokens))
    return found


class Reader:
    """Runs sequences; tokens that the next one shares with the last one are run once."""

    def __init__(self, model: Any) -> None:
        self.model, self.held = model, list[int]()
        model.reset()

    def run(self, ids: list[int]) -> Any:
        """Logits after each token of ids."""
        same = (a == b for a, b in zip(ids, self.held, strict=False))
        kept = next((n for n, equal in enumerate(same) if not equal), min(len(ids), len(self.held)))
        self.model.n_tokens, self.held = kept, list(ids)
        if kept < len(ids):
            self.model.eval(ids[kept:])
        return self.model.scores

    def log_p(self, ids: list[int], positions: list[int], targets: list[int]) -> float:
        """sum_i log softmax(logits[positions_i])[targets_i], in float64."""
        logits = np.asarray(self.run(ids)[positions], dtype=np.float64)
        top = logits.max(-1, keepdims=True)
        norm = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
        return float((logits[np.arange(len(targets)), targets] - norm).sum())

    def answer(self, prompt: list[int], end: int, new_tokens: int) -> list[int]:
        """The likeliest token after the likeliest token, up to the end of the turn."""
        said: list[int] = []
        while len(said) < new_tokens:
            ids = [*prompt, *said]
            token = int(np.argmax(self.run(ids)[len(ids) - 1]))
            if token == end:
                break
            said.append(token)
        return said


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(json.dumps(main(json.loads(source.read_text(encoding="utf-8")))))
