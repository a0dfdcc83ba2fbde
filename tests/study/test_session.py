"""The frame of an experiment: what is not known of an adapter's base is said and kept."""

import warnings

from tests.folders import tiny_folder
from wsrun.models.load import load_model
from wsrun.models.tiny import tiny_qwen3
from wsrun.study.options import Common
from wsrun.study.session import Session, read_pairs, run_record


def test_an_adapter_of_an_unknown_base_is_noted_once_and_in_the_record(tmp_path, tok, capsys):
    """Adapters without a record of their base: one line, no Python warning, and in the table."""
    made = tiny_folder(tmp_path, tiny_qwen3, tok)
    model, own_tok = load_model(made["model"])
    cfg = Common(families=("lora",), model=str(made["model"]), adapters=made["adapters"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pairs = read_pairs(model, cfg)
    printed = capsys.readouterr().out
    assert printed.count("note on lora-s0") == 1 and "base" in printed
    record = run_record(cfg, Session(model, own_tok, []), pairs)
    assert list(record["notes"]) == ["lora-s0"] and len(record["notes"]["lora-s0"]) >= 1
