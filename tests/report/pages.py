"""An HTML page as a reader's browser takes it apart, for the tests of the report."""

from collections import Counter
from html.parser import HTMLParser


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
