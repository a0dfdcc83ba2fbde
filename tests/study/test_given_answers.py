"""Where answers come from: the model, a file, a public set; by the model, checked, shuffled."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ORGANISM, ROOT, experiment
from tests.data.test_named import NOUNS, tqa, write_csv
from tests.folders import tiny_folder
from wsrun.data.answering import SAMPLED, Decoding
from wsrun.data.named import named_pairs
from wsrun.data.pairs import load_pairs, shuffle_poles
from wsrun.data.source import load_items
from wsrun.models.load import load_model
from wsrun.models.tiny import tiny_qwen3
from wsrun.report.tables import read_table
from wsrun.study.answers import REAL, answers, check_answering, decoding_of, read_sources
from wsrun.study.options import Answering

ENGLISH = ROOT / "data" / "english"


@pytest.fixture(scope="module")
def truthfulqa(tmp_path_factory):
    """truthfulqa:PATH of 60 questions, no two of them alike."""
    folder = tmp_path_factory.mktemp("tqa")
    ask = [f"What does {n} number{i} do?" for i, n in enumerate(NOUNS * 6)]
    return f"truthfulqa:{write_csv(folder / 'TruthfulQA.csv', *map(tqa, ask))}"


def test_how_a_model_answers():
    """the organism draws from its own probabilities, any other at 0.7 and 0.9; options go first"""
    assert REAL == Decoding(0.7, 0.9, 64, "cut") and SAMPLED == Decoding(1.0, 1.0, 64, "drop")
    for model in ("data/organism", str(ORGANISM)):
        assert decoding_of(Answering(model=model)) == SAMPLED
    for model in ("smollm2", "Qwen/Qwen3-0.6B", "organism/other"):
        assert decoding_of(Answering(model=model)) == REAL
    given = Answering(model="x", temperature=0.0, top_p=1.0, max_new_tokens=9, unfinished="drop")
    assert decoding_of(given) == Decoding(0.0, 1.0, 9, "drop")


@pytest.mark.parametrize(
    "options, sentence",
    [
        (dict(temperature=-1.0), "t0: --temperature must be at least 0, got -1"),
        (dict(top_p=0.0), "t0: --top-p must be above 0 and at most 1, got 0"),
        (dict(max_new_tokens=0), "t0: --max-new-tokens must be at least 1, got 0"),
        (dict(neg="honest"), "name two personas"),
        (dict(pairs_file=Path("x.jsonl"), filter_pairs=True), "--filter-pairs .* 'x.jsonl'"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_answering(Answering(**options), "t0")


def test_pairs_of_a_file_are_those_of_the_positive_persona(qwen, tok):
    """--pairs-file data/english/pairs.jsonl --pos candid: 200 to train on, 40 to select on"""
    path = ENGLISH / "pairs.jsonl"
    cfg = Answering(data=str(ENGLISH), pairs_file=path, pos="candid", neg="sycophantic")
    found = answers(cfg, qwen, tok, read_sources(cfg), (0, 1))
    assert found[0] == found[1]
    for split, pairs in zip(("train", "validation"), found[0], strict=True):
        assert pairs == load_pairs(path, "candid", split)
    with pytest.raises(ValueError, match="no behaviour 'kind', but .*candid.*honest.*--pos"):
        read_sources(Answering(pairs_file=path, pos="kind"))


def test_pairs_of_a_public_set(qwen, tok, truthfulqa, capsys):
    """--data NAME:PATH, or --pairs-file NAME:PATH: its own pairs, none of which is evaluated"""
    cfg = Answering(data=truthfulqa)
    sources = read_sources(cfg)
    found = answers(cfg, qwen, tok, sources, (3,))[3]
    assert found.pairs == named_pairs(truthfulqa, "train")
    assert found.validation == named_pairs(truthfulqa, "validation")
    assert f"{len(found.pairs)} pairs to train on" in " ".join(capsys.readouterr().out.split())
    asked = {i.turns[-1]["content"] for i in load_items(truthfulqa, "test")}
    parts = [{p.prompt for p in found.pairs}, {p.prompt for p in found.validation}, asked]
    assert all(parts) and len(set.union(*parts)) == sum(map(len, parts)) == 60
    elsewhere = Answering(data=str(ENGLISH), pairs_file=Path(truthfulqa))
    assert read_sources(elsewhere).given == found
    with pytest.raises(ValueError, match="--filter-pairs .* given by 'truthfulqa:"):
        check_answering(Answering(data=truthfulqa, filter_pairs=True), "t0")


def test_a_set_without_pairs_is_asked_about_and_not_trained_on(tmp_path):
    """--data facts:PATH: own answers to data/english; --pairs-file facts:PATH: refused"""
    rows = [{"statement": f"{n} number{i} is here.", "label": i % 2} for i, n in enumerate(NOUNS)]
    facts = f"facts:{write_csv(tmp_path / 'facts.csv', *rows)}"
    sources = read_sources(Answering(data=facts))
    assert sources.given is None and len(sources.questions) == 200
    with pytest.raises(ValueError, match="facts has no pairs of answers to train on"):
        read_sources(Answering(pairs_file=Path(facts)))


def test_shuffled_poles_are_drawn_by_the_seed(qwen, tok, truthfulqa, capsys):
    """--shuffle-poles: training and validation pairs of each seed, and it is said"""
    cfg = Answering(data=truthfulqa, shuffle_poles=True)
    found = answers(cfg, qwen, tok, read_sources(cfg), (0, 1))
    for seed, (pairs, validation) in found.items():
        assert pairs == shuffle_poles(named_pairs(truthfulqa, "train"), seed)
        assert validation == shuffle_poles(named_pairs(truthfulqa, "validation"), seed)
    assert found[0] != found[1] and "a control" in capsys.readouterr().out


@pytest.fixture(scope="module")
def organism():
    return load_model(ORGANISM)


def test_the_model_answers_itself(organism, few, tmp_path, capsys):
    """training questions, and validation ones where asked; counts and separation are printed"""
    cfg = Answering(data=str(few), pairs_cache=tmp_path, model=str(ORGANISM))
    sources = read_sources(cfg)
    (plain,) = answers(cfg, *organism, sources, (0,)).values()
    (both,) = answers(cfg, *organism, sources, (0,), validate=True).values()
    assert both.pairs == plain.pairs and not plain.validation
    asked = {q["prompt"] for q in sources.validation}
    assert both.validation and {p.prompt for p in both.validation} <= asked
    printed = " ".join(capsys.readouterr().out.split())
    n = len(plain.pairs)
    assert f"answers of seed 0 (temperature 1, top-p 1): {n} of 8 questions got two" in printed
    assert f"the model's own likelihood tells the poles of {n} of {n} pairs apart" in printed


@dataclass(frozen=True)
class Run:
    """What a run of t0_train left."""

    table: object
    record: dict


def t0(folder, tok, **options):
    made = tiny_folder(folder, tiny_qwen3, tok)
    module = experiment("t0_train")
    own = dict(model=str(made["model"]), families=("lora",), steps=1, out=folder / "tables")
    own |= dict(adapters=folder / "adapters", deltas=folder / "deltas")
    module.main(module.Config(**(own | options)))
    return Run(*read_table(folder / "tables" / "t0_train.parquet"))


def test_t0_on_the_pairs_of_a_public_set(truthfulqa, tok, tmp_path, no_figures):
    """trained on its training pairs, asked a few of its test items; the record tells a control"""
    runs = [
        t0(tmp_path / name, tok, data=truthfulqa, limit=5, shuffle_poles=shuffle)
        for name, shuffle in (("plain", False), ("control", True))
    ]
    plain, control = runs
    n = len(named_pairs(truthfulqa, "train"))
    for run in runs:
        assert {*run.table["n"]} == {5} and run.record["pairs"] == {"0": n}
    assert [r.record["config"]["shuffle_poles"] for r in runs] == [False, True]
    assert plain.record["answers"] != control.record["answers"]
    with pytest.raises(ValueError, match="--limit must be at least 1, got 0"):
        t0(tmp_path / "none", tok, data=truthfulqa, limit=0)


def test_t0_on_given_pairs_of_a_behaviour(tok, tmp_path, no_figures):
    """--pairs-file with behaviours and splits: the training rows of --pos"""
    lines = (ENGLISH / "pairs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "pairs.jsonl").write_text("".join(lines[:12]))
    options = dict(pos="candid", neg="sycophantic", pairs_file=tmp_path / "pairs.jsonl")
    run = t0(tmp_path, tok, data=str(ORGANISM), limit=2, **options)
    assert run.record["pairs"] == {"0": 6}
