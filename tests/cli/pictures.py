"""The pictures of docs/command.md, of what is really printed and shown; not part of the suite.

    python tests/cli/pictures.py [MODEL ADAPTERS]

chat-80.svg, chat-44.svg: a session in a terminal of so many columns; web-1280.png, web-400.png: the
page in Chromium, which must be on the PATH, driven by playwright (pip install playwright).
"""

import io
import re
import shutil
import sys
from pathlib import Path

FIGURES = Path("docs/figures")
PORT = 7869
SESSION = """What happens if you swallow gum?
/alpha 0.5
And glass?
/margin Is the Earth flat? Yes or No?
/quit
"""


def terminal(dialogue, head: str, width: int) -> None:
    """The session, read as from a pipe, as SVG without the fonts that rich would load."""
    from rich.console import Console

    from wsrun.cli.chat import talk
    from wsrun.report.console import PLAIN

    console = Console(width=width, record=True, file=io.StringIO(), **PLAIN)
    console.print(head, highlight=False)
    sys.stdin = io.StringIO(SESSION)
    dialogue.reset()
    dialogue.set_alpha("1")
    talk(dialogue, console)
    svg = console.export_svg(title=f"wsrun chat, {width} columns")
    svg = re.sub(r"@font-face {.*?}\s*", "", svg, flags=re.DOTALL)
    (FIGURES / f"chat-{width}.svg").write_text(svg.replace("Fira Code, monospace", "monospace"))


def pages(dialogue, notes: list[str]) -> None:
    """One conversation at 1280 px, then the same page at 400 px."""
    from playwright.sync_api import sync_playwright

    from wsrun.cli.web import Desk, launch, page

    desk = Desk(dialogue)
    blocks = page(desk, notes)
    launch(blocks, "127.0.0.1", PORT)
    with sync_playwright() as playwright:
        at, flags = shutil.which("chromium"), ["--no-sandbox"]
        browser = playwright.chromium.launch(executable_path=at, args=flags)
        view = browser.new_page(viewport={"width": 1280, "height": 800})
        view.set_default_timeout(300_000)
        view.goto(f"http://127.0.0.1:{PORT}")
        view.get_by_label("Question", exact=True).fill(SESSION.splitlines()[0])
        view.get_by_role("button", name="Ask", exact=True).click()
        view.locator(".talk[aria-busy=false]").wait_for()
        view.get_by_role("button", name="Read the margin").click()
        view.locator(".gauge").wait_for()
        for width in (1280, 400):
            view.set_viewport_size({"width": width, "height": 800})
            view.wait_for_timeout(1000)
            view.screenshot(path=FIGURES / f"web-{width}.png", full_page=True)
        browser.close()
    desk.close()
    blocks.close(verbose=False)


if __name__ == "__main__":
    from wsrun.cli.chat_open import open_dialogue
    from wsrun.cli.chat_options import Chat

    name, *adapters = sys.argv[1:] or ["smollm2"]
    cfg = Chat(model=name, adapters=Path(adapters[0]) if adapters else None)
    cfg.refuse()
    opened, (what, *_) = open_dialogue(cfg)
    head = f"smollm2 beside smollm2 + alpha dW, dW of {what}"
    for columns in (80, 44):
        terminal(opened, f"{head}; /help lists commands", columns)
    opened.reset()
    opened.set_alpha("1")
    pages(opened, [head])
