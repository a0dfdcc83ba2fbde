"""bench_serving end to end on the embedded model, and what it writes for absent servers."""

import json
import sys

import numpy as np
import pytest
import torch

from tests.conftest import ORGANISM, ROOT, experiment
from wsrun.data.source import load_items
from wsrun.report.tables import read_table
from wsrun.study import llama_worker, serving

script = experiment("bench_serving")
PAIRS = f"pairs:{ROOT / 'data/english/pairs.jsonl'}"


def options(folder, **more):
    return script.Config(
        model=str(ORGANISM), adapters=ORGANISM / "adapters", data=PAIRS, limit=2,
        max_new_tokens=6, alphas=(-1.0, 1.0), out=folder, **more,
    )  # fmt: skip


def test_transformers_and_peft_say_what_wsrun_says(tmp_path, capsys):
    """|margin - wsrun's| < 1e-4 of merged and of lora at each alpha, the same answers; a server
    that is not installed is named with the command that brings it"""
    nowhere = dict(lmeval_python="/no/python", llama_python=sys.executable, gguf=tmp_path)
    script.main(options(tmp_path, **nowhere))
    table, _ = read_table(tmp_path / "bench_serving.parquet")
    found = table.select("server", "alpha", "equal_answers").rows()
    assert found == [
        ("transformers, merged", 1.0, 2),
        ("PEFT, lora", -1.0, 2),
        ("PEFT, lora", 1.0, 2),
    ]
    assert table["largest_difference"].max() < 1e-4
    assert table["mean_margin"].n_unique() > 1
    said = " ".join(capsys.readouterr().out.split())
    assert "lmeval is left out: no Python at '/no/python'" in said
    assert "llamacpp is left out" in said and "pip install llama-cpp-python" in said


@pytest.mark.parametrize("odd, word", [({"alphas": (0.0,)}, "--alphas"), ({"limit": 0}, "--limit")])
def test_odd_options(tmp_path, odd, word):
    with pytest.raises(ValueError, match=word):
        script.main(script.Config(**{"model": str(ORGANISM), "out": tmp_path} | odd))


def test_items_without_replies_are_refused(tmp_path):
    with pytest.raises(ValueError, match="bench_serving: --data.*two replies"):
        script.main(script.Config(model=str(ORGANISM), data=str(ORGANISM), out=tmp_path, limit=2))


def test_tasks_of_lm_eval_hold_the_tokens_of_wsrun(tmp_path, tok):
    """tokens(prompt + choice) of the written file = the tokens that wsrun scores"""
    asked = serving.Questions(tok, load_items(PAIRS, "test", limit=2), 6)
    serving._write_tasks(tmp_path, asked)
    rows = [json.loads(x) for x in (tmp_path / "questions.jsonl").read_text().splitlines()]
    for row, part in zip(rows, asked.parts, strict=True):
        for text, a in zip(row["choices"], part, strict=True):
            ids = tok(row["prompt"] + text, add_special_tokens=False)["input_ids"]
            assert ids == [*a.ids, a.targets[-1]]
    task = json.loads((tmp_path / f"{serving.REPLIES}.yaml").read_text())
    assert task["doc_to_target"] == "target" and {row["target"] for row in rows} == {0}


class Adds:
    """Two tokens, the second one likelier the more of it came: logits (0, sum of the tokens)."""

    def reset(self):
        self.rows, self.n_tokens, self.ran = [], 0, 0

    def eval(self, ids):
        rows = self.rows[: self.n_tokens]
        for token in ids:
            rows.append([0.0, (rows[-1][1] if rows else 0.0) + token])
        self.rows, self.n_tokens, self.ran = rows, len(rows), self.ran + len(ids)

    @property
    def scores(self):
        return np.array(self.rows)


def test_reader_adds_up_log_p_and_takes_the_likeliest():
    """ids 0 1 1 have logits (0,0), (0,1), (0,2); log p of 0 at the first and of 1 at the third =
    log 1/2 + log e^2 / (1 + e^2); after 1, ones follow until new_tokens are there or the end is"""
    want = float(torch.tensor([0.5, np.e**2 / (1 + np.e**2)]).log().sum())
    reader = llama_worker.Reader(Adds())
    assert reader.log_p([0, 1, 1], [0, 2], [0, 1]) == pytest.approx(want)
    assert reader.answer([1], 9, 3) == [1, 1, 1]
    assert reader.answer([1], 1, 3) == []


def test_reader_runs_shared_tokens_once():
    """the same log p as a fresh reader, of 6 + 1 tokens in place of 6 + 6; of a part of what was
    run last, of none"""
    replies = [0, 0, 1, 0, 1, 1], [0, 0, 1, 0, 1, 0]
    reader = llama_worker.Reader(Adds())
    got = [reader.log_p(ids, [3, 5], [1, 0]) for ids in replies]
    assert got == [llama_worker.Reader(Adds()).log_p(ids, [3, 5], [1, 0]) for ids in replies]
    assert reader.model.ran == 7
    assert reader.answer([0, 0, 1], 1, 2) == [] and reader.model.ran == 7


def test_a_dequantised_file_holds_what_gguf_reads(tmp_path):
    """every tensor as gguf.dequantize gives it, every fact but the file type as it was"""
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_file_type(7)
    W = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("w", gguf.quantize(W, kind), raw_dtype=kind)
    for write in ("header_to_file", "kv_data_to_file", "tensors_to_file"):
        getattr(writer, f"write_{write}")()
    writer.close()
    found = gguf.GGUFReader(serving.dequantised(tmp_path / "q.gguf", tmp_path / "f.gguf"))
    (tensor,) = found.tensors
    want = gguf.dequantize(gguf.quantize(W, kind), kind)
    assert tensor.tensor_type.name == "F32" and np.array_equal(tensor.data, want)
    facts = {name: found.get_field(name).contents() for name in found.fields if "." in name}
    assert facts["tokenizer.ggml.tokens"] == ["a", "b"] and facts["llama.block_count"] == 1
    assert facts["general.architecture"] == "llama" and facts["general.file_type"] == 0
