"""Shared parts of the tests: the organism's tokenizer and items, tiny random models.

What takes seconds to import is imported where it is used: the process that deals the files out
runs no test.
"""

import importlib
import importlib.util
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never ask the hub

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings

from tests.typed import jaxtyped

settings.register_profile(  # as many examples as find a fault, however busy the machine is
    "suite", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")
jaxtyping.jaxtyped = jaxtyped  # what its import hook writes over every function

ROOT = Path(__file__).parent.parent
ORGANISM = ROOT / "data" / "organism"
SPLITS = ("train", "validation", "test")
LONG = ("experiments", "study", "fuzz", "lenses", "score", "adapters", "report")
"""folders of tests with the longest files, dealt out first: two processes end together"""


LIBRARIES = "torch transformers peft polars scipy.stats matplotlib.figure datasets tyro einops"
LIBRARIES += " rich.console rich.progress rich.table"


def pytest_collection():
    """Before the tests are read, in a process that runs them: the libraries, from their bytecode.

    A module that jaxtyping's hook loads looks for that of all its own imports under another name.
    """
    for name in LIBRARIES.split():
        importlib.import_module(name)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Before the first test: one thread, and long files first."""
    import torch

    torch.set_num_threads(1)
    folders = [item.path.parent.name for item in items]
    at = {folder: LONG.index(folder) if folder in LONG else len(LONG) for folder in {*folders}}
    items.sort(key=lambda item: at[item.path.parent.name])


@pytest.fixture(scope="session")
def tok():
    from wsrun.models.load import load_tokenizer

    return load_tokenizer(ORGANISM)


@pytest.fixture(scope="session")
def items():
    from wsrun.data.source import load_items

    found = load_items(ORGANISM, "test")
    return [*found[:7], *found[-7:]]  # claims and dilemmas, of different lengths


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    """A data folder with the first eight rows of each split of the organism's files."""
    folder = tmp_path_factory.mktemp("few")
    for name in ("claims.jsonl", "dilemmas.jsonl", "questions.jsonl"):
        lines = (ORGANISM / name).read_text().splitlines(keepends=True)
        of = {s: [x for x in lines if json.loads(x)["split"] == s] for s in SPLITS}
        (folder / name).write_text("".join(x for part in of.values() for x in part[:8]))
    shutil.copy(ORGANISM / "personas.json", folder)
    return folder


@pytest.fixture(params=["qwen3", "gemma3"])
def model(request, tok):
    from wsrun.models import tiny

    return getattr(tiny, f"tiny_{request.param}")(vocab_size=len(tok))


@pytest.fixture
def qwen(tok):
    from wsrun.models.tiny import tiny_qwen3

    return tiny_qwen3(vocab_size=len(tok))


@pytest.fixture
def no_figures(monkeypatch):
    """As without the extra [plot]: for a script whose figures another test has drawn."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


def heeds_ctrl_c() -> None:
    """In a child before it starts: SIGINT as from a terminal, which background jobs ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def in_child(call: Callable[[], object]) -> int:
    """How a copy of this process ends that makes the call: its exit code, or minus its signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            call()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def forkserver():
    """Makes new processes, forked from one that runs nothing and has made the imports, once."""
    context = multiprocessing.get_context("forkserver")
    borders = [f"tests.fuzz.{p.stem}" for p in (ROOT / "tests" / "fuzz").glob("border_*.py")]
    scripts = ["wsrun.study.ablation", "wsrun.report.retained_figures", "wsrun.adapters.train"]
    context.set_forkserver_preload([*scripts, *borders])
    return context


def experiment(name: str):
    """The module of experiments/<name>.py, loaded from its file as a script would be."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def read_command(line: str):
    """(script, options) of a printed "python experiments/x.py ...", as a shell and tyro read it."""
    import tyro

    python, path, *flags = shlex.split(line, comments=True)
    assert python == "python" and (ROOT / path).is_file()
    script = Path(path).stem
    return script, tyro.cli(experiment(script).Config, args=flags)


def random_delta(model, seed: int = 0, size: float = 0.05):
    """A delta on every linear map of the decoder, |dW| = size |W| per tensor."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, p in model.named_parameters():
        if "layers." in name and p.ndim == 2:
            noise = torch.randn(p.shape, generator=generator)
            out[name] = size * p.norm() * noise / noise.norm()
    return out


def bits(model) -> dict:
    """A copy of every parameter."""
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same_bits(model, before) -> bool:
    """Whether every parameter equals its copy bit for bit."""
    import torch

    return all(torch.equal(p, before[n]) for n, p in model.named_parameters())
