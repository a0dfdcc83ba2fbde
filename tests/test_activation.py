"""T1 as a user runs it: directions of the same pairs beside dW, chosen and compared."""

import json
from dataclasses import asdict

import polars as pl
import pytest

from tests.conftest import ORGANISM, experiment
from wsrun.models import load_tokenizer, tiny_gemma3
from wsrun.pairs import Pair
from wsrun.tables import read_table

WAYS = ("mean_diff", "mean_diff_all", "pca", "persona_diff", "persona_diff_all", "persona_pca")


def t1(folder, **changes):
    """T1 with one family, one layer and few draws; returns its table and provenance."""
    module = experiment("t1_activation")
    options = dict(
        families=("lora",), model=str(ORGANISM), data=ORGANISM, adapters=ORGANISM / "adapters",
        layers=(1,), coefficients=(4.0, 8.0), randoms=2, resamples=100, alphas=(1.0,), dilemmas=5,
        out=folder, parts=folder / "parts", pairs=folder / "pairs",
    )  # fmt: skip
    module.main(module.Config(**(options | changes)))
    return read_table(folder / "t1_activation.parquet")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t1")
    return folder, *t1(folder)


def test_a_line_for_every_way_and_control(run):
    """each way towards each pole, its random directions, dW, zero: once per data set"""
    lines = {"zero", "dW", "-dW", *(f"{s}{w}" for w in WAYS for s in ("", "-", "random_"))}
    for (dataset,), part in run[1].group_by("dataset"):
        assert sorted(part["way"]) == sorted(lines), dataset
        assert (part["row_diff"] == 0).all()
        zero = part.filter(way="zero")
        assert zero["effect"][0] == zero["lo"][0] == zero["hi"][0] == 0
        assert part.filter(way="dW")["diff"][0] == 0
        assert (part.filter(pl.col("way").str.starts_with("random_"))["seeds"] == 2).all()


def test_the_chosen_is_the_best_of_the_validation_table(run):
    """selected = argmax over settings, doses of the mean effect over data sets; least for "-"."""
    tried, _ = read_table(run[0] / "t1_activation.validation.parquet")
    means = tried.group_by("variant", "alpha").agg(pl.col("effect").mean())
    for way in WAYS:
        for sign in ("", "-"):
            own = means.filter(pl.col("variant").str.starts_with(f"{sign}{way}@"))
            assert len(own) == 2
            best = own.sort("effect", descending=not sign).row(0)
            line = run[1].filter(way=f"{sign}{way}").row(0, named=True)
            assert (line["variant"], line["alpha"]) == best[:2]
            assert line["validation"] == pytest.approx(best[2]) and line["role"] == "selected"


def test_the_persona_direction_steers_the_organism(run):
    """an honest persona's direction raises honest answers, its negative lowers them, past chance"""
    for (dataset,), part in run[1].group_by("dataset"):
        up, down = (
            part.filter(way=w).row(0, named=True) for w in ("persona_diff", "-persona_diff")
        )
        assert up["lo"] > 0 > down["hi"], dataset


def test_t1_twice_is_identical(run, tmp_path):
    """same command: the same table bit for bit, with pairs generated again and with pairs found"""
    table, meta = t1(tmp_path)
    assert table.equals(run[1]) and meta["vectors"] == run[2]["vectors"]
    assert meta["answers"] == run[2]["answers"]
    table, _ = t1(run[0])
    assert table.equals(run[1])


def test_t1_on_a_gemma_whose_template_refuses_a_system_turn(tmp_path):
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
    options = dict(model=str(folder), data=ORGANISM, families=("lora",), out=tmp_path)
    options |= dict(adapters=tmp_path / "adapters", pairs_file=tmp_path / "told.jsonl")
    t0 = experiment("t0_train")
    t0.main(t0.Config(**options, deltas=tmp_path / "deltas", steps=1))
    more = dict(most_flagged=1.0, layers=(0, 3), resamples=20)
    table, _ = t1(tmp_path, **options, **more)
    assert set(WAYS) < set(table["way"]) and (table["row_diff"] == 0).all()
    lines = [json.dumps({k: v for k, v in asdict(p).items() if "persona" not in k}) for p in told]
    (tmp_path / "told.jsonl").write_text("\n".join(lines))
    table, _ = t1(tmp_path, **options, **more)
    assert {w for w in WAYS if w in set(table["way"])} == {"mean_diff", "mean_diff_all", "pca"}


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"layers": (6,)}, "layers 0 to 5"),
        ({"layers": ()}, "one value or more"),
        ({"coefficients": (-1.0,)}, "must be above 0"),
        ({"coefficients": (1.0, 1.0)}, "each of them once"),
        ({"neg": "honest"}, "name two personas"),
        ({"neg": "banana"}, "'banana' asked"),
        ({"max_new_tokens": 0}, "it is 1 or more"),
        ({"data": "no/such"}, "no folder 'no/such'"),
    ],
)
def test_t1_refuses(tmp_path, change, sentence):
    """a bad option ends in one sentence, and no table is written"""
    with pytest.raises(ValueError, match=sentence):
        t1(tmp_path, **change)
    assert not list(tmp_path.glob("*.parquet"))
