"""What do all tables say together, in one page?

Question:   does dW beat prompting and activation steering on the same rows, and which part of dW
            carries the behaviour?
Prediction: none; this script measures nothing, it joins and reads.
Rule:       dW beats a way where the 95 % interval of their paired difference excludes 0; the other
            rules are those of the scripts, as their tables record them.

    python experiments/report.py
    python experiments/report.py --tables artifacts/tables --out artifacts/report

Reads the tables that are there and names those that are not, with the command that makes them. The
lines of t1, t3, t9 and t10 (t5 and t12 for other models) become one table: their items and the
base's margins must agree, a line that several scripts scored stands once, and effects, differences
and q are computed anew over all of it. Writes report.md, report.html (one file, opens without a
network), report.parquet (the joined table), and the figure beside report.md.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from wscore.effect import effect_table
from wscore.store import write_whole
from wsrun.report import claims, curves, sheet, verdicts
from wsrun.report.console import console, guarded
from wsrun.report.document import Block, Code, Figure, Grid, Heading, Points, Text, html, markdown
from wsrun.report.joined import Joined, Source, by_model, join, of_benchmark, read_sources
from wsrun.report.tables import plain, provenance, read_table, write_table
from wsrun.score.names import DW
from wsrun.study.controls import base_lines
from wsrun.study.next_command import following, say
from wsrun.study.options import Common

TITLE = "Weight steering: does dW beat the baselines, and which part of it carries the behaviour?"
SCRIPTS = {
    "t1_activation": "Does dW beat adding vectors to activations?",
    "t2_dilemmas": "How do the families do on all dilemmas, and at which dose?",
    "t3_prompts": "Does dW beat prompts?",
    "t4_seeds": "Do families differ more than the seeds of one family do?",
    "t5_replicate": "Does the benchmark hold on another model?",
    "t6_shared_svd": "Do the families share one subspace that carries the behaviour?",
    "t7_sites": "Which layers and modules of dW carry the behaviour?",
    "t8_coordinates": "Which singular directions, or coordinates of the adapter, carry it?",
    "t9_synthetic": "Does a constructed change do what a trained one does?",
    "t10_svd_steering": "Does steering the base's own singular directions do it?",
    "t11_degradation": "What does steering cost elsewhere?",
    "t12_larger": "Does the benchmark hold on a larger model?",
    "t13_planted": "Do the rules find what was planted, and only that?",
    "t14_monitor": "How far does a fine-tune move along a behaviour direction?",
}
BENCHMARK = ("t1_activation", "t3_prompts", "t9_synthetic", "t10_svd_steering")
REPLICATIONS = ("t5_replicate", "t12_larger")
ANALYSIS = ("t6_shared_svd", "t7_sites", "t8_coordinates")


@dataclass(frozen=True)
class Config:
    """Options of the report."""

    tables: Path = Path("artifacts/tables")
    """folder of the tables to read"""
    out: Path = Path("artifacts/report")
    """folder that receives report.md, report.html, report.parquet and the figure"""
    resamples: int = 2000
    """bootstrap resamples"""


def main(cfg: Config) -> None:
    """Read, join, decide, draw; then write all files, or none."""
    if cfg.resamples < 1:
        raise ValueError(f"report: --resamples {cfg.resamples} asked; it must be 1 or more")
    found = read_sources(cfg.tables, SCRIPTS)
    if not found:
        raise ValueError(
            f"report: none of the tables is in {str(cfg.tables)!r}; run python "
            "experiments/t1_activation.py, or name their folder with --tables"
        )
    joined = benchmarks(cfg, found)
    figure = dose_response(cfg, found)
    answer = answers(found, joined)
    blocks = [Heading(TITLE, 1), Heading("Answer"), Points(answer)]
    costly = found["t11_degradation"].table if "t11_degradation" in found else None
    blocks += [b for at, j in joined.items() for b in sheet.benchmark(at, j, costly)]
    blocks += [Heading("Dose and response"), figure]
    blocks += [Heading("What each part shows"), *shown(cfg, found)]
    same = of_first(cfg, found)
    missing = [following(same, n) for n in SCRIPTS if n not in found]
    blocks += [Heading("Where the numbers come from"), *origin(found, missing)]
    for path in write(cfg, blocks, joined, found):
        console.print(f"written {path}", highlight=False)
    for sentence in answer:
        console.print(f"- {sentence}", markup=False, highlight=False)
    if missing:
        say(missing[0])
    else:
        console.print("every table is there")


def benchmarks(cfg: Config, found: Mapping[str, Source]) -> dict[tuple[str, str], Joined]:
    """(model, behaviour) -> its joined benchmark; replications count for models of their own."""
    first, again = (
        by_model(found[n] for n in names if n in found and of_benchmark(found[n]))
        for names in (BENCHMARK, REPLICATIONS)
    )
    joined = {at: join(s, cfg.resamples) for at, s in (again | first).items()}
    for at in set(first) & set(again):
        names = " and ".join(s.name for s in again[at])
        joined[at].remarks.append(f"{names}: this model again; no line of it is in the table.")
    return {at: joined[at] for at in (first | again)}


def of_first(cfg: Config, found: Mapping[str, Source]) -> Common:
    """The model, data and adapters of the first table that names them, and the folder of tables."""
    names = ("model", "data", "adapters", "dtype", "device")
    configs = (s.meta.get("config", {}) for s in found.values())
    first = next((c for c in configs if c.keys() >= {*names}), {})
    own: dict[str, Any] = {n: first[n] for n in names if first}
    own |= {n: Path(own[n]) for n in ("data", "adapters") if first}
    return Common(**own, out=cfg.tables)


def command(name: str) -> str:
    """What makes a table."""
    return f"python experiments/{name}.py"


def answers(found: Mapping[str, Source], joined: Mapping[tuple[str, str], Joined]) -> list[str]:
    """The answer to both questions, what limits it, and what is missing."""
    said = []
    for (model, behaviour), j in joined.items():
        many = f"{model}, {behaviour}: " if len(joined) > 1 else ""
        said += [many + sentence for sentence in (*claims.answers(j), *j.remarks)]
    if not joined:
        said.append(f"Does dW beat the baselines? Not answered: {command('t1_activation')} first.")
    for name in ANALYSIS:
        if name in found and (text := verdicts.headline(found[name].meta)):
            said.append(f"{SCRIPTS[name]} {text[0].upper()}{text[1:]}.")
    models = {m for s in found.values() for m in s.table["model"].drop_nulls().unique()}
    if any(Path(m).name == "organism" for m in models):
        said.append(
            "The organism is a small model made for this repository: what is found on it checks "
            "the instruments and is no evidence about language models."
        )
    if missing := [n for n in SCRIPTS if n not in found]:
        said.append(f"Missing tables: {', '.join(missing)}; the last section says what makes them.")
    return said


def dose_response(cfg: Config, found: Mapping[str, Source]) -> Block:
    """The figure of t2's doses, or of the first table with several; else why there is none."""
    for name in dict.fromkeys(("t2_dilemmas", *SCRIPTS)):
        rows = found[name].rows if name in found else None
        table = None if rows is None else dose_curves(rows, cfg.resamples)
        if table is None:
            continue
        question = "How does the effect of dW grow with its dose?"
        with TemporaryDirectory() as folder:
            path = Path(folder) / "report.doses.parquet"
            said = curves.doses(table, path, question)
            svg = path.with_suffix(".svg")
            if not svg.exists():
                return Text(f"No figure: {said}.")
            words = f"From {name}: effect by dose, bands are 95 % cluster-bootstrap intervals."
            return Figure(svg.name, svg.read_bytes(), question, words)
    return Text(f"No table has several doses of dW; {command('t2_dilemmas')} makes one.")


