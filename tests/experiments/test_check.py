"""The instrument check as a script: a table with provenance, and a sentence for each data set."""

from tests.conftest import ORGANISM, experiment
from wsrun.report.tables import read_table


def test_check_on_the_organism(tmp_path, capsys):
    """Both data sets are readable, in the table and in words."""
    script = experiment("check")
    cfg = script.Config(
        model=str(ORGANISM),
        data=str(ORGANISM),
        dilemmas=10,
        wordings=1,
        resamples=200,
        out=tmp_path,
    )
    script.main(cfg)
    table, meta = read_table(tmp_path / "check.parquet")
    assert table["dataset"].to_list() == ["claims", "dilemmas"]
    assert set(table["reads"]) == {"behaviour"} and meta["config"]["wordings"] == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "claims: these items can read the behaviour" in printed
    assert "dilemmas: these items can read the behaviour" in printed
