"""The dialogue in a terminal: answers side by side as they are written, commands, Ctrl-C.

From a pipe it does the same without a live display, and a refusal ends it.
"""

from wsrun.script import importing

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from wsrun.cli.chat_open import open_dialogue
from wsrun.cli.chat_options import Chat
from wsrun.cli.dialogue import Dialogue, shown, silent, unfinished
from wsrun.cli.sides import SIDES, heads
from wsrun.models.generate import sampling_fault
from wsrun.report.console import PLAIN, TERMINAL, WIDTH

SIDE_BY_SIDE = 80  # columns of a window with room for two answers
HELP = {
    "/alpha 1.5": "steer by 1.5 dW from the next answer on; /alpha alone tells it",
    "/system TEXT": "a system turn for both sides; without TEXT none",
    "/margin TEXT": "log p(Yes) - log p(No) of a Yes/No question, asked alone, on both sides",
    "/reset": "forget what was asked and said",
    "/help": "this list",
    "/quit": "end, as the end of the input does",
}


def chat(cfg: Chat) -> None:
    """Load the model and the change, then ask until the input ends."""
    if fault := sampling_fault(cfg.temperature, cfg.top_p, cfg.max_new_tokens):
        raise ValueError(f"--{fault[0].replace('_', '-')} {fault[1]}")
    console = Console(width=None if TERMINAL else WIDTH, **PLAIN)
    dialogue, (what, *notes) = open_dialogue(cfg)
    head = f"{cfg.model} beside {cfg.model} + alpha dW, dW of {what}"
    if cfg.web:
        with importing():
            from wsrun.cli.web import serve
        serve(dialogue, [head, *notes], cfg.host, cfg.port)
        return
    console.print(
        f"{head}; /help lists commands", *notes, sep="\n", soft_wrap=True, highlight=False
    )
    talk(dialogue, console)


def talk(dialogue: Dialogue, console: Console) -> None:
    """Read lines until /quit or the end of the input; refusals end what comes from a pipe."""
    typed = sys.stdin.isatty()
    if typed:
        with suppress(ImportError):
            import readline  # noqa: F401  (arrows and history of input())
    for line in lines(console, typed):
        try:
            if line.startswith("/"):
                if not command(dialogue, line, console):
                    return
            elif line:
                answer(dialogue, line, console)
        except ValueError as error:
            if not typed:
                raise
            console.print(Text.assemble(("error: ", "bold red"), str(error)))


def lines(console: Console, typed: bool) -> Iterator[str]:
    """What is typed, line by line; what comes from a pipe is shown as if it had been."""
    while True:
        try:
            line = " ".join(input("> " if typed else "").split())
        except EOFError:
            if typed:
                console.print()
            return
        except KeyboardInterrupt:
            if not typed:
                raise
            console.print("\n/quit or Ctrl-D ends the chat")
            continue
        if not typed:
            console.print(f"> {line}", soft_wrap=True, highlight=False)
        yield line


def command(dialogue: Dialogue, line: str, console: Console) -> bool:
    """Do what a line with / asks for; False where it ends the chat."""
    name, _, rest = line.partition(" ")
    if name == "/quit":
        return False
    if name == "/alpha":
        if rest:
            dialogue.set_alpha(rest)
        console.print(f"alpha = {dialogue.alpha:g}", highlight=False)
    elif name == "/system":
        dialogue.system = rest
        console.print(f"system: {rest}" if rest else "no system turn", highlight=False)
    elif name == "/margin":
        margins(dialogue, rest, console)
    elif name == "/reset":
        dialogue.reset()
        console.print("a new conversation")
    elif name == "/help":
        for head, text in HELP.items():
            console.print(f"{head:14}{text}", highlight=False)
    else:
        raise ValueError(f"{name[:80]!r} is no command; /help lists them")
    return True


def margins(dialogue: Dialogue, question: str, console: Console) -> None:
    """Read a Yes/No question on both sides; ValueError for none."""
    if not question:
        raise ValueError("/margin needs a Yes/No question, such as /margin Is the Earth flat?")
    readings, above = dialogue.readings(question), heads(dialogue.alpha)
    for side, read in readings.items():
        line = f"{above[side]}: margin {read.margin:+.2f} nats, mass {read.mass:.2f}"
        console.print(line, highlight=False)
    if warning := silent(readings):
        console.print(warning, highlight=False)


def answer(dialogue: Dialogue, question: str, console: Console) -> None:
    """Ask both sides, and show what they write as they write it; Ctrl-C ends one answer."""
    above = heads(dialogue.alpha)
    texts = dict.fromkeys(SIDES, "")
    live = console.is_terminal
    with stoppable() as stops, Live(console=console, transient=True, auto_refresh=False) as screen:

        def show(side: str, text: str) -> bool:
            texts[side] = unfinished(text)
            if live:
                screen.update(view(above, texts, console, console.height - 2), refresh=True)
            stop = bool(stops)
            stops.clear()
            return stop

        try:
            said = dialogue.ask(question, show)
        except ValueError as error:  # such as a dialogue that is too long
            raise ValueError(f"{error}; /reset begins a new one") from error
    console.print(view(above, {s: shown(said[s]) for s in SIDES}, console), highlight=False)


@contextmanager
def stoppable() -> Iterator[list[int]]:
    """Inside, Ctrl-C fills the list; a second one before it is emptied interrupts as usual."""
    stops: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if stops:
            raise KeyboardInterrupt
        stops.append(number)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stops
    finally:
        signal.signal(signal.SIGINT, before)


def view(
    heads: dict[str, str], texts: dict[str, str], console: Console, most: int | None = None
) -> RenderableType:
    """Both answers: two columns where the window is wide enough, else one below the other.

    most: lines of the window; the last ones are shown.
    """
    beside = console.width >= SIDE_BY_SIDE
    width = (console.width - 3) // 2 if beside else console.width
    room = None if most is None else max(1, most - 2 if beside else most // 2 - 2)
    bodies = {side: _last_lines(texts[side], width, console, room) for side in SIDES}
    if not beside:
        look: dict[str, Any] = {"align": "left", "characters": "-", "style": "default"}
        blocks = ((Rule(Text(heads[s], "bold"), **look), bodies[s]) for s in SIDES)
        return Group(*(part for block in blocks for part in block))
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, show_edge=False)
    for side in SIDES:
        table.add_column(Text(heads[side], "bold"), width=width, overflow="fold")
    table.add_row(*(bodies[side] for side in SIDES))
    return table


def _last_lines(text: str, width: int, console: Console, most: int | None) -> Text:
    wrapped = Text(text).wrap(console, width)
    return Text("\n").join(wrapped[-most:] if most else wrapped)