def dose_curves(rows: pl.DataFrame, resamples: int) -> pl.DataFrame | None:
    """The effect of each family's dW at every dose of one model; None where all have a single one.

    "-dW" at alpha -2 is dW at -2. A data set that only repeats the items of another is left out.
    """
    first = rows.select("model", "behaviour").row(0, named=True)
    base = rows.filter(**first, alpha=0)
    groups = base.group_by("dataset").agg(pl.col("item").sort()).sort("dataset")
    datasets = groups.unique("item", keep="first", maintain_order=True)["dataset"].to_list()
    whole = pl.col("variant").replace({f"-{DW}": DW, "full": DW})
    steered = rows.filter(**first, method="weights").with_columns(variant=whole)
    steered = steered.filter(pl.col("family").is_not_null(), variant=DW)
    several = steered.group_by("family").agg(pl.col("alpha").n_unique()).filter(pl.col("alpha") > 1)
    if several.is_empty():
        return None
    kept = steered.filter(pl.col("family").is_in(several["family"].to_list()))
    kept = kept.unique(["dataset", "family", "alpha", "seed", "item"], maintain_order=True)
    both = pl.concat([base, kept]).filter(pl.col("dataset").is_in(datasets))
    origin = base_lines(both).drop("family").join(several.select("family"), how="cross")
    table = effect_table(both, resamples=resamples)
    return pl.concat([table, origin], how="diagonal_relaxed")


