"""The source that --data names: a folder of this project's files, or a public set as NAME:PATH."""

from pathlib import Path

from wscore.files import read_json
from wsrun.data.forms import Reading, with_answer_line
from wsrun.data.items import Dilemmas, Item, check_items, items_sha256, load_claims, read_dilemmas
from wsrun.data.named import few, named, named_reading

TEXTS = Path("data/english")
"""where personas, neutral texts and open questions stand for a public set, which has none"""
FORM = "form.json"
"""{"answer_line": true} in a folder: its questions end with "Answer Yes or No." """


def load_items(
    source: str | Path, split: str, dilemmas: int | None = None, limit: int | None = None
) -> list[Item]:
    """The items of one split of a folder (claims and dilemmas), or of a public set NAME:PATH.

    `dilemmas` keeps the first n dilemmas as `read_dilemmas` does; `limit` n clusters of any other
    data set, drawn by a hash of their names.
    """
    return read_items(source, split, dilemmas, limit).items


def read_items(
    source: str | Path, split: str, dilemmas: int | None = None, limit: int | None = None
) -> Reading:
    """The items of `load_items`, and a sentence for whatever was left out of the set."""
    if reading := named_reading(str(source), split, dilemmas, limit):
        return reading
    folder = _folder(source)
    if not folder.is_dir():
        raise ValueError(
            f"items: no folder {str(folder)!r} here; it must hold claims.jsonl and dilemmas.jsonl "
            "(the defaults are relative to the project's folder), or name a public set as NAME:PATH"
        )
    claims = few(load_claims(folder / "claims.jsonl", split), limit)
    found = read_dilemmas(folder / "dilemmas.jsonl", dilemmas, split).items
    return Reading(_in_form([*claims, *found], folder))


def load_dose_items(
    source: str | Path, dilemmas: int | None = None, limit: int | None = None
) -> Dilemmas:
    """The test items of a public set; of a folder, or of the hub's set, its dilemmas alone.

    A set without honesty flags counts as about honesty as a whole.
    """
    if reading := named_reading(str(source), "test", dilemmas, limit):
        items = reading.items
        return Dilemmas(items, frozenset(i.id for i in items), False, items_sha256(items))
    folder = _folder(source)
    where = folder / "dilemmas.jsonl" if (folder / "dilemmas.jsonl").is_file() else source
    found = read_dilemmas(where, dilemmas, "test")
    return found._replace(items=_in_form(found.items, folder))


def beside(source: str | Path, name: str) -> Path:
    """The path of a file that goes with a source: in its folder, of a public set in TEXTS."""
    return (TEXTS if named(str(source)) else _folder(source)) / name


def source_name(source: str | Path) -> str:
    """A source in a file's name: the folder's own, or NAME-file."""
    if found := named(str(source)):
        name, path = found
        return f"{name}-{path.stem}"
    return Path(source).resolve().name


def _folder(source: str | Path) -> Path:
    if not str(source):
        raise ValueError("items: --data is empty; give a folder, or a public set as NAME:PATH")
    return Path(source)


def _in_form(items: list[Item], folder: Path) -> list[Item]:
    """The items, with an answer line where the folder's form.json asks for one."""
    path = folder / FORM
    if not path.is_file():
        return items
    if read_json(path) != {"answer_line": True}:
        raise ValueError(f'items: {str(path)!r} must be {{"answer_line": true}}; repair it')
    return check_items([with_answer_line(i) for i in items], folder)
