"""Options of scripts: odd values are refused by name before anything is loaded, or are valid."""

from wsrun.script import check_values

import contextlib
import io
import math
import random
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import tyro

from tests.conftest import ORGANISM, experiment
from tests.fuzz.cases import Border, Case

SCRIPTS = ("t0_train", "t1_activation", "t2_dilemmas", "t3_prompts", "t4_seeds", "t5_replicate",
           "t6_shared_svd", "t7_sites", "t8_coordinates", "t9_synthetic", "t10_svd_steering",
           "t11_degradation", "t13_planted", "t14_monitor", "report")  # fmt: skip
FOLDERS = ("out", "cache_dir", "adapters", "deltas", "pairs_cache", "svd_cache", "tables")
MODEL = "no-such-model"
TRAINING = ("t0_train", "t5_replicate", "t13_planted")  # others read adapters that are there
LOADED = (MODEL, "none of the tables", "adapter: no folder")
"""what the first thing that is read after the checks is refused with"""
NUMBERS = ("0", "-1", "1", "2", "0.5", "-0.0", "nan", "inf", "-inf", "1e400", "1e308",
           "99999999999", "-99999999999999999999", "1_000", "0x10", "½", "１")  # fmt: skip
TEXTS = ("", " ", "x", "[/x]", "é", "\x1b[31m", "a" * 3000, "a" * 300, "../..", "None", "0/0",
         "2/1", "0/2", "-1/2", "1/2/3", "kl:nan", "kl:0.1", "norm:-1", "norm:", "lora", "ia3",
         "{x}", "%s", "\udcff", "\n")  # fmt: skip
NOT_VARIED = ("model", "executor", "device", "deltas", "full")
COUNTS = ("resamples", "steps", "n_random", "draws", "K", "max_new_tokens", "dilemmas", "members",
          "workers", "top", "wordings", "cost_limit")  # fmt: skip


def prepare(_: Path) -> dict[str, Any]:
    return {name: experiment(name) for name in SCRIPTS}


def case(rng: random.Random, folder: Path, scripts: dict[str, Any]) -> Case:
    name = rng.choice(SCRIPTS)
    script = scripts[name]
    known = {f.name: f for f in fields(script.Config)}
    option = rng.choice([n for n in known if n not in NOT_VARIED])
    values = odd_values(rng, known[option].type, option, folder)
    flag = f"--{option.replace('_', '-')}"
    usual = {n: str(folder / n) for n in FOLDERS if n in known}
    usual |= {"model": MODEL} if "model" in known else {}
    usual |= {"data": str(ORGANISM)} if "data" in known else {}
    if "adapters" in known and name not in TRAINING:
        usual["adapters"] = str(ORGANISM / "adapters")
    args = [w for n, v in usual.items() if n != option for w in (f"--{n.replace('_', '-')}", v)]

    def read() -> Any:
        try:
            with silent():
                cfg = tyro.cli(script.Config, args=[*args, flag, *values])
        except SystemExit:
            raise ValueError(f"{flag} is refused by the parser of flags") from None
        with silent():
            try:
                check_values(cfg)
                script.main(cfg)
            except ValueError as error:
                if not any(text in str(error) for text in LOADED):
                    raise
        return getattr(cfg, option)

    names = (flag, option, f"--{option}", *(f"'{v}{end}" for v in values for end in "'/"))
    return Case(f"{name} {flag} {' '.join(values)[:80]!r}", read, names, lambda v: valid(option, v))


@contextlib.contextmanager
def silent() -> Iterator[None]:
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def odd_values(rng: random.Random, kind: Any, option: str, folder: Path) -> list[str]:
    """Words after a flag: odd ones of its kind, several of them for a list."""
    if kind is bool:
        return [rng.choice(TEXTS)]
    if kind is Path or "Path" in str(kind) or option in FOLDERS:
        (folder / "file").write_text("mine", encoding="utf-8")
        return [rng.choice([str(folder / "file"), str(folder / "file" / "x"), str(folder / "[/x]"),
                            str(folder / ("n" * 300)), "/proc/x", "/dev/null"])]  # fmt: skip
    pool = NUMBERS if "int" in str(kind) or "float" in str(kind) else TEXTS
    if "tuple" in str(kind):
        words = [rng.choice(pool) for _ in range(rng.choice([0, 1, 1, 2, 3]))]
        return [*words, words[0]] if words and rng.random() < 0.2 else words
    return [rng.choice(pool)]


def valid(option: str, value: Any) -> bool:
    """Whether a script may go on with a value."""
    if isinstance(value, tuple):
        several = len(set(value)) == len(value) and len(value) > 0
        return several and all(valid(option, v) for v in value)
    if isinstance(value, float):
        return math.isfinite(value)
    if option in COUNTS:
        return value is None or value > 0
    if option == "nulls":
        return value >= 0
    return True


BORDER = Border("flags", prepare, case)
