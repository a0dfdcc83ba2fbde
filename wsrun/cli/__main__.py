"""python -m wsrun.cli: the command where no script `wsrun` is installed."""

from wsrun.cli.command import run

run()
