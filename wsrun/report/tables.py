"""Tables: parquet written whole or not at all, with the provenance of the run in its metadata."""

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import torch

from wscore.files import parse_json, write_whole
from wsrun.data.parquet import read_parquet

PACKAGES = (
    "weight-steering", "torch", "transformers", "peft", "polars", "safetensors", "tokenizers",
)  # fmt: skip
METADATA_KEY, SHA256_KEY = "wscore", "wscore.sha256"
AGAIN = "run its script again, or remove it"
WRITTEN: list[Path] = []  # tables of this process, in order: what a stopped script leaves behind


def check_writable(folder: str | Path) -> None:
    """Make the folder; raises ValueError where no file can be written in it."""
    probe = Path(folder) / ".writable"
    write_whole(probe, lambda tmp: tmp.touch()).unlink(missing_ok=True)


def write_table(table: pl.DataFrame, path: str | Path, meta: Mapping[str, Any]) -> Path:
    """Write a table as parquet, with `meta` (as JSON) and the sha256 of both; returns the path."""
    text, raw = json.dumps(dict(meta), sort_keys=True, default=str), BytesIO()
    beside = {METADATA_KEY: text, SHA256_KEY: content_sha256(table, text)}
    table.write_parquet(raw, metadata=beside)
    path = write_whole(path, lambda tmp: tmp.write_bytes(raw.getbuffer()))
    WRITTEN.append(path)
    return path


def read_table(path: str | Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    """(table, meta) of a file written by write_table; meta is {} for a foreign parquet file.

    Raises ValueError, naming the file, for one that is none, whose meta are not those of a script
    or whose content is not what was written.
    """
    table, beside = read_parquet(path)
    text = beside.get(METADATA_KEY, "{}")
    known = beside.get(SHA256_KEY)
    if known is not None and known != content_sha256(table, text):
        raise ValueError(f"{str(path)!r} is damaged, its content is not what was written; {AGAIN}")
    meta = parse_json(text, f"the provenance of {str(path)!r}")
    argv = meta.get("argv", []) if isinstance(meta, dict) else None
    words = isinstance(argv, list) and all(isinstance(word, str) for word in argv)
    typed = words and isinstance(meta.get("config", {}), dict)
    if not (typed and isinstance(meta.get("commit"), str | None)):
        what = "argv must be a list of words, config an object, commit a text"
        raise ValueError(f"the provenance of {str(path)!r} is odd, {what}; {AGAIN}")
    return table, meta


def content_sha256(table: pl.DataFrame, text: str) -> str:
    """sha256 of a text and of all that a table holds: names, empty values, values in order."""
    digest = sha256(text.encode("utf-8", "surrogatepass"))
    for values in table.get_columns():
        digest.update(f"\0{values.name}\0{len(values)}\0".encode())
        digest.update(values.is_null().to_numpy().tobytes())
        if values.dtype.is_numeric() or values.dtype == pl.Boolean:
            digest.update(values.fill_null(0).to_numpy().tobytes())
        elif values.dtype == pl.String:
            texts = values.fill_null("")
            digest.update(texts.str.len_bytes().to_numpy().tobytes())
            digest.update((texts.str.join("")[0] or "").encode())
        else:
            digest.update(json.dumps(values.to_list(), default=str).encode())
    return digest.hexdigest()


def provenance(config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What decides the numbers of a run: argv, config, commit, versions, threads, and `more`.

    Paths of the config stand there as text. Nothing in it changes between two runs of one command
    on one machine, so their tables are identical byte for byte.
    """
    return {
        "argv": sys.argv,
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in config.items()},
        "commit": commit(),
        "versions": {p: _version(p) for p in PACKAGES} | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        **more,
    }


def commit() -> str | None:
    """The commit of the source tree, "+changes" after it where files differ; None outside git."""
    here = Path(__file__).resolve().parents[2]  # of wsrun/report/tables.py
    try:
        if Path(_git(here, "rev-parse", "--show-toplevel")).resolve() != here:
            return None  # installed somewhere inside another repository
        head = _git(here, "rev-parse", "HEAD")
        return head + ("+changes" if _git(here, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *args: str) -> str:
    result = subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
