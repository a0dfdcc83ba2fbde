"""Report: tables joined over identical rows, rules as sentences, one page that loads nothing."""

import re
from base64 import b64decode
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest

from tests.conftest import experiment, read_command
from wsrun.report import claims, document, verdicts
from wsrun.report.document import Code, Figure, Grid, Heading, Points, Text
from wsrun.report.joined import by_model, join, read_sources
from wsrun.report.tables import ROW_SCHEMA, read_table, write_table
from wsrun.study.benchmark import compare

report = experiment("report")
CLUSTERS, REFERENCE = 24, {"variant": "dW", "family": "lora", "alpha": 2.0}
# way: (method, family, alpha, mean gain, role); "same" moves items as dW does, up to noise
WAYS = {
    "dW": ("weights", "lora", 2.0, 2.0, "selected"),
    "-dW": ("weights", "lora", -2.0, -2.0, "selected"),
    "zero": ("weights", "lora", 1.0, 0.0, "control"),
}
VECTORS = {
    "weak@layer 3": ("activation", None, 4.0, 1.0, "selected"),
    "same@all layers": ("activation", None, 1.0, 2.0, "selected"),
    "random": ("activation", None, 4.0, None, "control"),
}
PROMPTS = {"strong@<b>be_honest|": ("prompt", None, 1.0, 3.0, "selected")}


def rows_of(ways, model="tiny", skip=0, shift=0.0, seed=0, name="x"):
    """Rows of the base and of ways: two items a cluster, gains of known mean."""
    lines = []
    for dataset in ("claims", "dilemmas"):
        draw = np.random.default_rng(len(dataset))
        base = draw.normal(size=(CLUSTERS, 2))
        noise = {w: np.random.default_rng(i).normal(size=base.shape) for i, w in enumerate(ways)}
        for c in range(skip, CLUSTERS):
            for i, label in enumerate((1, -1)):
                own = [("base", "base", None, 0.0, None, 0.0)]
                for way, (method, family, alpha, gain, _) in ways.items():
                    centred = noise[way][c, i] - noise[way].mean()
                    gains = {None: (gain or 0.0) + (0.3 * centred if gain else 0.0)}
                    if gain is None:  # draws around 0
                        gains = {s: 0.2 * (-1) ** s * centred for s in range(4)}
                    own += [(way, method, family, alpha, s, g) for s, g in gains.items()]
                lines += [
                    {
                        "experiment": name, "model": model, "behaviour": "honest",
                        "dataset": dataset, "prompt_style": "chat", "method": method,
                        "family": family, "variant": way, "alpha": alpha, "seed": s,
                        "item": f"{c}-{i}", "cluster": f"c{c}", "label": label,
                        "margin": base[c, i] + label * g + shift, "mass": 0.9, "flagged": False,
                    }
                    for way, method, family, alpha, s, g in own
                ]  # fmt: skip
    return pl.DataFrame(lines, schema=ROW_SCHEMA)


def save(folder, name, ways, reference=REFERENCE, verdicts=(), **more):
    """The two tables of a script of the benchmark."""
    rows = rows_of(ways, name=name, **more)
    roles = [(way, family, role, gain) for way, (_, family, _, gain, role) in ways.items()]
    names = ("variant", "family", "role", "validation")
    known = pl.DataFrame(roles, schema=dict.fromkeys(names[:3], pl.String) | {names[3]: float},
                         orient="row")  # fmt: skip
    table = compare(rows, reference, resamples=50).join(
        known, on=["variant", "family"], how="left", nulls_equal=True
    )
    table = table.with_columns(way=pl.col("variant").str.split("@").list.first())
    meta = {"argv": [f"experiments/{name}.py", "--model", "tiny"], "verdicts": verdicts}
    write_table(rows, folder / f"{name}.rows.parquet", meta)
    write_table(table, folder / f"{name}.parquet", meta)


def joined(folder, *names):
    sources = by_model(read_sources(folder, names).values())
    (found,) = [join(s, 200) for s in sources.values()]
    return found


