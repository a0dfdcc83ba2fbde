"""Tables of a benchmark with known gains, as scripts write them, for the tests of the report."""

import numpy as np
import polars as pl

from wscore.stats.contrasts import benchmark_table
from wscore.stats.schema import ROW_SCHEMA
from wsrun.report.joined import join
from wsrun.report.sources import Script, by_model, read_sources
from wsrun.report.tables import write_table
from wsrun.report.verdicts import verdict_table

CLUSTERS, REFERENCE = 24, {"variant": "dW", "family": "lora", "alpha": 2.0}
# variant: (method, family, alpha, mean gain, role); "same" moves items as dW does, up to noise
WEIGHTS = {
    "dW": ("weights", "lora", 2.0, 2.0, "selected"),
    "-dW": ("weights", "lora", -2.0, -2.0, "selected"),
    "zero": ("weights", "lora", 1.0, 0.0, "control"),
}
VECTORS = {
    "weak@layer 3": ("activation", None, 4.0, 1.0, "selected"),
    "same@all layers": ("activation", None, 1.0, 2.0, "selected"),
    "random": ("activation", None, 4.0, None, "control"),
}
PROMPTS = {"strong@<b>be_honest|": ("prompt", None, 1.0, 3.0, "selected")}


def rows_of(variants, model="tiny", skip=0, shift=0.0, name="x"):
    """Rows of the base and of variants: two items a cluster, gains of known mean."""
    lines = []
    for dataset in ("claims", "dilemmas"):
        draw = np.random.default_rng(len(dataset))
        base = draw.normal(size=(CLUSTERS, 2))
        noise = {v: np.random.default_rng(i).normal(size=base.shape)
                 for i, v in enumerate(variants)}  # fmt: skip
        for c in range(skip, CLUSTERS):
            for i, label in enumerate((1, -1)):
                own = [("base", "base", None, 0.0, None, 0.0)]
                for variant, (method, family, alpha, gain, _) in variants.items():
                    centred = noise[variant][c, i] - noise[variant].mean()
                    gains = {None: (gain or 0.0) + (0.3 * centred if gain else 0.0)}
                    if gain is None:  # draws around 0
                        gains = {s: 0.2 * (-1) ** s * centred for s in range(4)}
                    own += [(variant, method, family, alpha, s, g) for s, g in gains.items()]
                lines += [
                    {
                        "experiment": name, "model": model, "behaviour": "honest",
                        "dataset": dataset, "prompt_style": "chat", "method": method,
                        "family": family, "variant": variant, "alpha": alpha, "seed": s,
                        "item": f"{c}-{i}", "cluster": f"c{c}", "label": label,
                        "margin": base[c, i] + label * g + shift, "mass": 0.9, "flagged": False,
                    }
                    for variant, method, family, alpha, s, g in own
                ]  # fmt: skip
    return pl.DataFrame(lines, schema=ROW_SCHEMA)


def save(folder, name, variants, reference=REFERENCE, verdicts=(), **more):
    """The tables of a script of the benchmark."""
    rows = rows_of(variants, name=name, **more)
    roles = [(v, family, role, gain) for v, (_, family, _, gain, role) in variants.items()]
    names = ("variant", "family", "role", "validation")
    known = pl.DataFrame(roles, schema=dict.fromkeys(names[:3], pl.String) | {names[3]: float},
                         orient="row")  # fmt: skip
    table = benchmark_table(rows, reference, resamples=50).join(
        known, on=["variant", "family"], how="left", nulls_equal=True
    )
    table = table.with_columns(method_name=pl.col("variant").str.split("@").list.first())
    meta = {"argv": [f"experiments/{name}.py", "--model", "tiny"]}
    write_table(rows, folder / f"{name}.rows.parquet", meta)
    write_table(table, folder / f"{name}.parquet", meta)
    if verdicts:
        write_table(verdict_table(verdicts), folder / f"{name}.verdicts.parquet", meta)


def joined(folder, *names, chosen=None):
    """The one joined benchmark of the named scripts."""
    sources = read_sources(folder, dict.fromkeys(names, Script("?", "benchmark")))
    (found,) = [join(s, 200, chosen) for s in by_model(sources.values()).values()]
    return found
