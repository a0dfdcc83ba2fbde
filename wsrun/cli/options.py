"""Options of the subcommands of wsrun, and what is refused before anything is loaded.

Nothing heavy is imported, so that --help, a typo and a path that is not there are
answered at once. An option means what it means in the scripts of experiments/, and has their
default (tests/cli holds both against each other).
"""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction

SHIPPED = {
    "smollm2": Path("data/smollm2/adapters"),
    "data/organism": Path("data/organism/adapters"),
}
"""adapters that come with the repository, by the model that they were trained on"""


@dataclass(frozen=True)
class Model:
    """The model of a subcommand."""

    model: str = "data/organism"
    """model folder, GGUF file, smollm2 or hub name"""
    dtype: str = "float32"
    """dtype of the model"""
    device: str = "cpu"
    """device of the model"""

    def refuse(self) -> None:
        """Raise ValueError for a path that is not there."""
        path = Path(self.model)
        looks_local = self.model.startswith((".", "/")) or self.model.count("/") > 1
        if path.suffix.lower() == ".gguf":
            if not path.is_file():
                raise ValueError(f"--model: there is no file {self.model!r}; give a GGUF file")
        elif looks_local and not path.is_dir():
            raise ValueError(
                f"--model: there is no folder {self.model!r}; give a model folder or a Hub name"
            )


def check_folder(flag: str, folder: Path, remedy: str) -> None:
    """Raise ValueError where a folder that is read is not there."""
    if not folder.is_dir():
        raise ValueError(f"--{flag}: there is no folder {str(folder)!r}; {remedy}")


def check_delta(path: Path) -> None:
    """Raise ValueError where there is neither a file of a dW nor a pair of adapters."""
    if not path.is_file() and not (path / "pos").is_dir():
        raise ValueError(
            f"--delta: {str(path)!r} is no file of a dW and no folder with pos and neg; give one "
            "that wsrun train wrote"
        )


def split_delta(text: str, alpha: float = 1.0) -> tuple[Path, float]:
    """(path, alpha) of PATH:ALPHA, and of PATH, whose alpha is that given here.

    Raises ValueError for what follows the colon and is no finite number.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), alpha
    try:
        alpha = float(tail)
    except ValueError:
        alpha = float("nan")
    if not isfinite(alpha):
        raise ValueError(
            f"--delta {text[:200]!r}: after the colon stands alpha, a finite number; got {tail!r}"
        )
    return Path(head), alpha


@dataclass(frozen=True)
class Tabled(Model):
    """The options of every subcommand that asks items and leaves tables."""

    data: str = "data/organism"
    """folder with claims.jsonl, dilemmas.jsonl and personas.json, or a public set NAME:PATH"""
    pos: str = "honest"
    """persona towards the behaviour"""
    neg: str = "dishonest"
    """persona away from it"""
    limit: int | None = None
    """how many clusters of every other data set, drawn by a hash; None for all"""
    out: Path = Path("artifacts/tables")
    """folder that receives the tables and figures"""
    cache_dir: Path = Path("artifacts/cache")
    """folder of finished results: a stopped run, started again, goes on where it was"""

    def refuse(self) -> None:
        """Raise ValueError for a model or data that are not there."""
        super().refuse()
        _, colon, path = self.data.partition(":")
        if not Path(path if colon else self.data).exists():
            raise ValueError(
                f"--data: there is no {self.data!r}; give a folder of items, or a public set "
                "NAME:PATH"
            )


@dataclass(frozen=True)
class Scored(Tabled):
    """The options of every subcommand that may ask dilemmas, and reports intervals."""

    dilemmas: int | None = 20
    """how many of the dilemmas, the first by dilemma_idx; None for all"""
    resamples: int = 2000
    """bootstrap resamples"""


@dataclass(frozen=True)
class Check(Scored):
    """Can these items read the behaviour on this model? Ask this first."""

    split: str = "test"
    """which items"""
    wordings: int = 2
    """how many prompts of each persona, the first ones; 0 for none"""


@dataclass(frozen=True)
class Train(Tabled):
    """Train adapters towards a behaviour and away from it, write dW, try it once.

    From the model's own answers under two personas, or from --pairs-file.
    """

    families: tuple[str, ...] = ("lora",)
    """adapter families to train"""
    seeds: tuple[int, ...] = (0,)
    """seeds of answers, initial adapters and the order of examples"""
    check_limit: int | None = None
    """how many of these clusters the instrument check reads, whatever --limit says; None for all"""
    alphas: tuple[float, ...] = (-1.0, 1.0)
    """doses at which dW is tried on held-out items"""
    pairs_file: Path | None = None
    """jsonl of given pairs, such as data/english/pairs.jsonl, or NAME:PATH; not the model's own"""
    recipe: str = "auto"
    """training recipe: paper, fork, organism or smollm2; auto: the model's, fork if it has none"""
    steps: int | None = None
    """steps per adapter; the recipe's own if not given"""
    lr: float | None = None
    """learning rate of every family; the recipe's own of each if not given"""
    adapters: Path = Path("artifacts/adapters")
    """folder that receives <family>-s<seed>/pos and /neg"""
    deltas: Path = Path("artifacts/deltas")
    """folder that receives <family>-s<seed>.safetensors, the dW"""