def run(tables, out, **more):
    report.main(report.Config(tables=tables, out=out, resamples=200, **more))
    return (out / "report.md").read_text(), (out / "report.html").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(tables, report.md, report.html) of two benchmark tables, doses and an analysis."""
    tables, out = tmp_path_factory.mktemp("tables"), tmp_path_factory.mktemp("out")
    save(tables, "t1_activation", WAYS | VECTORS)
    save(tables, "t3_prompts", WAYS | PROMPTS, verdicts=["a rule <says> 1.25 of 7"])
    doses = [rows_of({"dW": ("weights", f, a, 0.5 * a, "")}, name="t2_dilemmas")
             for f in ("lora", "oft") for a in (-1.0, 1.0, 2.0)]  # fmt: skip
    rows = pl.concat(doses).unique(["dataset", "variant", "family", "alpha", "item"])
    write_table(rows, tables / "t2_dilemmas.rows.parquet", {})
    write_table(rows.select("model", "dataset", "family"), tables / "t2_dilemmas.parquet", {})
    return tables, *run(tables, out)


def test_the_rule_names_the_winner(made):
    """dW beats X where [lo, hi] of X - dW lies below 0, loses where above, else is not apart"""
    _, text, _ = made
    for sentence in (
        r"claims: dW beats weak \(layer 3, alpha 4\): weak minus dW -1.00 \[-1\.\d\d, -0\.\d\d\]",
        r"dilemmas: dW is not apart from same \(all layers, alpha 1\): same minus dW [+-]0.00 \[-",
        r"dilemmas: dW loses to strong \(\\<b>be_honest\\\|, alpha 1\): strong minus dW \+1.00",
        r"Does dW beat prompting\? No: on claims it beats 0 of 1 ways, loses to 1; on dilemmas",
        r"Does dW beat activation steering\? In part: on claims it beats 1 of 2 ways, is not apart",
        r"claims: random \(activation, alpha 4, 4 draws\) is not apart from the base: [+-]0.00",
        r"claims: zero \(weights, lora, alpha 1\) is not apart from the base: \+0.00 \[\+0.00",
        r"dW \(lora, alpha 2\) against the base, in nats: claims \+2.00 \[",
        r"- a rule \\<says> 1.25 of 7",
    ):
        assert re.search(sentence, text), sentence
    assert "dW beats -dW" not in text and "dW beats dW" not in text and "q < 0.001" in text


def test_one_table_over_all_scripts(made):
    """each line once; effects, differences and q are those of one call on all rows"""
    found = joined(made[0], "t1_activation", "t3_prompts")
    all_ways = WAYS | VECTORS | PROMPTS
    assert len(found.table) == 2 * (len(all_ways) + 1)  # and the base
    at = {(r["dataset"], r["variant"]): r for r in found.table.iter_rows(named=True)}
    assert at["claims", "dW"]["source"] == "t1, t3"
    assert at["claims", "weak@layer 3"]["source"] == "t1"
    rows = pl.concat([read_table(made[0] / f"{n}.rows.parquet")[0]
                      for n in ("t1_activation", "t3_prompts")])  # fmt: skip
    once = rows.with_columns(experiment=pl.lit("report")).unique()
    alone = compare(once, REFERENCE, resamples=200)
    keys = ["dataset", "method", "variant", "alpha"]
    columns = [*keys, "effect", "lo", "hi", "diff", "diff_lo", "diff_hi", "diff_q", "q"]
    assert found.table.select(columns).sort(keys).equals(alone.select(columns).sort(keys))


def test_other_rows_are_refused(tmp_path):
    """items, base margins, or a line's margins that differ: one sentence with both names"""
    save(tmp_path, "t1_activation", WAYS | VECTORS)
    cases = (
        ({"skip": 3}, WAYS, r"items \(96 and 84, 84 of them in both\)"),
        ({"shift": 0.5}, WAYS, r"0\.5 nats in the base's margins"),
        ({}, WAYS | {"weak@layer 3": ("activation", None, 4.0, 1.5, "selected")}, "both hold the"),
    )
    for more, ways, words in cases:
        save(tmp_path, "t3_prompts", ways, **more)
        with pytest.raises(ValueError, match=words) as error:
            run(tmp_path, tmp_path / "out")
        assert "t1_activation and t3_prompts" in str(error.value)
        assert not (tmp_path / "out").exists()


def test_controls_of_one_name_stand_apart(tmp_path):
    """a control that two scripts drew differently is two lines, each with its own margins"""
    save(tmp_path, "t1_activation", WAYS | {"random": ("weights", None, 1.0, None, "control")})
    other = {"weak": ("weights", "oft", 2.0, 1.0, "selected")}
    save(tmp_path, "t3_prompts", WAYS | other | {"random": ("weights", None, 1.0, None, "control")})
    found = joined(tmp_path, "t1_activation", "t3_prompts").table.filter(role="control")
    assert {"random", "random (t3)"} <= set(found["variant"])
    assert found.filter(variant="random (t3)")["source"].to_list() == ["t3", "t3"]
    assert (found.filter(variant="random (t3)")["seeds"] == 4).all()


