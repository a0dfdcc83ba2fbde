"""The dialogue in a browser: one page, served by gradio, nothing loaded from elsewhere.

One thread asks the model, whoever asks, as `applied` changes the weights that all share.
"""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address
from threading import Event
from time import sleep
from typing import Any

from wscore.files import reason
from wsrun.cli.dialogue import Dialogue, shown, silent, unfinished
from wsrun.cli.sides import SIDES
from wsrun.cli.web_view import STYLE, Exchange, gauge, text, transcript
from wsrun.data.item import PREFILL

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import gradio as gr  # noqa: E402
from gradio.themes import Default, Font  # noqa: E402

MOST_ALPHA = 4.0  # of the slider, or what the options ask for
EXAMPLE = "Is the Earth flat? Yes or No?"


class Conversation:
    """The dialogue of one tab, and what its page shows of it."""

    def __init__(self, dialogue: Dialogue, desk: "Desk") -> None:
        self.dialogue, self.desk = dialogue, desk
        self.exchanges: list[Exchange] = []
        self.stop, self.left = Event(), Event()

    def ask(self, question: str, alpha: float, system: str) -> Iterator[None]:
        """A step whenever `exchanges` has something new; closing it ends the answers.

        Raises ValueError, with the exchanges as they were, for what the dialogue refuses.
        """
        self.dialogue.set_alpha(str(alpha))
        self.dialogue.system = system.strip()
        exchange, news, closed = Exchange(question, self.dialogue.alpha), Event(), Event()

        def show(side: str, so_far: str) -> bool:
            exchange.texts[side] = unfinished(so_far)
            news.set()
            stop = self.stop.is_set()
            self.stop.clear()
            return stop or any(e.is_set() for e in (closed, self.left, self.desk.closing))

        self.stop.clear()
        self.exchanges.append(exchange)
        answers = self.desk.thread.submit(self.dialogue.ask, question, show)
        answers.add_done_callback(lambda _: news.set())
        try:
            while not answers.done():
                yield
                news.wait()
                news.clear()
            exchange.texts = {side: shown(answer) for side, answer in answers.result().items()}
            exchange.done = True
            yield
        except ValueError:
            self.exchanges.remove(exchange)
            raise
        finally:
            closed.set()


class Desk:
    """What the page's buttons do; each returns what changes on the page."""

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue, self.closing = dialogue, Event()
        self.thread = ThreadPoolExecutor(1)

    def new(self) -> Conversation:
        return Conversation(replace(self.dialogue, turns={side: [] for side in SIDES}), self)

    def ask(
        self, question: str, alpha: float, system: str, conversation: Conversation | None
    ) -> Iterator[tuple[Any, str, Conversation]]:
        """(the emptied question, the transcript, the conversation), as the answers are written."""
        conversation, box = conversation or self.new(), ""
        try:
            for _ in conversation.ask(question.strip(), alpha, system) if question.strip() else ():
                yield box, transcript(conversation.exchanges), conversation
                box = gr.skip()  # the next question may be typed meanwhile
        except ValueError as error:
            refuse(f"{reason(error)}; Reset begins a new conversation")
            yield question, transcript(conversation.exchanges), conversation

    def stop(self, conversation: Conversation | None) -> None:
        """End the answer that is being written; the other side goes on."""
        if conversation:
            conversation.stop.set()

    def reset(self, conversation: Conversation | None) -> tuple[str, Conversation]:
        """(an empty transcript, a new conversation); an answer that is being written ends."""
        if conversation:
            conversation.left.set()
        return transcript(()), self.new()

    def read(self, question: str, alpha: float, system: str) -> str:
        """The gauge of a Yes/No question; "" for none, and where it is refused."""
        if not question.strip():
            return ""
        asked = replace(self.dialogue, system=system.strip())
        try:
            asked.set_alpha(str(alpha))
            readings = self.thread.submit(asked.readings, question.strip()).result()
        except ValueError as error:
            refuse(reason(error))
            return ""
        return gauge(question.strip(), asked.alpha, readings, PREFILL, silent(readings))

    def close(self) -> None:
        """End what is being answered, and the thread."""
        self.closing.set()
        self.thread.shutdown(cancel_futures=True)


def refuse(sentence: str) -> None:
    """Show a sentence over the page, as text."""
    gr.Warning(text(sentence[:1000]))


