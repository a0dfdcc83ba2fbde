"""Documents: the same words in Markdown and HTML, and a page that loads nothing."""

from tests.report.pages import Page
from wsrun.report import document
from wsrun.report.document import Code, Figure, Grid, Heading, Points, Text


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
