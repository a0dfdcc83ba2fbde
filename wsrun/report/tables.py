"""Tables: parquet written whole or not at all, with the provenance of the run in its metadata."""

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import torch

from wscore.files import write_whole

PACKAGES = ("wscore", "torch", "transformers", "peft", "polars", "safetensors", "tokenizers")
METADATA_KEY = "wscore"
WRITTEN: list[Path] = []  # tables of this process, in order: what a stopped script leaves behind


def check_writable(folder: str | Path) -> None:
    """Make the folder; raises ValueError where no file can be written in it."""
    probe = Path(folder) / ".writable"
    write_whole(probe, lambda tmp: tmp.touch()).unlink(missing_ok=True)


def write_table(table: pl.DataFrame, path: str | Path, meta: Mapping[str, Any]) -> Path:
    """Write a table as parquet with `meta` (as JSON) in its metadata; returns the path."""
    text = json.dumps(dict(meta), sort_keys=True, default=str)
    path = write_whole(path, lambda tmp: table.write_parquet(tmp, metadata={METADATA_KEY: text}))
    WRITTEN.append(path)
    return path


def read_table(path: str | Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    """(table, meta) of a file written by write_table; meta is {} for a foreign parquet file."""
    try:
        meta = json.loads(pl.read_parquet_metadata(path).get(METADATA_KEY, "{}"))
        return pl.read_parquet(path), meta
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"read_table: {str(path)!r} is not a readable parquet table") from error


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
