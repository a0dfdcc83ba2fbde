"""What to run next: the command of a script that follows, on the same model, data and adapters.

Scripts do not import each other, so which options of one mean the same to the next stands here; the
tests hold it against what each script parses.
"""

import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from wsrun.report.console import console

SHARED = ("model", "data", "adapters", "families", "seeds", "dtype", "device", "out")
# scripts that do not take all of them: their flag -> the field it is read from
TAKES = {
    "t0_train": {"model": "out", "data": "out"},  # the organism's builder writes both there
    # plants adapters of its own, under seeds of its own
    "t13_planted": {n: n for n in SHARED if n not in ("adapters", "families", "seeds")},
    # has a seed of the fine-tunes and seeds of the directions, and scores nothing
    "t14_monitor": {n: n for n in SHARED if n not in ("data", "seeds")},
    "report": {"tables": "out"},
}


def following(cfg: Any, script: str, why: str = "", always: Sequence[str] = ()) -> str:
    """python experiments/<script>.py, the flags of `cfg` that it takes too, and why as a comment.

    A flag is there where its value is not its default; those in `always` are there in any case, as
    the next script has another default.
    """
    words = ["python", f"experiments/{script}.py"]
    usual = {f.name: f.default for f in fields(cfg)}
    for flag, name in TAKES.get(script, {n: n for n in SHARED}).items():
        if name in usual and (name in always or getattr(cfg, name) != usual[name]):
            value = getattr(cfg, name)
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words) + (f"  # {why}" if why else "")


def say_next(cfg: Any, script: str, why: str = "", always: Sequence[str] = ()) -> None:
    """Print that command on one line, as it has to be typed."""
    say(following(cfg, script, why, always))


def say(command: str) -> None:
    """next: <command>, neither wrapped nor read as markup."""
    console.out(f"next: {command}", highlight=False)
