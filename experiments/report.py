"""What do all tables say together, in one page?

Question:   does dW beat prompting and activation steering on the same rows, and which part of dW
            carries the behaviour?
Prediction: none; this script measures nothing, it joins and reads.
Rule:       dW beats a method where the 95 % interval of their paired difference excludes 0; the
            other rules are those of the scripts, as their verdict tables record them.

    python experiments/report.py --tables artifacts/tables --out artifacts/report

Reads the tables that are there and names those that are not, with the command that makes them. The
lines of t1, t3, t9 and t10 (and of t5, for another model) become one table: their items, the base's
margins and the selected dW must agree, a line that several scripts scored stands once, and effects,
differences and q are computed anew over all of it. Writes report.md, report.html (one file, opens
without a network), report.parquet (the joined table), and the figure beside report.md.
"""

from wsrun.script import guarded

from dataclasses import dataclass

from wsrun.study.page import SCRIPTS, ReportOptions, run_report

__all__ = ["SCRIPTS", "Config", "main"]


@dataclass(frozen=True)
class Config(ReportOptions):
    """Options of the report."""


def main(cfg: Config) -> None:
    """Read, join, decide, draw; then write all files, or none."""
    run_report(cfg)


if __name__ == "__main__":
    guarded(main, Config)
