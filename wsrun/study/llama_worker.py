"""llama.cpp asked through llama-cpp-python: log p of given tokens, greedy answers, a live scale.

    python llama_worker.py request.json reply.json

Run by the Python that has llama_cpp; beside it only numpy and the standard library are imported.
request: gguf, lora, threads, batch, settings [{scale, answers}], sequences {ids, positions,
targets}, prompts, end, new_tokens. reply: [{log_p, answers}], one a setting, of one loaded model
whose scale is set anew for each: nothing is loaded twice.
"""

import json
import sys
from ctypes import c_float
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np


def main(request: dict[str, Any]) -> list[dict[str, Any]]:
    """What the model gives under each setting."""
    cpp: Any = import_module("llama_cpp")
    longest = max(map(len, (*(s["ids"] for s in request["sequences"]), *request["prompts"])))
    model = cpp.Llama(
        request["gguf"], n_ctx=longest + request["new_tokens"] + 1, n_batch=request["batch"],
        n_ubatch=request["batch"], n_threads=request["threads"], logits_all=True, verbose=False,
        n_threads_batch=request["threads"], lora_path=request["lora"] or None,
    )  # fmt: skip
    return [under(cpp, model, request, setting) for setting in request["settings"]]


def under(cpp: Any, model: Any, request: dict[str, Any], setting: dict[str, Any]) -> dict[str, Any]:
    """log p of every sequence and the answers at one scale of the adapter."""
    if request["lora"]:
        adapters = (cpp.llama_adapter_lora_p_ctypes * 1)(model._lora_adapter)
        scales = (c_float * 1)(setting["scale"])
        if cpp.llama_set_adapters_lora(model._ctx.ctx, adapters, 1, scales):
            raise RuntimeError("llama.cpp did not take the scale")
    log_ps = [log_p(model, **sequence) for sequence in request["sequences"]]
    prompts = request["prompts"] if setting["answers"] else []
    answers = [answer(model, p, request["end"], request["new_tokens"]) for p in prompts]
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
