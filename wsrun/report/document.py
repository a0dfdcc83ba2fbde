"""A report as a list of blocks, written as Markdown or as one HTML page with the same words.

The page loads nothing: style and figures are inside it, and its policy forbids the rest. It follows
the reader's light or dark setting; wide tables scroll inside their frame under a head that stays.
"""

import re
from base64 import b64encode
from collections.abc import Collection, Sequence
from html import escape
from typing import NamedTuple

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --page: #fff; --soft: #f2f3f5; --line: #d5d8dc;
  --faint: #5c6166; --mark: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e8; --page: #15171a; --soft: #20242a;
  --line: #3a4048; --faint: #a2a8af; --mark: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif;
  -webkit-text-size-adjust: 100%; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .6rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p, ul { max-width: 46rem; margin: .6rem 0; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; } li { margin: .3rem 0; }
.frame { overflow: auto; max-height: 85vh; border: 1px solid var(--line); border-radius: 6px;
  margin: .8rem 0; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { position: sticky; top: 0; z-index: 1; background: var(--soft); }
tbody tr:hover { background: var(--soft); } tr.strong td { font-weight: 600; color: var(--mark); }
td.n, th.n { text-align: right; }
.prose td { white-space: normal; min-width: 13rem; vertical-align: top; overflow-wrap: anywhere; }
caption { caption-side: bottom; text-align: left; padding: .5rem .6rem; color: var(--faint); }
figure { margin: 1rem 0; } figcaption { color: var(--faint); font-size: .85rem; }
img { display: block; width: 100%; max-width: 46rem; background: #fff; border-radius: 6px; }
pre { overflow: auto; background: var(--soft); border-radius: 6px; padding: .7rem .9rem;
  font: .8rem/1.5 ui-monospace, monospace; }
@media print { .frame { max-height: none; overflow: visible; } }
"""


class Heading(NamedTuple):
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Points(NamedTuple):
    """A list of sentences."""

    items: Sequence[str]


class Code(NamedTuple):
    """Lines shown as they are."""

    lines: Sequence[str]


class Grid(NamedTuple):
    """A table of texts; `strong` are the numbers of the lines to set off.

    prose: cells are sentences, which wrap inside them.
    """

    heads: Sequence[str]
    lines: Sequence[Sequence[str]]
    caption: str
    strong: Collection[int] = ()
    prose: bool = False


class Figure(NamedTuple):
    """An SVG drawing: the name of its file, its bytes, its title, and how to read it."""

    name: str
    svg: bytes
    title: str
    words: str


Block = Heading | Text | Points | Code | Grid | Figure


def markdown(blocks: Sequence[Block]) -> str:
    """The blocks as Markdown; figures are links to files beside it."""
    return "\n\n".join(_markdown(b) for b in blocks) + "\n"


def html(title: str, blocks: Sequence[Block]) -> str:
    """The blocks as one HTML page that needs no other file."""
    body = "\n".join(_html(b) for b in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Text(text):
            return _plain(text)
        case Points(items):
            return "\n".join(f"- {_plain(i)}" for i in items)
        case Code(lines):
            return "\n".join(f"    {line}" for line in lines)
        case Figure(name, _, title, words):
            return f"![{_plain(title)}]({name})\n\n{_plain(words)}"
        case Grid(heads, lines, caption, strong, _):
            number = _numbers(lines, len(heads))
            rule = ["---:" if n else "---" for n in number]
            cells = [[_plain(c) for c in line] for line in lines]
            cells = [
                [f"**{c}**" if i in strong and c else c for c in line]
                for i, line in enumerate(cells)
            ]
            rows = [[_plain(h) for h in heads], rule, *cells]
            return "\n".join(f"| {' | '.join(r)} |" for r in rows) + f"\n\n{_plain(caption)}"


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Points(items):
            return "<ul>\n" + "\n".join(f"<li>{escape(i)}</li>" for i in items) + "\n</ul>"
        case Code(lines):
            return "<pre>" + escape("\n".join(lines)) + "</pre>"
        case Figure(_, svg, title, words):
            source = f"data:image/svg+xml;base64,{b64encode(svg).decode()}"
            image = f'<img alt="{escape(title)}" src="{source}">'
            return f"<figure>{image}<figcaption>{escape(words)}</figcaption></figure>"
        case Grid(heads, lines, caption, strong, prose):
            look = ' class="prose"' * prose
            side = [' class="n"' if n else "" for n in _numbers(lines, len(heads))]
            head = _cells("th", heads, [f'{s} scope="col"' for s in side])
            marks = [' class="strong"' if i in strong else "" for i in range(len(lines))]
            body = "\n".join(
                f"<tr{mark}>{_cells('td', line, side)}</tr>"
                for mark, line in zip(marks, lines, strict=True)
            )
            return (
                f'<div class="frame" tabindex="0"><table{look}>\n'
                f"<caption>{escape(caption)}</caption>\n"
                f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
            )


def _cells(tag: str, texts: Sequence[str], attributes: Sequence[str]) -> str:
    both = zip(texts, attributes, strict=True)
    return "".join(f"<{tag}{attribute}>{escape(text)}</{tag}>" for text, attribute in both)


def _numbers(lines: Sequence[Sequence[str]], columns: int) -> list[bool]:
    """Which columns hold numbers, or numbers with intervals, and gaps only."""
    number = re.compile(r"[-+\d.,e\[\] <%]*")
    return [all(number.fullmatch(line[c]) for line in lines) for c in range(columns)]


def _plain(text: str) -> str:
    """The text with a backslash before what Markdown would read as a mark; on one line."""
    text = " ".join(text.split())
    text = re.sub(r"([\\`*|]|<(?=[\w/!?])|(?<!\w)_|_(?!\w)|~(?=~)|&(?=#?\w+;))", r"\\\1", text)
    return text.replace("](", "]\\(")
