"""The command wsrun: options, and the library function that each subcommand calls. No method here.

options, *_options      the flags; nothing heavy is imported
command                 run: parse, refuse what is not there, import, call
steps                   what each subcommand calls in wsrun.study
sides                   base and steered
dialogue                one conversation held twice, with the base and with the steered model
chat_open               the dialogue of the options: model and change
chat                    the dialogue in a terminal
change, change_options  the one weight change that the options name
export                  it in the formats of others
web, web_view           the dialogue in a browser, and what its page shows
"""

from wsrun.cli.command import run

__all__ = ["run"]
