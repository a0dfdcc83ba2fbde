"""The page: every answer with its numbers, what is missing by name, one file that loads nothing."""

import re
import shlex
from base64 import b64decode
from collections import Counter

import polars as pl
import pytest

from tests.conftest import experiment
from tests.report.pages import Page
from tests.report.small_tables import PROMPTS, VECTORS, WEIGHTS, rows_of, save
from wsrun.report.tables import read_table, write_table
from wsrun.report.verdicts import RuleResult

report = experiment("report")


def run(tables, out, **more):
    report.main(report.Config(tables=tables, out=out, resamples=200, **more))
    return (out / "report.md").read_text(), (out / "report.html").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(tables, report.md, report.html) of two benchmark tables, doses and an analysis."""
    tables, out = tmp_path_factory.mktemp("tables"), tmp_path_factory.mktemp("out")
    save(tables, "t1_activation", WEIGHTS | VECTORS)
    rules = [
        RuleResult("claims", "a <claim>", None, "supported", "a rule <says> 1.25 of 7"),
        RuleResult("claims", "dW beats strong", None, "refuted", "told anew from all tables"),
    ]
    save(tables, "t3_prompts", WEIGHTS | PROMPTS, verdicts=rules)
    doses = [rows_of({"dW": ("weights", f, a, 0.5 * a, "")}, name="t2_dilemmas")
             for f in ("lora", "oft") for a in (-1.0, 1.0, 2.0)]  # fmt: skip
    rows = pl.concat(doses).unique(["dataset", "variant", "family", "alpha", "item"])
    write_table(rows, tables / "t2_dilemmas.rows.parquet", {})
    write_table(rows.select("model", "dataset", "family"), tables / "t2_dilemmas.parquet", {})
    return tables, *run(tables, out)


def test_the_rule_names_the_winner(made):
    """dW beats X where [lo, hi] of X - dW lies below 0, loses where above"""
    _, text, _ = made
    for sentence in (
        r"claims: dW beats weak \(layer 3, alpha 4\): weak minus dW -1.00 \[-1\.\d\d, -0\.\d\d\]",
        r"dilemmas: dW is not distinguishable from same \(all layers, alpha 1\): same minus dW",
        r"dilemmas: dW loses to strong \(\\<b>be_honest\\\|, alpha 1\): strong minus dW \+1.00",
        r"Does dW beat prompting\? No: on claims it beats 0 of 1 methods, loses to 1; on dilemmas",
        r"Does dW beat activation steering\? In part: on claims it beats 1 of 2 methods, is not",
        r"random \(activation, alpha 4, 4 draws\) is not distinguishable from the base: [+-]0.00",
        r"zero \(weights, lora, alpha 1\) is not distinguishable from the base: \+0.00 \[\+0.00",
        r"dW \(lora, alpha 2\) against the base, in nats: claims \+2.00 \[",
        r"- claims, a \\<claim>: supported: a rule \\<says> 1.25 of 7",
    ):
        assert re.search(sentence, text), sentence
    assert (
        "dW beats -dW" not in text
        and "told anew" not in text
        and "dW beats dW" not in text
        and "q < 0.001" in text
    )


def test_other_rows_write_nothing(tmp_path):
    """tables about other items: refused, and no file"""
    save(tmp_path, "t1_activation", WEIGHTS | VECTORS)
    save(tmp_path, "t3_prompts", WEIGHTS, skip=3)
    with pytest.raises(ValueError, match="same items"):
        run(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_costs_stand_beside_effects(made, tmp_path):
    """t11's columns join the line of the same change and dose, a dash elsewhere"""
    for path in made[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save(tmp_path, "t11_degradation", WEIGHTS)
    table, meta = read_table(tmp_path / "t11_degradation.parquet")
    known = {"nll": 0.125, "nll_lo": 0.0625, "nll_hi": 0.25, "perplexity": 3.5}
    known |= {"accuracy": -0.5, "accuracy_lo": -0.75, "accuracy_hi": None}
    known = {c: pl.lit(v, pl.Float64) for c, v in known.items()}
    write_table(table.with_columns(**known), tmp_path / "t11_degradation.parquet", meta)
    text, _ = run(tmp_path, tmp_path / "out")
    lines = [
        x for x in text.splitlines() if x.startswith(("| **claims** | **dW**", "| claims | we"))
    ]
    dW, weak = lines
    assert "**+0.125 [+0.062, +0.250]** | **3.500** | **-0.500** | **t1, t3** |" in dW
    assert weak.endswith("| - | - | - | t1 |")
    assert "| dW | lora, alpha 2 | +0.125 [+0.062, +0.250] | 3.500 | -0.500 |" in text


def test_models_have_tables_of_their_own(tmp_path):
    """two models: two tables, each answer under its model's name"""
    save(tmp_path, "t1_activation", WEIGHTS | VECTORS)
    save(tmp_path, "t5_replicate", WEIGHTS | VECTORS | PROMPTS, model="other", skip=2)
    text, _ = run(tmp_path, tmp_path / "out")
    assert "## Benchmark: tiny, honest" in text and "## Benchmark: other, honest" in text
    assert "- other, honest: Does dW beat prompting? No" in text
    assert "- other, honest: Does dW beat activation steering? In part: on claims it" in text
    assert "- tiny, honest: Not answered, as no table has a line of it: prompting" in text
    save(tmp_path, "t5_replicate", WEIGHTS | PROMPTS)  # the same model again: no table, no line
    text, _ = run(tmp_path, tmp_path / "out")
    assert "t5_replicate: this model again" in text and text.count("## Benchmark:") == 1
    assert "| dilemmas | strong |" not in text and "- claims: dW loses to strong" in text


def test_the_page_loads_nothing(made):
    """tags balance, no script, no address but data:, and the text of a table stays text"""
    text = made[2]
    page = Page(text)
    assert page.open == [] and not page.tags["script"] and not page.tags["link"]
    assert page.loads and all(v.startswith("data:image/svg+xml;base64,") for v in page.loads)
    assert "url(" not in text and "@import" not in text and "http:" not in text
    assert "https:" not in text and page.tags["b"] == 0 and "&lt;b&gt;be_honest|" in text
    assert "position: sticky" in text and "prefers-color-scheme: dark" in text


def test_the_figure_is_inside(made):
    """the data: address holds the SVG drawing, with its bands"""
    svg = b64decode(Page(made[2]).loads[0].partition(",")[2])
    assert svg.startswith(b"<?xml") and b"dose alpha" in svg and b"OFT" in svg
    assert svg.count(b"FillBetweenPolyCollection") + svg.count(b"PolyCollection_") >= 4


def test_both_files_hold_the_same_numbers(made):
    """numbers(report.md) = numbers(report.html), one by one"""
    _, text, page = made
    number = re.compile(r"[-+]?\d+(?:\.\d+)?")
    plain = re.sub(r"\\(.)", r"\1", text)
    assert len(number.findall(plain)) > 300
    assert Counter(number.findall(plain)) == Counter(number.findall(" ".join(Page(page).text)))


def test_what_is_missing_is_named(made, tmp_path):
    """every absent table with its command; none at all is refused in one sentence"""
    _, text, _ = made
    absent = [n for n in report.SCRIPTS if n not in ("t1_activation", "t2_dilemmas", "t3_prompts")]
    assert f"Missing tables: {', '.join(absent)};" in text
    assert all(f"    python experiments/{name}.py --out " in text for name in absent)
    assert "| python experiments/t1_activation.py --model tiny |" in text
    with pytest.raises(ValueError, match="none of the tables is in"):
        run(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_asked_of_the_same_model(tmp_path, capsys):
    """the next command is about the model, data and adapters of the table that is there"""
    save(tmp_path, "t3_prompts", WEIGHTS | PROMPTS)
    table, meta = read_table(tmp_path / "t3_prompts.parquet")
    asked = dict(model="a b/tiny", data="d", adapters="e", dtype="bfloat16", device="cuda")
    write_table(table, tmp_path / "t3_prompts.parquet", meta | {"config": asked})
    run(tmp_path, tmp_path / "out")
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("next: ")]
    python, script, *flags = shlex.split(line.removeprefix("next: "), comments=True)
    read = dict(zip(flags[::2], flags[1::2], strict=True))
    assert (python, script) == ("python", "experiments/t1_activation.py")
    assert read == {f"--{name}": value for name, value in (asked | {"out": str(tmp_path)}).items()}


def test_a_folder_that_cannot_be_written(made, tmp_path):
    """out is a file: refused, and the file is as it was"""
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="cannot be written"):
        run(made[0], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop("dataset"), "lacks the column 'dataset'"),
        (lambda t: t.with_columns(alpha=pl.lit("x")), "column 'alpha' .* is String"),
        (lambda t: t.with_columns(variant=pl.lit(b"x")), "column 'variant' .* is Binary"),
        (lambda t: t.with_columns(margin=pl.lit(float("nan"))), "'margin' .* NaN or infinity"),
        (lambda t: t.with_columns(model=pl.lit(None, pl.String)), "'model' .* empty values"),
        (lambda t: t.head(0), "has no lines"),
    ],
)
def test_foreign_rows_are_refused_by_column(change, words, tmp_path):
    """a rows table of other columns, types or values: one sentence with file and column"""
    save(tmp_path, "t1_activation", WEIGHTS | VECTORS)
    path = tmp_path / "t1_activation.rows.parquet"
    change(pl.read_parquet(path)).write_parquet(path)
    with pytest.raises(ValueError, match=words) as error:
        run(tmp_path, tmp_path / "out")
    assert path.name in str(error.value) and not (tmp_path / "out").exists()


def test_names_of_folders_are_no_markup(tmp_path, capsys):
    """--out 'a[/x]' works, and is printed as it is"""
    save(tmp_path, "t1_activation", WEIGHTS | VECTORS)
    run(tmp_path, tmp_path / "a[/x]" / ":smile:")
    assert "a[/x]/:smile:/report.md" in capsys.readouterr().out


def test_the_short_form_stands_in_for_the_long(tmp_path):
    """tables of wsrun compare answer the first question alone, and not beside those of T3"""
    tables, out = tmp_path / "tables", tmp_path / "out"
    tables.mkdir()
    save(tables, "compare", WEIGHTS | PROMPTS | VECTORS)
    text, _ = run(tables, out)
    assert "compare: Does dW beat prompts" in text and "dW loses to strong" in text
    save(tables, "t3_prompts", WEIGHTS | PROMPTS)
    text, _ = run(tables, out)
    assert "compare: Does dW" not in text and "dW loses to strong" in text
