"""Sample answers for readers: beside each other, wrapped, marked where cut, and never as markup."""

from io import StringIO

import polars as pl
import pytest
from rich.console import Console

from tests.conftest import experiment
from tests.report.pages import Page
from tests.report.small_tables import PROMPTS, WEIGHTS, save
from wsrun.report.answer_section import answer_tables, one_line
from wsrun.report.tables import write_table
from wsrun.study.samples import SCHEMA

LONG = "word " * 30
LINES = [
    (None, None, 0.0, "<b>base</b> & so", False, 1.0),
    ("lora", 0, -1.0, "[bold]not[/bold]\x1b[31m", False, -2.5),
    ("lora", 0, 2.0, LONG, True, 3.0),
]


def table(margin=True):
    lines = [
        ("m", "d", family, seed, alpha, f"i{i}", f"Is <i>{i}</i> so?\nSay.", answer, cut,
         value if margin else None)
        for i in range(2)
        for family, seed, alpha, answer, cut, value in LINES
    ]  # fmt: skip
    return pl.DataFrame(lines, schema=SCHEMA, orient="row")


def printed(width, **more):
    out = StringIO()
    console = Console(file=out, width=width, markup=False, emoji=False)
    for block in answer_tables(table(**more)):
        console.print(block, highlight=False)
    return out.getvalue()


@pytest.mark.parametrize("width", [30, 80, 200])
def test_a_terminal_of_any_width(width):
    """no line is wider; every word is there; doses rise, the base among them; cut ones end in …"""
    text = printed(width)
    assert max(len(line) for line in text.splitlines()) <= width
    words = " ".join(text.split())
    assert words.count("word") == 60 and words.count("…") == 2 and "[bold]not[/bold]" in words
    first = words[words.index("Is <i>0") : words.index("Is <i>1")]
    assert first.index("alpha -1") < first.index("base") < first.index("alpha 2")
    assert "-2.5" in first and "+1.0" in first and "+1.0" not in printed(width, margin=False)
    assert "\x1b" not in text


def test_one_line_holds_nothing_that_a_terminal_obeys():
    assert one_line(" a\n\tb\x1b[2Jc\x07 ") == "a b\ufffd[2Jc\ufffd"


def run(folder):
    report = experiment("report")
    report.main(report.Config(tables=folder, out=folder / "out", resamples=50))
    return (folder / "out" / "report.md").read_text(), (folder / "out" / "report.html").read_text()


def test_the_page_has_them_escaped(tmp_path):
    """a line a question, a column a dose; tags of an answer are text, in both files"""
    save(tmp_path, "t3_prompts", WEIGHTS | PROMPTS)
    meta = {"argv": ["experiments/samples.py"], "config": {"n": 2, "prompt_seed": 7}}
    write_table(table(), tmp_path / "samples.parquet", meta)
    text, html = run(tmp_path)
    page = Page(html)
    assert "What it says" in page.text and page.open == [] and not page.tags["i"]
    assert "<b>base</b>" not in html and "&lt;b&gt;base&lt;/b&gt; &amp; so [+1.0]" in html
    assert 'class="prose"' in html and "their seed 7" in html and "\x1b" not in html
    assert "| question | alpha -1 | base | alpha 2 |" in text and r"\<b>base" in text
    assert "Missing tables" in text and "t3_prompts" in text and "samples.py --out" not in text


def test_without_the_table_there_is_no_section(tmp_path):
    save(tmp_path, "t3_prompts", WEIGHTS | PROMPTS)
    text, html = run(tmp_path)
    assert "What it says" not in text + html and "python experiments/samples.py --out" in text


def test_a_damaged_table_is_refused_by_name(tmp_path):
    """an answer that is no text, an empty one, a lacking column: file and column are named"""
    for damaged, column in (
        (table().drop("truncated"), "truncated"),
        (table().with_columns(answer=pl.lit(1)), "answer"),
        (table().with_columns(alpha=pl.lit(None, pl.Float64)), "alpha"),
    ):
        write_table(damaged, tmp_path / "samples.parquet", {})
        with pytest.raises(
            ValueError, match=f"{column}.*samples.parquet|samples.parquet.*{column}"
        ):
            run(tmp_path)
