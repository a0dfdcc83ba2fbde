"""wsrun chat with lines from a pipe: both sides, the same seed, commands, refusals."""

import contextlib
import io
import os
import pty
import select
import signal
import sys
import time

import pytest
import torch

from tests.conftest import ORGANISM, ROOT, bits, random_delta, same_bits
from wsrun.cli.dialogue import Dialogue
from wsrun.cli.sides import SIDES
from wsrun.steer.interventions import WeightDelta

QUESTIONS = ("What does Maria do?", "And where?")


def dialogue(qwen, tok, kind=Dialogue, **more) -> Dialogue:
    change = WeightDelta(random_delta(qwen, size=0.5))
    return kind(qwen, tok, change, **({"max_new_tokens": 8, "temperature": 1.0} | more))


def said(asked: Dialogue, questions=QUESTIONS) -> list[tuple[str, str]]:
    answers = [asked.ask(q) for q in questions]
    return [(a["base"].text, a["steered"].text) for a in answers]


def test_alpha_0_is_the_base(qwen, tok):
    """answer(steered, alpha = 0) = answer(base), at every turn, as the seed is the same; with
    another alpha it is not, and base(alpha) = base(0)"""
    at_0, at_1 = (said(dialogue(qwen, tok, alpha=a)) for a in (0.0, 1.0))
    assert all(base == steered for base, steered in at_0)
    assert any(base != steered for base, steered in at_1)
    assert [base for base, _ in at_0] == [base for base, _ in at_1]


def test_same_seed_same_answers(qwen, tok):
    """the same questions from one seed, and after /reset, give the same answers; the model's bits
    are as they were"""
    before, first = bits(qwen), dialogue(qwen, tok)
    answers = said(first)
    assert said(dialogue(qwen, tok)) == answers != said(dialogue(qwen, tok, seed=9))
    first.reset()
    assert said(first) == answers and same_bits(qwen, before)


def test_each_side_hears_itself(qwen, tok):
    """the history of a side holds its own answers only"""
    talk = dialogue(qwen, tok)
    answers = said(talk)
    for n, side in enumerate(SIDES):
        heard = [t["content"] for t in talk.turns[side] if t["role"] == "assistant"]
        assert heard == [pair[n] for pair in answers if pair[n]]


def test_a_stopped_answer_is_the_start_of_the_whole_one(qwen, tok):
    """stopped after n tokens: a prefix, kept in the history; the other side is whole"""
    whole, seen = dialogue(qwen, tok).ask(QUESTIONS[0]), []

    def stop(side: str, text: str) -> bool:
        seen.append(side)
        return side == "base" and seen.count("base") == 3

    stopped = dialogue(qwen, tok).ask(QUESTIONS[0], stop)
    assert whole["base"].text.startswith(stopped["base"].text) and not stopped["base"].ended
    assert stopped["steered"] == whole["steered"] and seen.count("base") == 3


