"""An export in the hands of other servers: the same questions, the same tokens, side by side.

    margin = log p(reply+) - log p(reply-), summed over the tokens that wsrun scores

Each server gives margins and greedy answers. transformers and PEFT run here, one sequence at a
time; lm-eval-harness and llama.cpp run in the Python that has them, as a process with files.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from wscore.files import read_json_lines, reason
from wsrun.data.items import Item
from wsrun.models.chat import end_of_turn, render
from wsrun.models.generate import answer_text, generate
from wsrun.models.template import chat_text
from wsrun.score.plan import plan
from wsrun.score.readings import PER_TOKEN, Asked
from wsrun.score.sweep import sweep
from wsrun.steer.interventions import WeightDelta, applied
from wsrun.study import llama_worker

INSTALL = {"lm_eval": "pip install lm-eval[hf]", "llama_cpp": "pip install llama-cpp-python"}
"""package -> the command that brings it"""
REPLIES, ANSWERS = "ws_replies", "ws_answers"  # tasks of lm-eval


class Served(NamedTuple):
    """What a server gave at one alpha: a margin and a greedy answer a question."""

    server: str
    alpha: float
    margins: list[float]
    answers: list[str]


@dataclass(frozen=True)
class Questions:
    """Items with two replies under a tokenizer, and how long an answer may be."""

    tok: PreTrainedTokenizerBase
    items: Sequence[Item]
    new_tokens: int

    @cached_property
    def parts(self) -> list[list[Asked]]:
        """(reply+, reply-) of each: tokens, the positions that are read, the tokens read there."""
        return plan(self.tok, self.items).parts

    @cached_property
    def prompts(self) -> list[list[int]]:
        """What an answer follows."""
        return [render(self.tok, item.turns) for item in self.items]

    @cached_property
    def end(self) -> int:
        """The token that ends an answer."""
        return end_of_turn(self.tok)

    def margins(self, log_p: Sequence[float]) -> list[float]:
        """Of log p of every reply, reply+ and reply- in turn."""
        return [pos - neg for pos, neg in zip(log_p[::2], log_p[1::2], strict=True)]


# ------------------------------------------------------------------------------------- in here
def by_wsrun(
    model: PreTrainedModel, asked: Questions, change: WeightDelta, alphas: Sequence[float]
) -> list[Served]:
    """wsrun itself, the base at alpha = 0 among them: what the others are compared with."""
    rows = sweep(model, asked.tok, asked.items, {"dW": change}, [a for a in alphas if a])
    rows = rows.filter(~pl.col("dataset").str.ends_with(PER_TOKEN))
    found = []
    for alpha in alphas:
        with applied(model, change, alpha):
            said = generate(
                model, asked.tok, [i.turns for i in asked.items], seed=0, temperature=0.0,
                max_new_tokens=asked.new_tokens,
            )  # fmt: skip
        margins = dict(rows.filter(alpha=alpha).select("item", "margin").iter_rows())
        found.append(
            Served("wsrun", alpha, [margins[i.id] for i in asked.items], [a.text for a in said])
        )
    return found


def by_transformers(folder: Path, asked: Questions, alpha: float) -> Served:
    """A merged folder, loaded and run by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return _forward("transformers, merged", model, asked, alpha)


def by_peft(
    base: PreTrainedModel, folder: Path, asked: Questions, alphas: Sequence[float]
) -> Iterator[Served]:
    """A LoRA folder on the base, scaled by PEFT; the base gets its own layers back."""
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    try:
        for alpha in alphas:
            with rescale_adapter_scale(model, multiplier=alpha):
                yield _forward("PEFT, lora", model, asked, alpha)
    finally:
        model.unload()


@torch.no_grad()
def _forward(server: str, model: Any, asked: Questions, alpha: float) -> Served:
    margins = asked.margins([_log_p(model, a) for part in asked.parts for a in part])
    answers = []
    for prompt in asked.prompts:
        new = model.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)).long(),
            max_new_tokens=asked.new_tokens, do_sample=False, temperature=None, top_p=None,
            top_k=None, eos_token_id=asked.end, pad_token_id=asked.end,
        )[0, len(prompt) :]  # fmt: skip
        answers.append(answer_text(asked.tok, new.tolist()))
    return Served(server, alpha, margins, answers)


def _log_p(model: Any, a: Asked) -> float:
    logp = model(input_ids=torch.tensor([a.ids])).logits[0, a.positions].float().log_softmax(-1)
    return float(logp.gather(1, torch.tensor(a.targets)[:, None]).double().sum())


# ------------------------------------------------------------------------- in another Python
def lacking(python: str, package: str) -> str | None:
    """Why a package cannot be used in a Python, and what to do; None where it can."""
    try:
        done = subprocess.run([python, "-c", f"import {package}"], capture_output=True, text=True)
    except OSError as error:
        return f"no Python at {python!r} ({reason(error)})"
    if done.returncode == 0:
        return None
    return f"{python} has no {package}; run {INSTALL[package]} there"


