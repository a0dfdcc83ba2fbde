"""While a model is loaded: none of transformers' progress bars, and one line of our own if slow."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from threading import Timer
from typing import Any

from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from transformers.utils import logging

PATIENCE = 2.0  # seconds of loading before it is said what is loaded


@contextmanager
def no_bars() -> Iterator[None]:
    """transformers draws no progress bars inside the block; after it bars are as they were.

    Bars of downloads stay where stderr is a terminal: elsewhere all of them come in pieces.
    """
    shown, downloads = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    # the GGUF reader has a bar of its own, which no setting of transformers reaches
    gguf_reader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    reader_bar = gguf_reader.tqdm
    try:
        if shown:
            logging.disable_progress_bar()
        if downloads and sys.stderr.isatty():
            enable_progress_bars()
        gguf_reader.tqdm = logging.tqdm
        yield
    finally:
        gguf_reader.tqdm = reader_bar
        if shown:
            logging.enable_progress_bar()
        if not downloads:
            disable_progress_bars()


@contextmanager
def said_if_slow(text: str, seconds: float = PATIENCE) -> Iterator[None]:
    """Print a text on stderr, once, where the block takes longer than that."""
    timer = Timer(seconds, _say, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # stderr is closed, or its reader has gone
        print(text, file=sys.stderr, flush=True)
