"""The samples script end to end: its base is the model's own, and the report shows its table."""

from tests.conftest import ORGANISM, experiment, read_command
from wsrun.models.generate import generate
from wsrun.models.load import load_model
from wsrun.report.tables import read_table
from wsrun.study.samples import askable, draw_prompts


def test_samples_of_the_organism(tmp_path, capsys):
    """one base answer a prompt, which is the base's greedy one; the record names the prompts; the
    page has them"""
    script, report = experiment("samples"), experiment("report")
    where = dict(model=str(ORGANISM), data=str(ORGANISM), adapters=ORGANISM / "adapters")
    script.main(script.Config(**where, n=3, prompt_seed=2, max_new_tokens=12, out=tmp_path))
    printed = capsys.readouterr().out
    table, meta = read_table(tmp_path / "samples.parquet")
    prompts = draw_prompts(askable(str(ORGANISM)), 3, 2)
    assert meta["prompts"] == [p.id for p in prompts] == table.filter(alpha=0)["item"].to_list()
    model, tok = load_model(ORGANISM)
    talks = [p.turns for p in prompts]
    own = generate(model, tok, talks, seed=0, temperature=0.0, max_new_tokens=12)
    assert table.filter(alpha=0)["answer"].to_list() == [a.text for a in own]
    assert sorted(table["alpha"].unique()) == [-1, 0, 1, 2] and len(table) == 12
    assert all(p.turns[0]["content"] in printed for p in prompts)
    (line,) = [x for x in printed.splitlines() if x.startswith("next: ")]
    assert read_command(line.removeprefix("next: "))[0] == "t2_dilemmas"
    report.main(report.Config(tables=tmp_path, out=tmp_path / "page", resamples=50))
    text = (tmp_path / "page" / "report.md").read_text()
    assert "## What it says" in text and prompts[0].turns[0]["content"] in text