def by_lm_eval(python: str, folder: Path, work: Path, asked: Questions, alpha: float) -> Served:
    """A merged folder in lm-eval-harness, as two local tasks that are written into `work`.

    The harness takes texts. It moves the line end of the prompt to the reply, whose log p then has
    one more token, the same one in both replies.
    """
    _write_tasks(work, asked)
    _run(
        python, "-m", "lm_eval", "--model", "hf", "--model_args",
        f"pretrained={folder},dtype=float32", "--tasks", f"{REPLIES},{ANSWERS}", "--include_path",
        work, "--device", "cpu", "--batch_size", 1, "--log_samples", "--output_path", work / "out",
    )  # fmt: skip
    log_p, answers = [], []
    for sample in _samples(work / "out", REPLIES):
        log_p += [float(choice[0]) for choice in sample["filtered_resps"]]
    for sample in _samples(work / "out", ANSWERS):
        answers.append(sample["filtered_resps"][0].strip())
    return Served("lm-eval, merged", alpha, asked.margins(log_p), answers)


def _write_tasks(work: Path, asked: Questions) -> None:
    rows = [
        {"prompt": chat_text(asked.tok, item.turns), "choices": item.replies, "target": 0}
        for item in asked.items
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (work / "questions.jsonl").write_text(lines, encoding="utf-8")
    common = {
        "dataset_path": "json", "test_split": "test", "target_delimiter": "",
        "dataset_kwargs": {"data_files": {"test": str(work / "questions.jsonl")}},
        "doc_to_text": "prompt", "doc_to_target": "target", "metadata": {"version": 1},
    }  # fmt: skip
    end = str(asked.tok.decode([asked.end]))
    kinds = {
        REPLIES: {
            "output_type": "multiple_choice", "doc_to_choice": "choices",
            "metric_list": [{"metric": "acc"}],
        },
        ANSWERS: {
            "output_type": "generate_until", "metric_list": [{"metric": "bypass"}],
            "generation_kwargs": {
                "until": [end], "max_gen_toks": asked.new_tokens, "do_sample": False
            },
        },
    }  # fmt: skip
    for name, own in kinds.items():  # JSON is YAML
        (work / f"{name}.yaml").write_text(json.dumps({"task": name} | common | own, indent=1))


def _samples(out: Path, task: str) -> list[dict[str, Any]]:
    """The logged samples of a task, in the order of the questions."""
    (path,) = out.rglob(f"samples_{task}_*.jsonl")
    return sorted((dict(s) for s in read_json_lines(path)), key=lambda s: s["doc_id"])


def by_llama_cpp(
    python: str, work: Path, asked: Questions, lora: Path, gguf: Path, name: str,
    alphas: Sequence[float], *, cache: int = 16,
) -> list[Served]:  # fmt: skip
    """A GGUF file and its LoRA in llama.cpp, at every alpha as a scale of the loaded adapter.

    cache: bits of a number in its cache of keys and values; it takes 16 where nothing is said.
    """
    request = {
        "gguf": str(gguf), "lora": str(lora), "cache": cache, "scales": list(alphas),
        "questions": [
            {"prompt": prompt, "replies": [_asked(a) for a in part]}
            for prompt, part in zip(asked.prompts, asked.parts, strict=True)
        ],
        "end": asked.end, "new_tokens": asked.new_tokens,
    }  # fmt: skip
    source, target = work / "request.json", work / "reply.json"
    source.write_text(json.dumps(request), encoding="utf-8")
    worker = work / "worker.py"  # on its own: names of its folder hide those of the library
    shutil.copyfile(llama_worker.__file__, worker)
    _run(python, worker, source, target)
    found: list[Mapping[str, Any]] = json.loads(target.read_text())
    return [
        Served(
            name, alpha, asked.margins(one["log_p"]),
            [answer_text(asked.tok, ids) for ids in one["answers"]],
        )
        for alpha, one in zip(alphas, found, strict=True)
    ]  # fmt: skip


def _asked(a: Asked) -> dict[str, Any]:
    return {"ids": a.ids, "positions": a.positions, "targets": a.targets}


def _run(*words: object) -> None:
    """Run a server to its end; ValueError with the last line it wrote where it fails."""
    command = [str(w) for w in words]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise ValueError(
            f"serving: {' '.join(command[:3])} ended with code {done.returncode}: {said[:300]}; "
            "run it by hand to see all it says"
        )


def dequantised(gguf_path: Path, out: Path) -> Path:
    """The same GGUF file with every tensor in float32; returns `out`."""
    from wsrun.export.gguf_files import gguf_package

    gguf = gguf_package("serving")
    reader = gguf.GGUFReader(gguf_path)
    writer = gguf.GGUFWriter(out, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", FILE_TYPE):
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=sub)
    writer.add_file_type(0)  # all float32
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


FILE_TYPE = "general.file_type"
