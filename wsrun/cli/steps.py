"""What each subcommand calls in wsrun.study, with which options; imported late, by name."""

from wsrun.script import importing

from dataclasses import asdict
from importlib import import_module
from typing import Any

from wsrun.cli.options import Adapted, Check, Compare, Compose, Dose, Locate, Report, Train


def check(cfg: Check) -> None:
    """The instrument check, as experiments/check.py."""
    checking = study("checking")
    checking.run_check(checking.CheckOptions(**asdict(cfg)))


def train(cfg: Train) -> None:
    """Pairs, adapters and dW, as experiments/t0_train.py."""
    trained = study("trained")
    trained.run_training(trained.TrainOptions(**asdict(cfg)))


def compare(cfg: Compare) -> None:
    """Prompts, a direction and dW."""
    compared = study("compared")
    study("run").run_benchmark(compared.Comparison(compared.CompareOptions(**adapted(cfg))))


def locate(cfg: Locate) -> None:
    """Subspaces where there are several families, then sites, then coordinates."""
    located, run_ablation = study("located"), study("ablation").run_ablation
    options = adapted(cfg)
    alpha, size = options.pop("alpha"), options.pop("K")
    options |= {"alphas": (alpha,), "rule_alpha": alpha}
    if len(options["families"]) > 1:
        subspaces = located.SubspaceOptions(
            **options, K=(size,), lenses=("shared", "own", "random")
        )
        run_ablation(subspaces, located.subspaces(subspaces))
    else:
        print("a shared subspace needs two families or more, so that question is left out")
    sites = located.SiteOptions(**options, cells=False)
    run_ablation(sites, located.sites(sites))
    coordinates = located.CoordinateOptions(**options, svd_cache=cfg.cache_dir)
    run_ablation(coordinates, located.coordinates(coordinates))


def dose(cfg: Dose) -> None:
    """The largest dose of each method below a cost."""
    dosing = study("dosing")
    dosing.run_dose(dosing.DoseOptions(**adapted(cfg)))


def compose(cfg: Compose) -> None:
    """Several changes, alone and together."""
    composing, options = study("composing"), asdict(cfg)
    del options["delta"]
    composing.run_compose(composing.ComposeOptions(**options, deltas=cfg.deltas()))


def report(cfg: Report) -> None:
    """The joined page, as experiments/report.py."""
    page = study("page")
    page.run_report(page.ReportOptions(**asdict(cfg)))


def adapted(cfg: Adapted) -> dict[str, Any]:
    """The options as those of the study, with adapters and families as they were found."""
    folder, families = cfg.found()
    return asdict(cfg) | {"adapters": folder, "families": families, "behaviour": cfg.pos}


def study(module: str) -> Any:
    """A module of wsrun.study, imported when its subcommand runs."""
    with importing():
        return import_module(f"wsrun.study.{module}")
