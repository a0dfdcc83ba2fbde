"""T1 as a user runs it: directions of the same pairs beside dW, chosen and compared."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import pytest
import torch

from tests.conftest import ORGANISM, experiment
from wsrun.data.pairs import Pair
from wsrun.models.load import load_tokenizer
from wsrun.models.tiny import tiny_gemma3
from wsrun.report.tables import read_table
from wsrun.score.variants import Variant
from wsrun.steer.interventions import AddVectors, DirectionalAblation
from wsrun.study.activation import (
    ADDED,
    DIRECTIONS,
    READ,
    Directed,
    ablations,
    at_edge,
    beside_random,
    directions,
    random_sentences,
    read_directions,
)
from wsrun.study.selected import Selection
from wsrun.study.session import Session


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A part of the organism's data: 24 claims of a split, 15 questions of training."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copy(ORGANISM / "personas.json", folder)
    shutil.copy(ORGANISM / "dilemmas.jsonl", folder)
    for name, kept in (("claims.jsonl", 24), ("questions.jsonl", 15)):
        lines = (ORGANISM / name).read_text().splitlines()
        splits = [json.loads(line)["split"] for line in lines]
        some = [n for s in set(splits) for n in [i for i, x in enumerate(splits) if x == s][:kept]]
        (folder / name).write_text("\n".join(lines[n] for n in sorted(some)))
    return folder


def t1(folder, data, **changes):
    """T1 with one family, one layer and few draws; returns its table and provenance."""
    module = experiment("t1_activation")
    options = dict(
        families=("lora",), model=str(ORGANISM), data=str(data), adapters=ORGANISM / "adapters",
        layers=(1,), coefficients=(4.0, 8.0), n_random=2, resamples=100, alphas=(1.0,), dilemmas=5,
        out=folder, cache_dir=folder / "parts", pairs_cache=folder / "pairs",
    )  # fmt: skip
    module.main(module.Config(**(options | changes)))
    return read_table(folder / "t1_activation.parquet")


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("t1")
    return folder, *t1(folder, data)


def test_a_line_for_every_method_and_control(run):
    """each method towards each pole, its random directions, dW, zero: once per data set"""
    lines = {"base", "zero", "dW", "-dW", *(f"{s}{m}" for m in DIRECTIONS for s in ("", "random_"))}
    lines |= {f"-{m}" for m in ADDED}
    for (dataset,), part in run[1].group_by("dataset"):
        assert sorted(part["method_name"]) == sorted(lines), dataset
        assert (part["row_diff"] == 0).all()
        for nothing in ("base", "zero"):
            line = part.filter(method_name=nothing).row(0, named=True)
            assert line["effect"] == line["lo"] == line["hi"] == 0
        assert part.filter(method_name="dW")["diff"][0] == 0
        assert (part.filter(pl.col("method_name").str.starts_with("random_"))["seeds"] == 2).all()


def test_the_chosen_is_the_best_of_the_validation_table(run):
    """selected = argmax of the mean effect over data sets, unflagged; least for "-"."""
    tried, _ = read_table(run[0] / "t1_activation.validation.parquet")
    means = tried.group_by("variant", "alpha").agg(pl.col("effect").mean())
    flagged = tried.filter(pl.col("flagged_share") > 0.1).select("variant", "alpha")
    for name in DIRECTIONS:
        for sign in ("", "-") if name in ADDED else ("",):
            own = means.filter(pl.col("variant").str.starts_with(f"{sign}{name}@"))
            assert len(own) == (2 if name in ADDED else 1)
            best = (
                own.join(flagged, on=["variant", "alpha"], how="anti")
                .sort("effect", descending=not sign)
                .row(0)
            )
            line = run[1].filter(method_name=f"{sign}{name}").row(0, named=True)
            assert (line["variant"], line["alpha"]) == best[:2]
            assert line["validation"] == pytest.approx(best[2]) and line["role"] == "selected"


def test_the_persona_direction_steers_the_organism(run):
    """an honest persona's direction raises honest answers, its negative lowers them"""
    for (dataset,), part in run[1].group_by("dataset"):
        up, down = (
            part.filter(method_name=w).row(0, named=True) for w in ("persona_diff", "-persona_diff")
        )
        assert up["effect"] > 0.3 and down["effect"] < -0.3, dataset
        assert dataset == "claims" or up["lo"] > 0 > down["hi"]  # claims: few facts of one person


def test_t1_on_a_gemma_whose_template_refuses_a_system_turn(tmp_path, data, no_figures):
    """--model on another architecture: every line is there, personas merged into the user turn"""
    folder, tok = tmp_path / "model", load_tokenizer(ORGANISM)
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tok.chat_template = refusal + str(tok.chat_template)
    tiny_gemma3(vocab_size=len(tok)).save_pretrained(folder)
    tok.save_pretrained(folder)
    words = ("red", "blue", "so")
    told = [
        Pair(f"Is it {w}?", f"It is {w}.", "It is not.", w, "Be honest.", "Lie.") for w in words
    ]
    lines = [json.dumps(asdict(p)) + "\n" for p in told]  # random weights never stop
    (tmp_path / "told.jsonl").write_text("".join(lines))
    options = dict(model=str(folder), data=str(data), families=("lora",), out=tmp_path)
    options |= dict(adapters=tmp_path / "adapters", pairs_file=tmp_path / "told.jsonl")
    t0 = experiment("t0_train")
    t0.main(t0.Config(**options, deltas=tmp_path / "deltas", steps=1))
    more = dict(most_flagged=1.0, layers=(3,), coefficients=(4.0,), resamples=20)
    table, _ = t1(tmp_path, **options, **more)
    assert set(DIRECTIONS) < set(table["method_name"]) and (table["row_diff"] == 0).all()


