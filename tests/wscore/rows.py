"""Rows of a sweep with known answers, as the tests of statistics share them."""

import numpy as np
import polars as pl

SAME = {"experiment": "t6", "model": "m", "behaviour": "honesty", "prompt_style": "v1"}
NULLABLE = {"family": pl.String, "k": pl.Int64, "seed": pl.Int64}


def group(
    margin,
    *,
    variant="full",
    family="lora",
    k=None,
    alpha=1.0,
    seed=0,
    dataset="claims",
    label=None,
    cluster=None,
    item=None,
):
    """One group of rows: items q00, q01, ... with labels +1, -1, ... and each its own cluster."""
    n = len(margin)
    fixed = SAME | {
        "dataset": dataset,
        "method": "weights",
        "variant": variant,
        "family": family,
        "k": k,
        "alpha": alpha,
        "seed": seed,
        "mass": 0.9,
        "flagged": False,
    }
    item = [f"q{i:02d}" for i in range(n)] if item is None else item
    return pl.DataFrame(
        {
            **{c: [v] * n for c, v in fixed.items()},
            "item": item,
            "cluster": item if cluster is None else cluster,
            "label": [1, -1] * (n // 2) if label is None else label,
            "margin": np.asarray(margin, float),
        },
        schema_overrides=NULLABLE,
    )


def base(margin, **fields):
    none = {"variant": "base", "family": None, "alpha": 0.0, "seed": None}
    return group(margin, **none, **fields)


def planted(gain, **fields):
    """A base of margin 0 and one variant whose gain per item is `gain`."""
    sign = np.asarray(fields.get("label", [1, -1] * (len(gain) // 2)))
    shared = {c: v for c, v in fields.items() if c in ("label", "cluster", "dataset", "item")}
    return pl.concat([base(np.zeros(len(gain)), **shared), group(gain * sign, **fields)])


def noise(n, *name):
    return np.random.default_rng([n, *name]).normal(size=n)


def line(table, **where):
    found = table.filter(**where)
    assert len(found) == 1
    return found.row(0, named=True)
