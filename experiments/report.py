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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from wscore.effect import effect_table
from wscore.store import write_whole
from wsrun import claims, figures
from wsrun.benchmark import DW, base_lines, span
from wsrun.console import console, guarded
from wsrun.document import Block, Code, Figure, Grid, Heading, Points, Text, html, markdown
from wsrun.joined import LINE, Joined, Source, by_model, join, of_benchmark, read_sources
from wsrun.tables import plain, provenance, read_table, write_table

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
BENCHMARK = ("t1_activation", "t3_prompts", "t9_synthetic", "t10_svd_steering", "t5_replicate")
BENCHMARK += ("t12_larger",)
ANALYSIS = ("t6_shared_svd", "t7_sites", "t8_coordinates")
COSTS = ("nll", "perplexity", "accuracy")
WORDS = {"nll": "text, nats a token", "accuracy": "accuracy elsewhere", "kl": "KL, nats"}
WORDS |= {"perplexity": "perplexity", "dose_norm": "norm of the dose"}
HEADS = ("data set", "way", "chosen", "method", "alpha", "effect, nats", "q", "minus dW, nats")
HEADS += ("q", "dW, by the rule", "bias", "discrim.", "mass", "flagged")


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
    sources = [found[n] for n in BENCHMARK if n in found and of_benchmark(found[n])]
    joined = {at: join(s, cfg.resamples) for at, s in by_model(sources).items()}
    figure = dose_response(cfg, found)
    answer = answers(found, joined)
    blocks = [Heading(TITLE, 1), Heading("Answer"), Points(answer)]
    blocks += [b for at, j in joined.items() for b in benchmark(at, j, found)]
    blocks += [Heading("Dose and response"), figure]
    blocks += [Heading("What each part shows"), *shown(cfg, found)]
    blocks += [Heading("Where the numbers come from"), *origin(found)]
    for path in write(cfg, blocks, joined, found):
        console.print(f"written {path}", highlight=False)
    for sentence in answer:
        console.print(f"- {sentence}", markup=False, highlight=False)
    missing = [n for n in SCRIPTS if n not in found]
    console.print(f"next: {command(missing[0])}" if missing else "every table is there")


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
        if name in found and (text := claims.headline(found[name].meta)):
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


def benchmark(at: tuple[str, str], j: Joined, found: Mapping[str, Source]) -> list[Block]:
    """The table of one model, the sentences of the rule, and the controls."""
    table = j.table.sort("dataset", "role", "effect", descending=[False, True, True])
    extra = [c for c in ("kl", "dose_norm") if c in table.columns]
    if (cost := costs(at, found)) is not None:
        table = table.join(cost, on=LINE, how="left", nulls_equal=True, maintain_order="left")
        extra += COSTS
    rivals = claims.rivals(table)
    beside = set(rivals.select("dataset", *LINE).rows())
    lines = [line(r, extra, beside) for r in table.iter_rows(named=True)]
    own = [i for i, r in enumerate(table.iter_rows(named=True)) if is_reference(r, j)]
    items = table.group_by("dataset", maintain_order=True).first()
    sizes = ", ".join(
        f"{r['dataset']} {r['n']} items in {r['clusters']} clusters"
        for r in items.iter_rows(named=True)
    )
    caption = (
        f"Model {at[0]}, behaviour {at[1]}; {sizes}. effect: mean rise of the log odds of the "
        "answer that shows the behaviour, against the base. Brackets: 95 % cluster-bootstrap "
        "intervals. q: Benjamini-Hochberg over the whole table. The rule is told from dW. "
        "mass: probability on Yes and No. Set off: the dW that all are measured against."
    )
    duels = [claims.duel(r) for r in rivals.iter_rows(named=True)]
    return [
        Heading(f"Benchmark: {at[0]}, {at[1]}"),
        Grid((*HEADS, *(WORDS.get(c, c) for c in extra), "from"), lines, caption, own),
        Heading("dW against every way, by the rule", 3),
        Points(duels or ["No way but dW was selected in these tables."]),
        Heading("Controls", 3),
        Points(claims.controls(table) or ["The tables hold no controls."]),
    ]


def is_reference(r: Mapping, j: Joined) -> bool:
    return r["variant"] == DW and (r["family"], r["alpha"]) == j.reference


