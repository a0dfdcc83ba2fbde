"""Verdict tables: one shape, written and read again, and the sentences made of them."""

import polars as pl
import pytest

from wsrun.report.tables import write_table
from wsrun.report.verdicts import (
    RuleResult,
    claim_sentences,
    headline,
    planted,
    read_verdicts,
    verdict_table,
)

CORE = RuleResult("claims", "shared core", None, "supported", "it is shared")
BLOCKS = [
    RuleResult("claims", "blocks", None, "refuted", "none alone"),
    RuleResult("claims", "blocks", "lora", "supported", "mlp alone", "mlp"),
    RuleResult("claims", "blocks", "ia3", "undetermined", "closest is mlp"),
]


@pytest.fixture
def table():
    """Retained shares: shared 0.8, 0.9 kept, 0.1, 0.2 left; mlp 0.75, 0.5 kept."""
    shares = {"keep_shared": (0.8, 0.9), "drop_shared": (0.1, 0.2), "keep_mlp": (0.75, 0.5)}
    lines = [
        ("claims", family, variant, share)
        for variant, both in shares.items()
        for family, share in zip(("lora", "ia3"), both, strict=True)
    ]
    names = ["dataset", "family", "variant", "retained"]
    return pl.DataFrame(lines, schema=names, orient="row")


def test_round_trip(tmp_path):
    """read_verdicts(verdict_table(r)) = r, also of no result at all"""
    for i, results in enumerate(([CORE, *BLOCKS], [])):
        path = write_table(verdict_table(results), tmp_path / f"{i}.verdicts.parquet", {})
        assert read_verdicts(path) == results


def test_refusals(tmp_path):
    """an outcome that is none, and a table of another shape, are named"""
    with pytest.raises(ValueError, match=r"supported, refuted, undetermined, got \['yes'\]"):
        verdict_table([CORE._replace(outcome="yes")])
    path = write_table(pl.DataFrame({"claim": ["x"]}), tmp_path / "t.verdicts.parquet", {})
    with pytest.raises(ValueError, match=r"t\.verdicts\.parquet' lacks the column 'dataset'"):
        read_verdicts(path)


def test_sentences_carry_shares(table):
    """lowest to highest share over families; of one family its own; families by outcome"""
    assert claim_sentences([CORE, *BLOCKS], table) == [
        "claims, shared core: supported: it is shared (shared: 0.80 to 0.90 kept, 0.10 to 0.20 "
        "left)",
        "claims, blocks: refuted: none alone; by family: supported in lora (mlp: 0.75 kept), "
        "undetermined in ia3",
    ]
    assert headline([CORE, *BLOCKS]) == "supported: claims/shared core; refuted: claims/blocks"
    assert claim_sentences([], table) == [] and headline([]) == ""


def test_families_alone_speak_for_themselves(table):
    """no verdict over all families and no part: each family's own sentence"""
    single = [r._replace(part=None) for r in BLOCKS[1:]]
    assert claim_sentences(single, table.drop("retained")) == [
        "claims, blocks, lora: supported: mlp alone",
        "claims, blocks, ia3: undetermined: closest is mlp",
    ]


def test_planted_rates():
    """5 of 5 found, 1 of 4 false: rates with Wilson's interval, and the disagreement by name"""
    line = {"plant": "p", "seed": 0, "rule": "layers", "outcome": "supported", "sentence": "s"}
    lines = [line | {"expected": "supported", "agree": True}] * 5
    lines += [line | {"expected": "not supported", "agree": a} for a in (True, True, True, False)]
    # Wilson, z = 1.96: 5/5 from 1/(1 + z^2/5) = 0.57; 1/4: (0.25 + 0.48 -+ 0.654)/1.96
    assert planted(pl.DataFrame(lines)) == [
        "true claims that were found: 5 of 5, 1.00 [0.57, 1.00]",
        "false claims that were supported: 1 of 4, 0.25 [0.05, 0.70]",
        "disagrees with the truth: p, seed 0, layers: supported; s",
    ]


def test_planted_rates_of_several_data_sets():
    """those of each data set by itself, after its name: 1 of 1 and 0 of 1, not 1 of 2"""
    line = {"plant": "p", "seed": 0, "rule": "layers", "outcome": "supported", "sentence": "s"}
    line |= {"expected": "supported"}
    lines = [line | {"dataset": d, "agree": d == "a"} for d in ("a", "b")]
    found = planted(pl.DataFrame(lines))
    assert [s.partition(",")[0] for s in found[:2]] == [
        "a: true claims that were found: 1 of 1",
        "b: true claims that were found: 0 of 1",
    ]
    assert planted(pl.DataFrame(lines[:1]))[0].startswith("true claims that were found: 1 of 1")
