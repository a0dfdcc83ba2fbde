"""Weight steering: check a model, train dW, compare it, locate it, talk to it."""

from wsrun.script import guarded, importing

import sys
from functools import reduce
from importlib import import_module
from operator import or_
from typing import Annotated, Any

from tyro.conf import subcommand

from wsrun.cli import options
from wsrun.cli.chat_options import Chat

# name: (its options, where the function is that takes them). A new subcommand is one line here
# and one class of options.
COMMANDS: dict[str, tuple[type, str]] = {
    "check": (options.Check, "wsrun.cli.steps:check"),
    "train": (options.Train, "wsrun.cli.steps:train"),
    "compare": (options.Compare, "wsrun.cli.steps:compare"),
    "locate": (options.Locate, "wsrun.cli.steps:locate"),
    "dose": (options.Dose, "wsrun.cli.steps:dose"),
    "compose": (options.Compose, "wsrun.cli.steps:compose"),
    "chat": (Chat, "wsrun.cli.chat:chat"),
    "report": (options.Report, "wsrun.cli.steps:report"),
}


def run() -> None:
    """Parse the command line and run its subcommand, as `guarded` does with a script."""
    sys.argv[0] = "wsrun"
    kinds = (Annotated[c, subcommand(name)] for name, (c, _) in COMMANDS.items())
    guarded(call, reduce(or_, kinds), "wsrun")


def call(cfg: Any) -> None:
    """Refuse what is not there, then import what the subcommand needs, and call it."""
    cfg.refuse()
    where = next(where for of, where in COMMANDS.values() if of is type(cfg))
    module, _, name = where.partition(":")
    with importing():
        function = getattr(import_module(module), name)
    function(cfg)
