"""wsrun chat --web: what the page shows, its buttons, and that it keeps to this machine."""

import os
import re
import signal
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from urllib.request import urlopen

import pytest

from tests.cli.test_dialogue import PAIR, QUESTIONS, dialogue
from tests.conftest import ORGANISM, ROOT, bits, same_bits
from wsrun.cli import chat_options
from wsrun.cli.chat_options import Chat
from wsrun.cli.dialogue import shown, silent
from wsrun.cli.sides import SIDES, Reading
from wsrun.cli.web_view import Exchange, gauge, text, transcript

needs_gradio = pytest.mark.skipif(
    find_spec("gradio") is None, reason="needs gradio: pip install 'weight-steering[demo]'"
)
EVIL = "<img src=x onerror=alert(1)> ${alert(1)} {{value}} `x` & \\u0041"


def test_no_gradio(monkeypatch):
    """--web without gradio, or with an old one: the sentence names --web and the extra to install;
    a port that is none or taken, and a host that is none are refused by name"""

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    for found, words in ((missing, "not installed"), (lambda name: "5.50.0", "5.50.0 is older")):
        monkeypatch.setattr(chat_options, "version", found)
        with pytest.raises(ValueError, match=rf"--web.*{words}.*'weight-steering\[demo\]'"):
            Chat(model="data/organism", web=True).refuse()
    monkeypatch.setattr(chat_options, "version", lambda name: "6.31.0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        wrong = {"--port.*65536": {"port": 65536}, "--host 'here'": {"host": "here"}}
        for words, options in (wrong | {f"--port {busy}.*in use": {"port": busy}}).items():
            with pytest.raises(ValueError, match=words):
                Chat(model="data/organism", web=True, **options).refuse()


def test_texts_are_escaped():
    """whatever is asked or said stands in the page as text: no tag, nothing a template reads"""
    asked = Exchange(EVIL, 1.0, dict.fromkeys(SIDES, EVIL))
    readings = dict.fromkeys(SIDES, Reading(1.0, 0.9, True))
    for html in (text(EVIL), transcript([asked]), gauge(EVIL, 1.0, readings, EVIL)):
        assert "<img" not in html and not set("${}`\\@") & set(html)
    assert text("a < b") == "a &lt; b" and text("1.5 nats, no") == "1.5 nats, no"


def test_the_gauge():
    """a bar is |margin| / reach of a half, right of the middle for Yes and left of it for No; reach
    is 4 nats, or the next whole number; low mass is said of the side that has it"""
    read = {"base": Reading(1.0, 0.9, True), "steered": Reading(-2.0, 0.1, False)}
    html = gauge("Is it?", 2.0, read, "A: ", silent(read))
    # 50 + [0, 50 * 1/4], and 50 - 50 * 2/4 = 25
    assert "left: 50.00%; width: 12.50%" in html and "left: 25.00%; width: 25.00%" in html
    assert "steered, alpha = 2" in html and "+1.00 nats, mass 0.90" in html
    assert "mass below 0.5: the steered side does not answer this with Yes or No" in html
    far = dict.fromkeys(SIDES, Reading(7.5, 0.9, True))
    assert silent(far) == "" and "width: 46.88%" in gauge("Is it?", 2.0, far, "")  # 50 * 7.5 / 8
    assert "+8" in gauge("Is it?", 2.0, far, "")
    assert "neither side" in silent(dict.fromkeys(SIDES, Reading(7.5, 0.4, False)))


@pytest.fixture
def desk(qwen, tok):
    pytest.importorskip("gradio", reason="needs gradio: pip install 'weight-steering[demo]'")
    from wsrun.cli.web import Desk

    desk = Desk(dialogue(qwen, tok))
    yield desk
    desk.close()


def test_the_page_answers_as_the_dialogue_does(desk, qwen, tok):
    """two questions asked on the page: the answers of `Dialogue.ask` from the same seed, written
    step by step, with alpha and system as they stand on the page; the model's bits stay"""
    before, reference, tab = bits(qwen), dialogue(qwen, tok, alpha=2.0, system="You lie."), None
    for question in QUESTIONS:
        steps = list(desk.ask(f" {question}\n", 2.0, "You lie. ", tab))
        (first, *_), (*_, page, tab) = steps[0], steps[-1]
        assert first == "" and 'aria-busy="true"' in steps[0][1]
        said = {side: shown(answer) for side, answer in reference.ask(question).items()}
        assert tab.exchanges[-1] == Exchange(question, 2.0, said, done=True)
        assert page == transcript(tab.exchanges) and "steered, alpha = 2" in page
    assert len(tab.exchanges) == 2 and same_bits(qwen, before)


def test_tabs_do_not_hear_each_other(desk):
    """the first answers of a second tab are those of the first one's start"""
    one, two = (list(desk.ask(QUESTIONS[0], 1.0, "", None))[-1][2] for _ in range(2))
    assert one.exchanges == two.exchanges and one.dialogue.turns is not two.dialogue.turns
    list(desk.ask(QUESTIONS[1], 1.0, "", one))
    assert len(one.exchanges) == 2 and len(two.exchanges) == 1 and not desk.dialogue.asked


def test_stop_ends_one_answer(desk, qwen, tok):
    """Stop while the base writes: a prefix of its answer; the steered side is whole"""
    whole = dialogue(qwen, tok, max_new_tokens=200).ask(QUESTIONS[0])
    desk.dialogue.max_new_tokens = 200
    steps = desk.ask(QUESTIONS[0], 1.0, "", None)
    tab = next(steps)[2]
    while not tab.exchanges[0].texts["base"]:
        next(steps)
    desk.stop(tab)
    assert list(steps)[-1][2] is tab
    base, steered = (tab.exchanges[0].texts[side] for side in SIDES)
    assert base.endswith(" ...") and whole["base"].text.startswith(base[:-4])
    assert len(base) < len(whole["base"].text) and steered == shown(whole["steered"])


@pytest.mark.parametrize("how", ["reset", "closed", "close"])
def test_whoever_leaves_ends_the_answers(desk, qwen, how):
    """Reset, a closed tab and Ctrl-C end what is being written, and the weights come back"""
    before, desk.dialogue.max_new_tokens = bits(qwen), 10_000
    qwen.config.max_position_embeddings = 20_000
    steps = desk.ask(QUESTIONS[0], 1.0, "", None)
    tab = next(steps)[2]
    if how == "reset":
        empty, new = desk.reset(tab)
        assert "alpha" not in empty and new is not tab and not new.exchanges
    elif how == "closed":
        steps.close()
    else:
        desk.close()
    desk.thread.shutdown()
    assert same_bits(qwen, before)


def test_the_margin_is_that_of_the_items(desk, qwen, tok):
    """margin and mass of the page = log-softmax of the model's own logits after the prefill; at
    alpha = 0 both sides are the same"""
    import torch

    from wsrun.data.item import PREFILL
    from wsrun.models.chat import choice_ids, render, user

    ids = render(tok, user("Is it so?", "Be brief."), PREFILL)
    with torch.no_grad():
        p = qwen(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    yes, no = (float(p[list(side)].sum()) for side in choice_ids(tok))
    read = dialogue(qwen, tok, alpha=0.0, system="Be brief.").readings("Is it so?")
    assert read["base"] == read["steered"]
    assert read["base"].mass == pytest.approx(yes + no, abs=1e-6)
    assert read["base"].margin == pytest.approx(float(torch.tensor(yes / no).log()), abs=1e-4)
    html = desk.read(" Is it so? ", 0.0, "Be brief.")
    assert (
        html == gauge("Is it so?", 0.0, read, PREFILL, silent(read))
        and desk.read(" ", 1.0, "") == ""
    )
    assert desk.read("Is it so?", 3.0, "Be brief.") != html


def test_refusals_are_shown(desk, qwen):
    """what the model cannot take, and an alpha that is none: a sentence over the page, as text; the
    question stays in its box, and what was said before stays"""
    tab = list(desk.ask(QUESTIONS[0], 1.0, "", None))[-1][2]
    before = transcript(tab.exchanges)
    with pytest.warns(UserWarning, match="finite"):
        assert list(desk.ask(QUESTIONS[1], float("nan"), "", tab)) == [(QUESTIONS[1], before, tab)]
    qwen.config.max_position_embeddings = 40
    long = "word " * 60
    with pytest.warns(UserWarning, match="positions.*Reset"):
        assert list(desk.ask(long, 1.0, "", tab))[-1] == (long, before, tab)
    with pytest.warns(UserWarning, match="positions"):
        assert desk.read(long, 1.0, "") == ""
    assert not list(desk.ask("  ", 1.0, "", tab))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@needs_gradio
def test_the_command():
    """wsrun chat --web: one line with the address, the page asks nothing of other hosts, a client
    gets both answers; Ctrl-C ends with one line and exit code 0"""
    from gradio_client import Client

    port = free_port()
    flags = ["chat", "--model", ORGANISM, *PAIR, "--web", "--port", port, "--max-new-tokens", "8"]
    argv = [sys.executable, "-m", "wsrun.cli", *map(str, flags)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heeds = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    server = subprocess.Popen(argv, cwd=ROOT, env=env, **pipes, **heeds)
    try:
        head, address = server.stdout.readline(), server.stdout.readline()
        assert "alpha dW" in head and address.startswith(f"http://127.0.0.1:{port} ")
        page = urlopen(f"http://127.0.0.1:{port}/").read().decode()
        loads = re.findall(r'(?:src|href)="(https?:)?//([^"/]+)', page)
        assert not [host for _, host in loads] and "googleapis" not in page
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        said = client.predict(QUESTIONS[0], 1, "", api_name="/ask")
        assert "steered, alpha = 1" in str(said) and 'aria-busy="false"' in str(said)
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=60)
        assert server.returncode == 0 and out.strip() == "the page is closed", err
        assert not [x for x in err.splitlines() if not x.startswith("loading ")]
    finally:
        server.kill()