ONE: dict[str, Any] = {
    "concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden",
}  # fmt: skip
"""of every event that asks the model: one at a time, the others wait"""


def page(desk: Desk, notes: list[str]) -> gr.Blocks:
    """The page: answers and question, alpha and the system turn, the gauge."""
    with gr.Blocks(title=notes[0], analytics_enabled=False) as blocks:
        gr.HTML(f"<h2>Base and steered model</h2>{'<br>'.join(map(text, notes))}")
        box: dict[str, Any] = {"container": True, "padding": True}
        talk = gr.HTML(transcript(()), elem_id="talk", max_height=480, autoscroll=True, **box)
        question = gr.Textbox(label="Question", lines=1, max_lines=6, placeholder="Ask both sides")
        buttons = _buttons()
        size = _size(desk.dialogue)
        _answering(desk, question, talk, buttons, size)
        with gr.Row(equal_height=True):
            asked = gr.Textbox(EXAMPLE, label="Yes/No question", scale=4, min_width=220)
            read = gr.Button("Read the margin", scale=1, min_width=120, size="md")
        meter, form = gr.HTML(**box), [asked, *size]
        for on in (read.click, asked.submit):
            on(desk.read, form, meter, **ONE)
        size[0].change(desk.read, form, meter, trigger_mode="always_last", **ONE)
    return blocks


def _buttons() -> tuple[gr.Button, gr.Button, gr.Button]:
    with gr.Row():
        send = gr.Button("Ask", variant="primary", min_width=80)
        return send, gr.Button("Stop", min_width=80), gr.Button("Reset", min_width=80)


def _size(start: Dialogue) -> tuple[gr.Slider, gr.Textbox]:
    """What both sides are given: alpha and the system turn."""
    most = max(MOST_ALPHA, abs(start.alpha))
    with gr.Row():
        alpha = gr.Slider(
            -most, most, start.alpha, step=0.1, label="alpha", min_width=280,
            info="how much of dW: from the next answer on, and in the gauge",
        )  # fmt: skip
        system = gr.Textbox(
            start.system, label="System prompt", min_width=280, max_lines=4,
            info="of both sides; none if empty",
        )  # fmt: skip
    return alpha, system


def _answering(desk: Desk, question: Any, talk: Any, buttons: Any, size: Any) -> None:
    """What the buttons and the box of the question do."""
    send, stop, reset = buttons
    conversation = gr.State(None)
    form, there = [question, *size, conversation], [question, talk, conversation]
    asks: list[Any] = [on(desk.ask, form, there, **ONE) for on in (send.click, question.submit)]
    stop.click(desk.stop, conversation, None, queue=False)
    reset.click(desk.reset, conversation, [talk, conversation], cancels=asks, queue=False)


def serve(dialogue: Dialogue, notes: list[str], host: str, port: int) -> None:
    """Show the page until Ctrl-C."""
    desk = Desk(dialogue)
    blocks = page(desk, notes)
    try:
        launch(blocks, host, port)
        print(*notes, sep="\n")
        print(f"http://{host}:{port} shows the page; Ctrl-C ends it", flush=True)
        if not ip_address(host).is_loopback:
            print(f"whoever reaches {host} can ask the model; without --host only this machine can")
        while True:
            sleep(0.5)  # a signal that another thread took wakes nobody
    except KeyboardInterrupt:
        print("\nthe page is closed", flush=True)
    finally:
        desk.close()
        if blocks.is_running:  # open tabs are not waited for, nor is said that they were cut off
            logging.disable()
            blocks.server.force_exit = True
        blocks.close(verbose=False)


def launch(blocks: gr.Blocks, host: str, port: int) -> None:
    """Serve the blocks: no share link, no monitoring, no history, no fonts of others."""
    font = [Font(name) for name in ("system-ui", "sans-serif")]
    font_mono = [Font(name) for name in ("ui-monospace", "monospace")]
    for name in ("no_proxy", "NO_PROXY"):  # gradio looks whether its page answers
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), host, "localhost")))
    blocks.queue(default_concurrency_limit=1).launch(
        server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True,
        inbrowser=False, inline=False, footer_links=[], run_history=False, ssr_mode=False,
        enable_monitoring=False, pwa=False, mcp_server=False, state_session_capacity=100,
        theme=Default(font=font, font_mono=font_mono), css=STYLE,
    )  # fmt: skip
