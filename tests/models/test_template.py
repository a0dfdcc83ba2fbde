"""Chat templates: no user turn is lost, none runs without end, each failure is a sentence."""

import threading
import time

import pytest

from tests.folders import REFUSES_SYSTEM
from tests.models.test_chat import DROPS_SYSTEM, tokenizer
from wscore.bounds import TooSlow, time_limit, trial
from wsrun.models.chat import end_of_turn, render, user
from wsrun.models.template import apply_template, check_template, holds

EACH = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<model>"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "template, says",
    [
        ("<user>", "loses the text"),
        ("{{ messages[0].content[:5] }}", "loses the text"),
        ("{% for m in messages[:-1] %}{{ m.content }}{% endfor %}", "loses the text"),
        ("{{ raise_exception('never') }}", "fails .*never"),
        ("{% for %}", "fails"),
        ("{{ 1 / 0 }}" + EACH, "fails .*zero"),
        ("{{ nothing.at.all }}" + EACH, "fails"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(0) }}", "fails .*recursion"),
        (ENDLESS + EACH, "runs longer"),
        ("{{ 'x' * 10**10 }}" + EACH, "memory|MB"),
        ("{{ 'x' * 2 * 10**6 }}" + EACH, "writes .* letters"),
        (EACH + "{% if messages|length > 2 %}" + ENDLESS + "{% endif %}", "runs longer"),
    ],
)
def test_templates_that_cannot_be_used(template, says):
    """dropped texts, errors of any kind, no end in time or memory: one sentence, in a second"""
    with pytest.raises(ValueError, match=f"chat template of .*{says}") as refusal:
        check_template(tokenizer(template))
    assert str(refusal.value).isprintable() and "chat_template.jinja" in str(refusal.value)


@pytest.mark.parametrize(
    "template", [EACH, REFUSES_SYSTEM, DROPS_SYSTEM, EACH.replace("content", "content | trim")]
)
def test_templates_that_can(template):
    """those that refuse or drop a system turn, or trim, are as good as others"""
    check_template(tok := tokenizer(template))
    assert render(tok, user("  Is it \n", "You lie."))


def test_every_turn_of_the_user_s_must_stand_in_the_prompt():
    """also the last, the same one twice, and the system turn that the user's own text repeats"""
    first = tokenizer("{{ messages[0].content }}<model>")
    talk = [*user("Is it"), {"role": "assistant", "content": "no"}, *user("so ?")]
    with pytest.raises(ValueError, match="loses the text"):
        render(first, talk)
    with pytest.raises(ValueError, match="loses the text"):
        render(first, [*talk[:2], *user("Is it")])
    drops, told = tokenizer(DROPS_SYSTEM), user("You lie . Is it so", "You lie .")
    assert render(drops, told) == render(drops, user("You lie .\n\nYou lie . Is it so"))
    assert holds("a  b\nc a", ["a b", "c", "a"]) and not holds("a b c", ["a b", "a"])


def test_an_empty_system_turn():
    """it is rendered where the template takes it, and adds nothing where it does not"""
    taken, plain = tokenizer(EACH), user("Is it so")
    assert len(render(taken, user("Is it so", ""))) > len(render(taken, plain))
    for template in (REFUSES_SYSTEM, DROPS_SYSTEM):
        tok = tokenizer(template)
        assert render(tok, user("Is it so", "")) == render(tok, plain)
    with pytest.raises(ValueError, match="at least one turn after the system turn"):
        render(taken, plain[:0])
    with pytest.raises(ValueError, match="at least one turn after the system turn"):
        render(taken, user("x", "You lie.")[:1])


def test_a_slow_rendering_ends_on_any_thread(monkeypatch):
    """a template whose time depends on the text is stopped, on this thread and on another"""
    monkeypatch.setattr("wsrun.models.template.SECONDS", 0.2)
    tok = tokenizer("{% if 'so' in messages[0].content %}" + ENDLESS + "{% endif %}" + EACH)
    said = []

    def run():
        try:
            render(tok, user("Is it so"))
        except ValueError as refusal:
            said.append(str(refusal))

    thread = threading.Thread(target=run)
    thread.start()
    run()
    thread.join()
    assert len(said) == 2 and all("runs longer than 0.2 s" in s for s in said)
    assert render(tok, user("Is it"))


def test_a_time_limit_is_over_when_its_block_is():
    """nothing is raised after the block, and an exception of the block's own passes"""
    with time_limit(0.05):
        pass
    with pytest.raises(KeyError), time_limit(0.05):
        raise KeyError
    time.sleep(0.4)
    with pytest.raises(TooSlow), time_limit(0.05):
        while True:
            pass


def test_a_trial_leaves_no_trace_here():
    """what runs in the child changes nothing, and its refusal comes out in its words"""
    seen: list[int] = []
    trial(lambda: seen.append(1), "it", "mend it")
    assert not seen
    with pytest.raises(ValueError, match="^no good$"):
        trial(lambda: [][0] if seen else fail(), "it", "mend it")


def fail():
    raise ValueError("no good")


def test_errors_after_loading_are_sentences(tok):
    """a template that refuses an assistant's turn ends no turn; one without an end neither"""
    refuses = tokenizer(
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no') }}"
        "{% endif %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(ValueError, match="chat template of .* fails .*no"):
        end_of_turn(refuses)
    with pytest.raises(ValueError, match="ends no turn"):
        end_of_turn(tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}"))
    assert apply_template(tok, user("Is it so?"))
