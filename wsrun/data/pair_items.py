"""A file of pairs as items: which of its two given answers does the model prefer?"""

from pathlib import Path

from wsrun.data.forms import Head, Reading, two_replies
from wsrun.data.item import Item
from wsrun.data.places import SHARES
from wsrun.data.rows import Row, file_of, json_rows

COLUMNS = ("question", "prompt", "response_pos", "response_neg", "split")
FILES = ("pairs.jsonl", "*.jsonl")


def read_items(path: Path) -> Reading:
    """One item of two replies a row: margin = log p(response_pos) - log p(response_neg).

    The data set is <behaviour>_pairs, or pairs where rows name no behaviour; the cluster is the
    row's question, and the split the row's own.
    """
    return Reading([_item(row) for row in json_rows(file_of(path, *FILES), COLUMNS)])


def _item(row: Row) -> Item:
    dataset = f"{row.text('behaviour')}_pairs" if "behaviour" in row.values else "pairs"
    question, split = row.text("question"), row.known("split", [*SHARES])
    head = Head(f"{dataset}-{question}", question, split, dataset)
    return two_replies(
        head, row.text("prompt"), (row.text("response_pos"), row.text("response_neg"))
    )