def shown(cfg: Config, found: Mapping[str, Source]) -> list[Block]:
    """Per table: its question, and what its rules said."""
    blocks: list[Block] = []
    for name, s in found.items():
        said = verdicts.parts(s.meta, s.table)
        if name == "t13_planted" and (path := cfg.tables / f"{name}.verdicts.parquet").exists():
            said += verdicts.planted(read_table(path)[0])
        if of_benchmark(s) and {"over", "over_diff"} <= set(s.table.columns):
            said += claims.added(s.table)
        if name in REPLICATIONS and of_benchmark(s):
            said += [claims.duel(r) for r in claims.rivals(s.table).iter_rows(named=True)]
        if name in BENCHMARK and of_benchmark(s):
            said.append("Its selected lines and its controls stand in the benchmark table.")
        blocks.append(Heading(f"{s.short}: {SCRIPTS[name]}", 3))
        if name == "t11_degradation" and set(sheet.COSTS) <= set(s.table.columns):
            blocks.append(sheet.cost_grid(s.table.filter(pl.col("role") == "selected")))
        else:
            blocks.append(Points(said or ["No rule is recorded in this table."]))
    return blocks


def origin(found: Mapping[str, Source], missing: Sequence[str]) -> list[Block]:
    """The tables with their commands, commits and hashes; the commands that make those missing."""
    lines = [
        [n, str(len(s.table)), digest(s.path), (s.meta.get("commit") or "unknown")[:10], argv(s)]
        for n, s in found.items()
    ]
    heads = ("table", "lines", "sha256", "commit", "command")
    blocks: list[Block] = [Grid(heads, lines, "sha256: the first 16 digits, of the parquet file.")]
    if missing:
        blocks += [Text("Missing, and what makes them:"), Code(missing)]
    return blocks


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()[:16]


def argv(s: Source) -> str:
    """The command that made a table, as its provenance has it."""
    made = s.meta.get("argv")
    return shlex.join(["python", *map(str, made)]) if made else "unknown"


def write(
    cfg: Config,
    blocks: Sequence[Block],
    joined: Mapping[tuple[str, str], Joined],
    found: Mapping[str, Source],
) -> list[Path]:
    """All files, each under a temporary name first; the texts are made before any is written."""
    texts = {"report.md": markdown(blocks), "report.html": html(TITLE, blocks)}
    files = {name: text.encode() for name, text in texts.items()}
    files |= {b.name: b.svg for b in blocks if isinstance(b, Figure)}
    paths = []
    if joined:
        table = pl.concat([j.table for j in joined.values()], how="diagonal_relaxed")
        hashes = {name: sha256(s.path.read_bytes()).hexdigest() for name, s in found.items()}
        made = provenance(plain(asdict(cfg)), tables=hashes)
        paths.append(write_table(table, cfg.out / "report.parquet", made))
    for name, content in files.items():
        paths.append(write_whole(cfg.out / name, lambda tmp, c=content: tmp.write_bytes(c)))
    return paths


if __name__ == "__main__":
    guarded(main, Config)
