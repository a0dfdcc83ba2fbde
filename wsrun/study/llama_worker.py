"""llama.cpp asked through llama-cpp-python: log p of given tokens, greedy answers, a live scale.

    python llama_worker.py request.json reply.json

Run by the Python that has llama_cpp; beside it only numpy and the standard library are imported.
request: gguf, lora, cache (16 or 32 bits), scales, sequences {ids, positions, targets},
prompts, end, new_tokens. reply: [{log_p, answers}], one a scale, of one loaded model and adapter
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
    longest = max(map(len, (*(s["ids"] for s in request["sequences"]), *request["prompts"])))
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
    log_ps = [log_p(model, **sequence) for sequence in request["sequences"]]
    end, new_tokens = request["end"], request["new_tokens"]
    answers = [answer(model, prompt, end, new_tokens) for prompt in request["prompts"]]
    return {"log_p": log_ps, "answers": answers}


def log_p(model: Any, ids: list[int], positions: list[int], targets: list[int]) -> float:
    """sum_i log softmax(logits[positions_i])[targets_i], in float64."""
    model.reset()
    model.eval(ids)
    logits = np.asarray(model.scores[positions], dtype=np.float64)
    top = logits.max(-1, keepdims=True)
    norm = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
    return float((logits[np.arange(len(targets)), targets] - norm).sum())


def answer(model: Any, prompt: list[int], end: int, new_tokens: int) -> list[int]:
    """The likeliest token after the likeliest token, up to the end of the turn."""
    model.reset()
    said: list[int] = []
    left = prompt
    while len(said) < new_tokens:
        model.eval(left)
        token = int(np.argmax(model.scores[model.n_tokens - 1]))
        if token == end:
            break
        said, left = [*said, token], [token]
    return said


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(json.dumps(main(json.loads(source.read_text(encoding="utf-8")))))