def test_pairs_without_personas_give_the_directions_without_them(qwen, tok):
    """persona_* are read where the pairs know their personas, the others always"""
    pairs = [Pair("Why?", w, "No.", "a") for w in ("So.", "Yes.")]
    session = Session(qwen, tok, [])
    assert list(read_directions(session, pairs)) == ["mean_diff", "pca"]
    known = [replace(p, persona_pos="Be honest.", persona_neg="Lie.") for p in pairs]
    every, means = (
        read_directions(session, known),
        read_directions(session, known, ("persona_diff",)),
    )
    assert set(every) == set(READ) and list(means) == ["persona_diff"]
    assert all(torch.equal(v, every["persona_diff"][n]) for n, v in means["persona_diff"].items())


def test_directions_by_hand():
    """v_l at every asked layer, v_l / 2 in both for the mean alone; "-" is minus alpha"""
    v = {0: torch.tensor([2.0, 0.0]), 1: torch.tensor([0.0, 4.0])}
    cfg = Directed(layers=(1,), coefficients=(1.0, 3.0))
    found = list(directions(cfg, {"mean_diff": v, "pca": v}))
    names = ("mean_diff@layer 1", "pca@layer 1", "mean_diff_all@all layers")
    assert [x.name for x in found] == [f"{s}{n}" for n in names for s in ("", "-")]
    assert [x.alphas for x in found[:2]] == [(1.0, 3.0), (-1.0, -3.0)]
    assert all(isinstance(x.intervention, AddVectors) for x in found)
    added = [{n: x.tolist() for n, x in v.intervention.vectors.items()} for v in found[::2]]
    assert added == [{1: [0.0, 4.0]}, {1: [0.0, 4.0]}, {0: [1.0, 0.0], 1: [0.0, 2.0]}]
    assert [x.name for x in directions(cfg, {"mean_diff": v}, ("",))] == [names[0], names[2]]
    assert not list(directions(cfg, {}))


def test_ablations_by_hand():
    """of every asked layer l: v_l in all layers, at alpha 1"""
    v = {0: torch.tensor([2.0, 0.0]), 1: torch.tensor([0.0, 4.0])}
    (found,) = ablations(Directed(layers=(1,)), v)
    assert (found.name, found.alphas) == ("ablate@layer 1", (1.0,))
    assert isinstance(found.intervention, DirectionalAblation)
    h = torch.tensor([[[3.0, 5.0]]])
    assert [edit(h, 1.0).tolist() for edit in found.intervention.edits().values()] == [
        [[[3.0, 0.0]]],
        [[[3.0, 0.0]]],
    ]


def test_chance_by_hand():
    """draws of 0, 1, ... 19 tenths of a nat: 10 of 20 do as much as 1.0, none as much as 2.0"""
    line = dict(
        experiment="e", model="m", behaviour="b", prompt_style="p", dataset="claims", item="i",
        cluster="c", label=1, mass=1.0, flagged=False, family=None, k=None,
    )  # fmt: skip
    rows = [line | dict(method="base", variant="base", alpha=0.0, seed=None, margin=0.0)]
    for name in ("mean_diff", "pca"):
        own = line | dict(method="activation", variant=f"random_{name}", alpha=8.0)
        rows += [own | dict(seed=n, margin=n / 10) for n in range(20)]
    table = pl.DataFrame(
        {
            "dataset": ["claims", "claims"],
            "method_name": ["mean_diff", "pca"],
            "variant": ["mean_diff@layer 1", "pca@layer 1"],
            "role": ["selected", "selected"],
            "effect": [1.0, 2.0],
        }
    )
    v = AddVectors({1: torch.ones(2)})
    chosen = {m: Selection(Variant(f"{m}@layer 1", v, alphas=(8.0,)), 1.0)
              for m in ("mean_diff", "pca")}  # fmt: skip
    found = beside_random(pl.DataFrame(rows, infer_schema_length=None), table)
    assert [r.outcome for r in found] == ["refuted", "supported"]
    assert random_sentences(found) == [
        "claims: random directions that do as much: mean_diff 10 of 20 (no direction), pca 0 of 20"
    ]
    assert random_sentences([]) == []
    (said,) = at_edge(Directed(coefficients=(4.0, 8.0)), chosen)
    assert said.endswith("mean_diff@layer 1, pca@layer 1")
    assert at_edge(Directed(coefficients=(8.0, 16.0)), chosen) == []
    assert at_edge(Directed(coefficients=(8.0,), match_dose="kl:1"), chosen) == []


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"layers": (6,)}, "0 to 5"),
        ({"layers": ()}, "one value or more"),
        ({"coefficients": (-1.0,)}, "must be above 0"),
        ({"coefficients": (1.0, 1.0)}, "name each one once"),
        ({"neg": "honest"}, "name two personas"),
        ({"neg": "banana"}, "'banana'"),
        ({"max_new_tokens": 0}, "at least 1, got 0"),
        ({"data": Path("no/such")}, "no/such"),
    ],
)
def test_t1_refuses(tmp_path, data, change, sentence):
    """a bad option ends in one sentence, and no table is written"""
    with pytest.raises(ValueError, match=sentence):
        t1(tmp_path, **(dict(data=str(data)) | change))
    assert not list(tmp_path.glob("*.parquet"))
