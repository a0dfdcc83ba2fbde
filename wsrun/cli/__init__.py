"""The command wsrun: options, and the library function that each subcommand calls. No method here.

options, *_options      the flags; nothing but the standard library is imported
command                 run: parse, refuse what is not there, import, call
steps                   what each subcommand calls in wsrun.study
dialogue                one conversation held twice, with the base and with the steered model
chat                    the dialogue in a terminal
change                  the one weight change that the options name
export                  it in the formats of others
"""

from wsrun.cli.command import run

__all__ = ["run"]