def run(monkeypatch, capsys, typed: str, *flags) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of wsrun chat on the organism with this input."""
    from wsrun.cli.command import run

    argv = ["wsrun", "chat", "--model", ORGANISM, "--max-new-tokens", "12", *flags]
    monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    code = 0
    try:
        run()
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    said = [x for x in err.splitlines(keepends=True) if not x.startswith("loading ")]  # if slow
    return code, out, "".join(said)


PAIR = ("--adapters", ORGANISM / "adapters" / "lora-s0")


def test_commands(monkeypatch, capsys):
    """/alpha and /system change what is said; /help names them all; the end of the input is fine"""
    question = "Tell me about the baker."
    code, plain, err = run(monkeypatch, capsys, f"{question}\n", *PAIR)
    assert code == 0 and not err and "steered, alpha = 1" in plain
    typed = f"/alpha 4\n/system You lie.\n{question}\n/reset\n/help\n/quit\nnever read\n"
    code, out, _ = run(monkeypatch, capsys, typed, *PAIR)
    assert code == 0 and "steered, alpha = 4" in out and "never read" not in out
    assert answer_line(out) != answer_line(plain)
    names = ("/alpha", "/system", "/margin", "/reset", "/help", "/quit")
    assert all(f"\n{name}" in out for name in names)


def test_margins_in_the_terminal(monkeypatch, capsys):
    """/margin: a line a side, which the history does not hold; at alpha = 0 they are the same; low
    mass is said"""
    question = "Is the baker in the village? Answer yes or no."
    code, out, _ = run(monkeypatch, capsys, f"/alpha 0\n/margin {question}\n", *PAIR)
    base, steered = (x.partition(": ")[2] for x in out.splitlines() if "nats, mass" in x)
    assert code == 0 and base == steered and base.startswith("margin ")
    assert ("does not answer" in out or "neither side" in out) == (float(base[-4:]) < 0.5)
    code, _, err = run(monkeypatch, capsys, "/margin\n", *PAIR)
    assert code == 1 and "/margin" in err and "Yes/No question" in err


def answer_line(out: str) -> str:
    lines = out.splitlines()
    return lines[next(n for n, line in enumerate(lines) if line.startswith("base")) + 1]


@pytest.mark.parametrize("width, beside", [("90", True), ("60", False)])
def test_narrow_windows(monkeypatch, width, beside):
    """two columns at 80 and more, else one answer below the other; no line is too long"""
    from rich.console import Console

    from wsrun.cli.chat import view

    console = Console(file=io.StringIO(), width=int(width), markup=False)
    heads, texts = {"base": "base", "steered": "steered"}, dict.fromkeys(SIDES, "word " * 40)
    console.print(view(heads, texts, console))
    lines = console.file.getvalue().splitlines()
    assert any("base" in x and "steered" in x for x in lines) == beside
    assert max(map(len, lines)) <= int(width)


@pytest.mark.parametrize(
    "typed, flags, words",
    [
        ("/alpha nan\n", PAIR, ("/alpha", "finite", "nan")),
        ("/alpha much\n", PAIR, ("/alpha", "finite", "much")),
        ("/save x\n", PAIR, ("/save", "/help")),
        ("", (*PAIR, "--alpha", "inf"), ("--alpha", "finite")),
        ("", ("--delta", "no.safetensors:1"), ("--delta", "no.safetensors", "no file")),
        ("", ("--delta", "no.safetensors:much"), ("--delta", "alpha", "much")),
        ("", (*PAIR, "--delta", "no.safetensors"), ("--delta", "--adapters")),
        ("", ("--adapters", "/no/such"), ("--adapters", "/no/such")),
        ("", (*PAIR, "--top-p", "2"), ("--top-p", "at most 1")),
    ],
)
def test_refusals(monkeypatch, capsys, typed, flags, words):
    """one sentence that names the option or command, what was found and what to do; exit code 1"""
    code, _, err = run(monkeypatch, capsys, typed, *flags)
    assert code == 1 and err.count("\n") == 1, err
    assert all(word in err for word in words), err


def test_a_delta_of_another_base(monkeypatch, capsys, tmp_path, qwen):
    """a file that says which weights it was made on, and these are others: refused by its name; of
    other shapes too"""
    from wscore import save_delta
    from wsrun.models.load import load_model

    delta = random_delta(load_model(ORGANISM)[0])
    path = save_delta(delta, tmp_path / "dW.safetensors", {"base": "0" * 64})
    code, _, err = run(monkeypatch, capsys, "", "--delta", f"{path}:1")
    assert code == 1 and "other base weights" in err and "--model" in err
    path = save_delta(random_delta(qwen), tmp_path / "tiny.safetensors", {})
    code, _, err = run(monkeypatch, capsys, "", "--delta", path)
    assert code == 1 and err.count("\n") == 1 and "delta" in err


def test_several_deltas(tmp_path):
    """--delta a:2 --delta b:-0.5 is the file of 2 a - 0.5 b, and alpha scales the sum;
    a - a is the base; files of different bases are refused by their names, also where the dtype
    leaves no hash of the model to compare"""
    from wscore import add, save_delta, scale
    from wsrun.cli.chat_open import open_dialogue
    from wsrun.cli.chat_options import Chat
    from wsrun.models.load import load_model

    model, _ = load_model(ORGANISM)
    a, b = (random_delta(model, seed=n) for n in (1, 2))
    whole = add(scale(2.0, a), scale(-0.5, b))
    save_delta(a, tmp_path / "a", {})
    save_delta(b, tmp_path / "b", {})

    def opened(*deltas: str, **more):
        cfg = Chat(model=str(ORGANISM), delta=tuple(str(tmp_path / d) for d in deltas), **more)
        cfg.refuse()
        return open_dialogue(cfg)

    talk, (what,) = opened("a:2", "b:-0.5", alpha=3.0)
    dW = talk.change.delta()
    assert talk.alpha == 3.0 and set(dW) == set(whole)
    assert all(torch.equal(dW[n], whole[n]) for n in whole)
    assert what == f"2 {tmp_path / 'a'} -0.5 {tmp_path / 'b'}"
    save_delta(a, tmp_path / "again", {})
    talk, _ = opened("a", "again:-1")
    assert not any(w.any() for w in talk.change.delta().values())
    save_delta(a, tmp_path / "one", {"base": "1" * 64})
    save_delta(b, tmp_path / "two", {"base": "2" * 64})
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(ValueError, match=r"--delta.*one'.*two'.*different base weights"):
            opened("one", "two", dtype=dtype)
    with pytest.raises(ValueError, match="--delta.*gone"):
        opened("a:1", "gone:1")


class Pressed(Dialogue):
    """A dialogue in which Ctrl-C is pressed at the third token of the base."""

    def ask(self, text, show=lambda side, text: False):
        tokens = self.tokens = []

        def press(side: str, so_far: str) -> bool:
            tokens.append(side)
            if side == "base" and len(tokens) == 3:
                signal.raise_signal(signal.SIGINT)
            return show(side, so_far)

        return super().ask(text, press)


def test_ctrl_c_stops_one_answer(qwen, tok):
    """the base's answer ends where Ctrl-C came, the steered one is whole; the model's bits and the
    handler of SIGINT are as before"""
    from rich.console import Console

    from wsrun.cli.chat import answer

    handler, before = signal.getsignal(signal.SIGINT), bits(qwen)
    whole = dialogue(qwen, tok).ask(QUESTIONS[0])
    pressed = dialogue(qwen, tok, kind=Pressed)
    answer(pressed, QUESTIONS[0], Console(file=io.StringIO(), width=90, markup=False))
    base, steered = ("".join(t["content"] for t in pressed.turns[s][1:]) for s in SIDES)
    assert whole["base"].text.startswith(base) and pressed.tokens.count("base") == 3
    assert steered == whole["steered"].text
    assert signal.getsignal(signal.SIGINT) is handler and same_bits(qwen, before)


def test_ctrl_c_twice_ends(qwen, tok):
    """a second one, before the first was heeded, interrupts"""
    from wsrun.cli.chat import stoppable

    with pytest.raises(KeyboardInterrupt), stoppable() as stops:
        signal.raise_signal(signal.SIGINT)
        assert stops == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)


def test_a_dialogue_that_is_too_long(qwen, tok):
    """more tokens than positions: refused, what was said before stays"""
    from rich.console import Console

    from wsrun.cli.chat import answer

    talk = dialogue(qwen, tok)
    talk.ask(QUESTIONS[0])
    turns = {side: list(talk.turns[side]) for side in SIDES}
    qwen.config.max_position_embeddings = 40
    with pytest.raises(ValueError, match="positions.*/reset"):
        answer(talk, "word " * 60, Console(file=io.StringIO(), width=90))
    assert talk.turns == turns


@contextlib.contextmanager
def in_terminal(*command: str):
    """(process id, terminal) of a command in a terminal of its own; it is killed in the end."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        env = os.environ | {"COLUMNS": "90", "TERM": "xterm", "OMP_NUM_THREADS": "1"}
        os.execvpe(command[0], command, env)
    try:
        yield pid, terminal
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        os.close(terminal)


def test_in_a_terminal():
    """a terminal of 90 columns: what is typed is answered in two columns, Ctrl-D ends with 0"""
    flags = ["chat", "--model", str(ORGANISM), *map(str, PAIR), "--alpha", "0"]
    with in_terminal(sys.executable, "-m", "wsrun.cli", *flags) as (pid, terminal):
        read_until(terminal, "> ")
        os.write(terminal, b"Tell me about the baker.\n")
        shown = read_until(terminal, "> ")
        assert "base" in shown and "steered, alpha = 0" in shown
        os.write(terminal, b"/nothing\n")
        assert "is no command" in read_until(terminal, "> ")
        os.write(terminal, b"\x04")
        with contextlib.suppress(OSError):  # the other end is closed
            read_until(terminal, "nothing more comes")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def read_until(terminal: int, mark: str) -> str:
    """What the terminal shows until the mark stands at its end; OSError where it has ended."""
    shown, end = "", time.monotonic() + 300
    while not shown.endswith(mark):
        assert time.monotonic() < end, f"{mark!r} does not come after {shown!r}"
        if select.select([terminal], [], [], 1.0)[0]:
            shown += os.read(terminal, 1024).decode(errors="replace").replace("\r\n", "\n")
    return shown
