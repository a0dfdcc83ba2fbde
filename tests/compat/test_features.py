"""The table of kinds: each is read rightly, or refused in a sentence that names why."""

import pytest
from peft import PeftType

from tests.compat.features import outcomes
from tests.compat.kinds import KINDS


@pytest.fixture(scope="module")
def results():
    return outcomes(KINDS)


def test_no_kind_is_wrong(results):
    """Each row is what kinds.py says: PEFT's own merge, or a sentence with the name."""
    assert [(kind.name, result.detail) for kind, result in results if result.kind == "WRONG"] == []


def test_every_peft_type_is_in_the_table(results):
    """Each peft_type of PEFT is read, or refused by its name."""
    said = " ".join(result.detail for _, result in results if result.kind == "refused")
    read = {"LORA", "OFT", "BOFT", "IA3", "LOHA", "LOKR", "DELORA"}
    assert {t.value for t in PeftType if f"'{t.value}'" not in said} == read
