"""The command wsrun: options, and the library function that each subcommand calls. No method here.

options     the flags of every subcommand; nothing but the standard library is imported
command     run: parse, refuse what is not there, import, call
dialogue    one conversation held twice, with the base and with the steered model
chat        the dialogue in a terminal
"""

from wsrun.cli.command import run

__all__ = ["run"]
