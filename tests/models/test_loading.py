"""Loading says nothing in pieces: no bars of transformers, and a line of ours where it is slow."""

import time

from huggingface_hub.utils import are_progress_bars_disabled
from transformers import modeling_gguf_pytorch_utils as gguf_reader
from transformers.utils import logging

from tests.conftest import ORGANISM
from wsrun.models.load import load_model
from wsrun.models.loading import no_bars, said_if_slow


def state():
    return logging.is_progress_bar_enabled(), are_progress_bars_disabled(), gguf_reader.tqdm


def test_a_model_loads_without_bars(capfd):
    """stderr is empty of bars, and bars are afterwards as they were"""
    before = state()
    load_model(ORGANISM)
    assert "Loading weights" not in capfd.readouterr().err and state() == before


def test_bars_come_back_as_they_were():
    """also after an error, and where the user had turned them off"""
    before = state()
    try:
        with no_bars():
            assert not logging.is_progress_bar_enabled()
            assert list(gguf_reader.tqdm([1, 2], desc="Converting")) == [1, 2]
            raise KeyError
    except KeyError:
        assert state() == before
    logging.disable_progress_bar()
    try:
        off = state()
        with no_bars():
            pass
        assert state() == off
    finally:
        logging.enable_progress_bar()


def test_only_what_is_slow_is_said(capfd):
    """a block that outlasts the patience says its text once; a quick one nothing"""
    with said_if_slow("loading x", 0.0):
        time.sleep(0.5)
    with said_if_slow("loading y", 60.0):
        pass
    assert capfd.readouterr().err == "loading x\n"
