"""A pair of adapters that is trained once: what decided it is recorded beside it, and found again.

<folder>/pos and /neg, the two poles, and /training.json, a sealed record of request and result.
A pole that is finished waits beside the pair, in a hidden folder named by what was asked for, until
both are there: so a training that was killed finds it when it is started again.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore.files import read_json, write_whole
from wscore.sealed_json import content_sha256, seal, unseal
from wsrun.adapters.configs import Recipe
from wsrun.adapters.folders import read_folder, remove_folders, replace_folder
from wsrun.adapters.train import Curve, candidate, side_examples, train_candidates
from wsrun.data.pairs import Pair

VERSION = 1  # of what training computes; raise it where that changes beyond rounding
RECORD, CURVE = "training.json", "curve.json"
SIDES = ("pos", "neg")
Note = Callable[[str], None]


@dataclass(frozen=True)
class PairTraining:
    """One pair to train: everything that decides its bytes, and where it goes.

    base: sha256 of all weights of the model. validation: pairs of which the loss is taken, and by
    which the state is selected; none keeps the state of the last step.
    """

    model: PreTrainedModel
    tok: PreTrainedTokenizerBase
    base: str
    pairs: Sequence[Pair]
    validation: Sequence[Pair]
    recipe: Recipe
    family: str
    seed: int
    folder: Path
    base_name: str = ""

    def request(self) -> dict[str, Any]:
        """What is asked for, as JSON: two trainings of one request give one result.

        Texts count as tokens, with the model's chat template; `lr` is the family's own.
        """
        recipe = asdict(self.recipe) | {"lr": self.recipe.lr[self.family]}
        recipe["select"] = "loss" if self.validation else "last"
        if self.family != "delora":
            del recipe["delora_lambda"]
        texts = {"pairs": self.pairs, "validation": self.validation}
        plain = {
            "version": VERSION, "recipe": recipe, "family": self.family, "seed": self.seed,
            "base": self.base,
            **{name: self._tokens_sha256(pairs) for name, pairs in texts.items()},
            **{f"n_{name}": len(pairs) for name, pairs in texts.items()},
        }  # fmt: skip
        return json.loads(json.dumps(plain))

    def _tokens_sha256(self, pairs: Sequence[Pair]) -> str | None:
        sides = [side_examples(self.tok, pairs, side) for side in SIDES]
        return content_sha256(sides) if pairs else None


def kept_pair(
    asked: PairTraining, check: Callable[[Path], object]
) -> tuple[dict[str, Any] | None, str]:
    """(record, "") of a pair in place that is this training's and that `check` accepts.

    (None, reason) where there is one that is not kept; (None, "") where there is none, or one that
    carries no record.
    """

    def read(folder: Path) -> dict[str, Any] | None:
        record = _read(folder / RECORD)
        if any(record.get(k) != v for k, v in asked.request().items()):
            return None
        if record["files"] != _hashes(folder):
            raise ValueError(f"the files of {str(folder)!r} are not those of its {RECORD}")
        check(folder)
        return record

    if not (asked.folder / RECORD).is_file():
        return None, ""
    try:
        found = read_folder(asked.folder, read)
    except (OSError, ValueError) as error:
        return None, str(error)
    return found, "" if found else "it was trained with other options, pairs or weights"


def train_pair(
    asked: PairTraining,
    check: Callable[[Path], object],
    step_done: Note = lambda note: None,
    say: Note = lambda sentence: None,
    anew: bool = False,
) -> dict[str, Any]:
    """Train both poles, select their state, and put both in place; returns the record.

    With validation pairs, both poles take the state after the same step, the one with the least
    sum of both validation losses. dW = tau_pos - tau_neg compares two trainings, and must not
    compare a long with a short one: with a step of its own for each pole, the difference would
    hold what training does to any weights. Poles that another process has finished for the same
    request are taken over unless `anew`. `check` is called with the folder before it is in place;
    what it raises leaves the pair out. Raises ValueError where it cannot be written.
    """
    request, record = asked.request(), {}

    def write(new: Path) -> None:
        work = new / "states"
        curves = {s: _pole(asked, request, s, work / s, step_done, say, anew) for s in SIDES}
        step = selected_step(curves, asked.recipe.steps)
        for side in SIDES:
            candidate(work / side, step).rename(new / side)
        shutil.rmtree(work)
        check(new)
        record.update({**request, **_result(curves, step), "files": _hashes(new)})
        _write(new / RECORD, record)

    replace_folder(asked.folder, write)
    forget_poles(asked.folder)
    return record


def selected_step(curves: Mapping[str, Curve], last: int) -> int:
    """argmin_n sum over poles of the validation loss after n steps, the first of equal ones.

    `last` where there are no validation losses.
    """
    taken = [curve.validation for curve in curves.values()]
    return min(taken[0], key=lambda n: sum(v[n] for v in taken)) if taken[0] else last


def forget_poles(folder: Path) -> None:
    """Remove the finished poles that wait for a pair, whatever they were asked for."""
    remove_folders(folder.parent, f".{folder.name}.pole-")


def _pole(
    asked: PairTraining, request: dict, side: str, new: Path, step_done: Note, say: Note, anew: bool
) -> Curve:
    """The states of one pole in the folder `new`, from what waits or trained."""
    name = asked.folder.name
    key = content_sha256([request, asked.base_name])
    waiting = asked.folder.with_name(f".{name}.pole-{side}-{key[:16]}")
    if not anew and (curve := _finished_pole(waiting, new)):
        say(f"kept: {side} of {name} (trained before)")
        for _ in curve.losses:
            step_done(f"{name} {side} kept")
        return curve
    curve = train_candidates(
        asked.model, asked.tok, asked.pairs, asked.validation, side, asked.family, asked.recipe,
        new, seed=asked.seed, base_name=asked.base_name,
        step_done=lambda note: step_done(f"{name} {side} {note}"),
    )  # fmt: skip
    _write(new / CURVE, {**curve._asdict(), "files": _hashes(new)})
    replace_folder(waiting, lambda at: shutil.copytree(new, at, dirs_exist_ok=True))
    return curve


def _finished_pole(waiting: Path, new: Path) -> Curve | None:
    """The curve of a pole that waits, its states copied to `new`; None for none or a damaged one.

    Copied before it is checked, since another process may finish the pair and remove it.
    """
    try:
        read_folder(waiting, lambda at: shutil.copytree(at, new, dirs_exist_ok=True))
        content = _read(new / CURVE)
        (new / CURVE).unlink()
        if content["files"] == _hashes(new):
            by_step = {int(n): loss for n, loss in content["validation"].items()}
            return Curve(content["losses"], by_step)
    except (OSError, ValueError):
        pass
    shutil.rmtree(new, ignore_errors=True)
    return None


def _result(curves: Mapping[str, Curve], step: int) -> dict[str, Any]:
    return {
        "step": step,
        "losses": {side: curve.losses for side, curve in curves.items()},
        "validation_losses": {side: curve.validation for side, curve in curves.items()},
    }


def _hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder but the records of this module."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (RECORD, CURVE))
    return {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in files}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(seal(content), indent=1) + "\n"
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _read(path: Path) -> dict[str, Any]:
    return unseal(read_json(path), repr(str(path)))
