"""WikiText (Merity et al. 2016, arXiv 1609.07843): whole sentences of its articles as plain text.

    from the file    Mating occurs in summer , 60 cm ( 24 in ) away , between hard @-@ shelled ...
    as it is read    Mating occurs in summer, 60 cm (24 in) away, between hard-shelled ...

Every rare word of WikiText-2 is `<unk>`, which no model was trained to say: of each paragraph the
longest run of whole sentences without it is taken, so that nothing stands there that nobody wrote.
Such texts lack rare words and are easier than the articles. The raw release is read alike.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from wscore.files import read_text
from wsrun.data.plain import PlainText

FILES = ("wiki.valid.tokens", "valid.txt", "*.tokens", "*.txt")
LEAST, MOST = 30, 128
"""words of a text; of a longer run the first sentences are taken"""
UNKNOWN, STOPS = "<unk>", (".", "!", "?")
TITLE = re.compile(r"= (?!= ).+ =")
HEADING = re.compile(r"= .+ =")
SPACING = (
    (re.compile(r" @([-,.])@ "), r"\1"),
    (re.compile(r'" ([^"]*) "'), r'"\1"'),
    (re.compile(r" ([,.;:!?)\]%])"), r"\1"),
    (re.compile(r"([(\[]) "), r"\1"),
    (re.compile(r" '(s|t|m|d|re|ve|ll)\b"), r"'\1"),
)
"""what splitting a text into tokens put around them, undone in this order"""


def read_texts(path: Path) -> list[PlainText]:
    """The texts of a file; item = wikitext-LINE, cluster = wikitext-LINE of the article's title.

    Raises ValueError for a file without titles, and for one without a text of LEAST words.
    """
    texts, article = [], ""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.strip()
        if TITLE.fullmatch(line):
            article = f"wikitext-{number}"
        elif article and not HEADING.fullmatch(line) and (text := longest_run(line)):
            texts.append(PlainText(f"wikitext-{number}", article, text))
    if not texts:
        found = "no titles like ' = Title = '" if not article else f"no text of {LEAST} words"
        raise ValueError(
            f"{str(path)!r} has {found} of whole sentences without {UNKNOWN}; give a file of "
            "WikiText, such as wiki.valid.tokens"
        )
    return texts


def longest_run(paragraph: str) -> str:
    """The longest run of whole sentences without `<unk>`, of LEAST to MOST words; "" for none."""
    best: list[str] = []
    run: list[str] = []
    for sentence in sentences(paragraph):
        run = [] if UNKNOWN in sentence else [*run, *sentence]
        best = run if len(best) < len(run) <= MOST else best
    text = " ".join(best)
    for spaced, joined in SPACING:
        text = spaced.sub(joined, text)
    return text if len(text.split()) >= LEAST else ""


def sentences(paragraph: str) -> Iterator[list[str]]:
    """The tokens of each whole sentence: up to a . ! or ? that no quotation encloses.

    A quotation that ends in one of these ends the sentence, but not before a small letter. Words
    after the last stop are dropped.
    """
    tokens, sentence = paragraph.split(), []
    for token, following in zip(tokens, [*tokens[1:], ""], strict=False):
        sentence.append(token)
        last = [t for t in sentence[-2:] if t != '"'][-1:]
        closed = sentence.count('"') % 2 == 0 and not following[:1].islower()
        if closed and last and last[0] in STOPS:
            yield sentence
            sentence = []