def line(r: Mapping, extra: Sequence[str], rivals: Collection[tuple]) -> list[str]:
    """The cells of one line; the rule is told of rivals only."""
    rule = claims.verb(r) if tuple(r[c] for c in ("dataset", *LINE)) in rivals else ""
    chosen = r["variant"].partition("@")[2] or r["family"] or ""
    return [
        r["dataset"],
        r["way"] + (" (control)" if r["role"] == "control" else ""),
        chosen + ("" if r["k"] is None else f" k = {r['k']}"),
        r["method"],
        f"{r['alpha']:g}",
        span(r, "effect", "lo", "hi"),
        claims.q_value(r["q"]),
        span(r, "diff", "diff_lo", "diff_hi"),
        claims.q_value(r["diff_q"]),
        rule,
        *(number(r[c]) for c in ("bias", "discrimination", "mass", "flagged_share")),
        *(cost(r, c) for c in extra),
        r["source"] or "",
    ]


def number(value: object) -> str:
    """Two digits after the point, a dash for none."""
    return (
        f"{round(value, 2) + 0.0:.2f}"
        if isinstance(value, float)
        else "-"
        if value is None
        else str(value)
    )


def cost(r: Mapping, column: str) -> str:
    """A value with its interval, where it has one, to three digits after the point."""
    value, ends = r[column], [r.get(f"{column}_{end}") for end in ("lo", "hi")]
    if value is None:
        return "-"
    sign = "+" if f"{column}_lo" in r else ""
    interval = "" if None in ends else f" [{ends[0]:+.3f}, {ends[1]:+.3f}]"
    return f"{value:{sign}.3f}{interval}"


def costs(at: tuple[str, str], found: Mapping[str, Source]) -> pl.DataFrame | None:
    """What t11 measured of each line of a model beside its effect; None without it."""
    if "t11_degradation" not in found:
        return None
    table = found["t11_degradation"].table.filter(model=at[0], behaviour=at[1])
    ends = [f"{c}_{end}" for c in ("nll", "accuracy") for end in ("lo", "hi")]
    if table.is_empty() or not {*LINE, *COSTS, *ends} <= set(table.columns):
        return None
    return table.select(*LINE, *COSTS, *ends).unique(LINE, maintain_order=True)


def cost_grid(table: pl.DataFrame) -> Grid:
    """The lines of t11 with their costs."""
    lines = [
        [r["way"], claims.setting(r), *(cost(r, c) for c in COSTS)]
        for r in table.unique(LINE, maintain_order=True).iter_rows(named=True)
    ]
    caption = "Change against the base: nats a token of neutral texts, share of right answers."
    return Grid(("way", "chosen", *(WORDS[c] for c in COSTS)), lines, caption)


def dose_response(cfg: Config, found: Mapping[str, Source]) -> Block:
    """The figure of t2's doses, or of the first table with several; else why there is none."""
    for name in dict.fromkeys(("t2_dilemmas", *SCRIPTS)):
        rows = found[name].rows if name in found else None
        table = None if rows is None else curves(rows, cfg.resamples)
        if table is None:
            continue
        question = "How does the effect of dW grow with its dose?"
        with TemporaryDirectory() as folder:
            path = Path(folder) / "report.doses.parquet"
            said = figures.doses(table, path, question)
            svg = path.with_suffix(".svg")
            if not svg.exists():
                return Text(f"No figure: {said}.")
            words = f"From {name}: effect by dose, bands are 95 % cluster-bootstrap intervals."
            return Figure(svg.name, svg.read_bytes(), question, words)
    return Text(f"No table has several doses of dW; {command('t2_dilemmas')} makes one.")


def curves(rows: pl.DataFrame, resamples: int) -> pl.DataFrame | None:
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
        said = claims.parts(s.meta, s.table)
        if name == "t13_planted" and (path := cfg.tables / f"{name}.verdicts.parquet").exists():
            said += claims.planted(read_table(path)[0])
        if name in BENCHMARK and of_benchmark(s):
            said += claims.added(s.table)
            said.append("Its selected lines and its controls stand in the benchmark table.")
        blocks.append(Heading(f"{s.short}: {SCRIPTS[name]}", 3))
        if name == "t11_degradation" and set(COSTS) <= set(s.table.columns):
            blocks.append(cost_grid(s.table.filter(pl.col("role") == "selected")))
        else:
            blocks.append(Points(said or ["No rule is recorded in this table."]))
    return blocks


def origin(found: Mapping[str, Source]) -> list[Block]:
    """The tables with their commands, commits and hashes; the commands of those missing."""
    lines = [
        [n, str(len(s.table)), digest(s.path), (s.meta.get("commit") or "unknown")[:10], argv(s)]
        for n, s in found.items()
    ]
    heads = ("table", "lines", "sha256", "commit", "command")
    blocks: list[Block] = [Grid(heads, lines, "sha256: the first 16 digits, of the parquet file.")]
    if missing := [n for n in SCRIPTS if n not in found]:
        blocks.append(Text("Missing, and what makes them:"))
        blocks.append(Code([command(n) for n in missing]))
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