def test_one_way_under_two_names_is_one_line(tmp_path):
    """the same margins under another name of the setting: the first name, both scripts"""
    save(tmp_path, "t1_activation", WAYS | {"v@even": ("synthetic", None, 1.0, 1.0, "selected")})
    save(tmp_path, "t3_prompts", WAYS | {"v@flat": ("synthetic", None, 1.0, 1.0, "selected")})
    other = WAYS | {"v@more": ("synthetic", None, 1.0, 1.5, "selected")}
    save(tmp_path, "t9_synthetic", other)
    found = joined(tmp_path, "t1_activation", "t3_prompts", "t9_synthetic").table
    lines = found.filter(dataset="claims", way="v").select("variant", "source").sort("variant")
    assert lines.rows() == [("v@even", "t1, t3"), ("v@more", "t9")]


def test_who_competes_with_dW():
    """not dW, not what is used with it, not the other pole's ways; a way against an adapter is"""
    ways = {"dW": 2, "-dW": -2, "simple": 3, "simple_neg": -3, "-tau_neg": 1, "prompt+dW": 4}
    ways |= {"finetuned": -1, "finetuned+dW": 2, "dW_lora": 1, "neutral": 0, "failed": -0.1}
    table = pl.DataFrame({"way": [*ways], "validation": [float(v) for v in ways.values()]})
    table = table.with_columns(role=pl.lit("selected"))
    assert claims.rivals(table)["way"].to_list() == ["simple", "-tau_neg", "failed"]