@dataclass(frozen=True)
class Adapted(Scored):
    """The options of every subcommand that reads trained adapters."""

    adapters: Path | None = None
    """folder with <family>-s<seed>/pos and /neg; those shipped with the model if not given"""
    families: tuple[str, ...] = ()
    """adapter families; all that --adapters holds if not given"""
    seeds: tuple[int, ...] = (0,)
    """whose adapters; several are pooled"""
    check_limit: int | None = None
    """how many of these clusters the instrument check reads, whatever --limit says; None for all"""

    def refuse(self) -> None:
        """Raise ValueError for adapters that are not there."""
        super().refuse()
        self.found()

    def found(self) -> tuple[Path, tuple[str, ...]]:
        """(folder of adapters, families), both as they are read."""
        folder = self.adapters or SHIPPED.get(self.model.rstrip("/"))
        if folder is None:
            raise ValueError(f"no adapters are shipped for {self.model!r}; give --adapters")
        check_folder("adapters", folder, "run where the repository is, or train some")
        there = [
            {p.name.removesuffix(f"-s{s}") for p in folder.glob(f"*-s{s}")} for s in self.seeds
        ]
        of_all_seeds = tuple(sorted(set.intersection(*there))) if there else ()
        if not (families := self.families or of_all_seeds):
            raise ValueError(
                f"--adapters: {str(folder)!r} holds no <family>-s<seed> of the seeds "
                f"{' '.join(map(str, self.seeds))}; train some"
            )
        return folder, families


@dataclass(frozen=True)
class Compare(Adapted):
    """Does dW beat prompts, and a direction in the activations?

    Chosen on validation items, compared on test items; T1 and T3 in short form.
    """

    alphas: tuple[float, ...] = (1.0, 2.0, 4.0)
    """coefficients of dW to choose from"""
    layers: tuple[int, ...] | None = None
    """layers of the direction, counted from 0; three of the model's if not given"""
    coefficients: tuple[float, ...] = (1.0, 4.0, 16.0)
    """coefficients of the direction, in units of its layer's mean difference"""
    pairs_file: Path | None = None
    """jsonl of given pairs that the direction is read from, or NAME:PATH; not the model's own"""
    vectors: tuple[Path, ...] = ()
    """directions of others as rivals: GGUF control vectors, .pt files of persona vectors or of
    steering-vectors, .safetensors; in units of their own length"""
    n_random: int = 20
    """random controls"""


@dataclass(frozen=True)
class Locate(Adapted):
    """Which subspace, layers, modules or directions of dW carry the behaviour?

    T6, T7 and T8 in short form: one size of subspace, no map of single modules.
    """

    alpha: float = 1.0
    """coefficient of dW"""
    K: int = 32
    """size of the shared subspace"""
    nulls: int = 20
    """null deltas per family and seed: same singular values, random directions"""
    full: bool = False
    """print every line instead of the short tables"""


@dataclass(frozen=True)
class Dose(Adapted):
    """How strong? The largest dose of each method whose cost stays below a bound.

    dW beside a direction and prompts; the cost is that of neutral text.
    """

    alphas: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    """doses of dW to try, all of one sign; the smallest is tried first"""
    coefficients: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    """coefficients of the mean difference, in units of its length"""
    layers: tuple[int, ...] | None = None
    """layers to add it to one at a time, too, counted from 0; only to all at once if not given"""
    pairs_file: Path | None = None
    """jsonl of given pairs that the direction is read from, or NAME:PATH; not the model's own"""
    nats_at_most: float = 0.1
    """a cost in text stays below this many nats a token"""
    points_at_most: float = 5.0
    """a cost in accuracy stays below this many percentage points"""
    questions: bool = False
    """measure the cost on the multiple-choice questions beside --data, too"""
    costs: tuple[str, ...] | None = None
    """public sets to measure costs on, too: wikitext:PATH, arc:PATH, blimp:PATH"""
    cost_limit: int | None = None
    """how many texts and questions of each measure, drawn by a hash; None for all"""


@dataclass(frozen=True)
class Compose(Scored):
    """Several changes at once: what each does alone, what they do together.

    The difference is the interference; 0 where the effects add up.
    """

    delta: Annotated[tuple[str, ...], UseAppendAction] = ()
    """file of a dW, or folder of a pair of adapters, and how much of it: PATH or PATH:ALPHA; twice
    or more"""
    sets: tuple[str, ...] = ()
    """further data sets, folders or NAME:PATH; --data comes first"""
    check_limit: int | None = None
    """how many of these clusters the instrument check reads, whatever --limit says; None for all"""

    def refuse(self) -> None:
        """Raise ValueError for a change that is not there."""
        super().refuse()
        for path, _ in self.deltas():
            check_delta(path)

    def deltas(self) -> tuple[tuple[Path, float], ...]:
        """(file, alpha) of each --delta."""
        return tuple(map(split_delta, self.delta))


@dataclass(frozen=True)
class Report:
    """Join all tables into one page, report.md and report.html."""

    tables: Path = Path("artifacts/tables")
    """folder of the tables to read"""
    out: Path = Path("artifacts/report")
    """folder that receives report.md, report.html, report.parquet and the figure"""
    resamples: int = 2000
    """bootstrap resamples"""

    def refuse(self) -> None:
        """Raise ValueError where there is no folder of tables."""
        check_folder("tables", self.tables, "run compare or locate first, or name another one")