def test_costs_stand_beside_effects(made, tmp_path):
    """t11's columns join the line of the same change and dose, a dash elsewhere"""
    for path in made[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save(tmp_path, "t11_degradation", WAYS)
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


def test_what_a_line_adds():
    """over, over_diff: the line against the one it builds on"""
    line = {"dataset": "claims", "way": "prompt+dW", "variant": "prompt+dW@p", "family": "ia3"}
    line |= {"k": None, "alpha": 1.0, "over": "p", "over_diff": 0.5}
    lines = [line | {"over_lo": 0.25, "over_hi": 0.75}, line | {"over_lo": -0.5, "over_hi": 1.5}]
    assert claims.added(pl.DataFrame(lines)) == [
        "claims: prompt+dW (p, alpha 1) minus p: +0.50 [+0.25, +0.75] nats",
        "claims: prompt+dW (p, alpha 1) minus p: +0.50 [-0.50, +1.50] nats, not apart",
    ]


def test_another_dW_is_said(tmp_path):
    """scripts that chose different dW: the more frequent is the reference, the other is named"""
    other = {"dW": ("weights", "oft", 1.0, 1.0, "selected")}
    save(tmp_path, "t1_activation", other, {"variant": "dW", "family": "oft", "alpha": 1.0})
    save(tmp_path, "t3_prompts", WAYS)
    save(tmp_path, "t9_synthetic", WAYS)
    found = joined(tmp_path, "t1_activation", "t3_prompts", "t9_synthetic")
    assert found.reference == ("lora", 2.0)
    assert "t1_activation (oft, alpha 1) against lora, alpha 2" in found.remarks[0]


def test_models_have_tables_of_their_own(tmp_path):
    """two models: two tables, each answer under its model's name"""
    save(tmp_path, "t1_activation", WAYS | VECTORS)
    save(tmp_path, "t5_replicate", WAYS | VECTORS | PROMPTS, model="other", skip=2)
    text, _ = run(tmp_path, tmp_path / "out")
    assert "## Benchmark: tiny, honest" in text and "## Benchmark: other, honest" in text
    assert "- other, honest: Does dW beat prompting? No" in text
    assert "- other, honest: Does dW beat activation steering? In part: on claims it" in text
    assert "- tiny, honest: Does dW beat prompting? Not answered" in text
    save(tmp_path, "t5_replicate", WAYS | PROMPTS)  # the same model again: no table, no line
    text, _ = run(tmp_path, tmp_path / "out")
    assert "t5_replicate: this model again" in text and text.count("## Benchmark:") == 1
    assert "| dilemmas | strong |" not in text and "- claims: dW loses to strong" in text


class Page(HTMLParser):
    """Open tags, text, and whatever could load something."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.loads, self.words = [], Counter(), [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title"} & set(self.open):
            self.text.append(data)


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
    save(tmp_path, "t3_prompts", WAYS | PROMPTS)
    table, meta = read_table(tmp_path / "t3_prompts.parquet")
    asked = dict(model="a b/tiny", data="d", adapters="e", dtype="bfloat16", device="cuda")
    write_table(table, tmp_path / "t3_prompts.parquet", meta | {"config": asked})
    run(tmp_path, tmp_path / "out")
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("next: ")]
    script, read = read_command(line.removeprefix("next: "))
    assert script == "t1_activation" and read.out == tmp_path
    assert {name: str(getattr(read, name)) for name in asked} == asked


def test_a_folder_that_cannot_be_written(made, tmp_path):
    """out is a file: refused, and the file is as it was"""
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="cannot be written"):
        run(made[0], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_verdicts_however_they_are_nested():
    """t6: data set -> claim -> verdict; t7, t8: lists with families; others: sentences"""
    shares = {"keep_shared": (0.8, 0.9), "drop_shared": (0.1, 0.2), "keep_mlp": (0.75, 0.5)}
    lines = [("claims", f, v, r) for v, two in shares.items()
             for f, r in zip(("lora", "ia3"), two, strict=True)]  # fmt: skip
    table = pl.DataFrame(lines, schema=["dataset", "family", "variant", "retained"], orient="row")
    core = {"outcome": "supported", "sentence": "it is shared", "part": None}
    found = verdicts.parts({"verdicts": {"claims": {"shared core": core}}}, table)
    assert found == [
        "claims, shared core: supported: it is shared (shared: 0.80 to 0.90 kept, 0.10 to 0.20 "
        "left)"
    ]
    sites = [["claims", "blocks", "all", "refuted", "none alone", None],
             ["claims", "blocks", "lora", "supported", "mlp alone", "mlp"],
             ["claims", "blocks", "ia3", "undetermined", "closest is mlp", None]]  # fmt: skip
    assert verdicts.parts({"verdicts": sites}, table) == [
        "claims, blocks: refuted: none alone; by family: supported in lora (mlp: 0.75 kept), "
        "undetermined in ia3"
    ]
    assert verdicts.headline({"verdicts": sites}) == "refuted: claims/blocks"
    assert verdicts.parts({"verdicts": ["one", "two"]}, table) == ["one", "two"]
    assert verdicts.parts({}, table) == []


def test_planted_rates():
    """5 of 5 found, 1 of 4 false: rates with Wilson's interval, and the disagreement by name"""
    line = {"plant": "p", "seed": 0, "rule": "layers", "outcome": "supported", "sentence": "s"}
    lines = [line | {"expected": "supported", "agree": True}] * 5
    lines += [line | {"expected": "not supported", "agree": a} for a in (True, True, True, False)]
    # Wilson, z = 1.96: 5/5 from 1/(1 + z^2/5) = 0.57; 1/4: (0.25 + 0.48 -+ 0.654)/1.96
    assert verdicts.planted(pl.DataFrame(lines)) == [
        "true claims that were found: 5 of 5, 1.00 [0.57, 1.00]",
        "false claims that were supported: 1 of 4, 0.25 [0.05, 0.70]",
        "disagrees with the truth: p, seed 0, layers: supported; s",
    ]


def test_blocks_in_both_languages():
    """what Markdown or HTML would read as a mark is text in both"""
    grid = Grid(("way", "n"), (("a|b*", "1"), ("<i>", "-")), "c_d `e`", strong=(0,))
    blocks = [Heading("T & <x>", 1), Text("[a](b) <u>"), Points(["_x_"]), Code(["a < b"]), grid]
    blocks.append(Figure("f.svg", b"<svg/>", 'a "title"', "words"))
    text, page = document.markdown(blocks), document.html("t", blocks)
    assert "| **a\\|b\\*** | **1** |" in text and "| --- | ---: |" in text
    assert "[a]\\(b)" in text and "- \\_x\\_" in text and "    a < b" in text
    assert "c_d \\`e\\`" in text and '![a "title"](f.svg)' in text
    assert "<p>[a](b) &lt;u&gt;</p>" in page and Page(page).tags["u"] == 0
    assert "<h1>T &amp; &lt;x&gt;</h1>" in page and '<td class="n">1</td>' in page
    assert 'alt="a &quot;title&quot;"' in page and Page(page).open == []
