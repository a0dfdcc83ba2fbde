"""Chat templates: what is accepted holds the user's and the system's texts, in bounded time."""

import random
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from tests.fuzz.border_models import TEMPLATE
from tests.fuzz.border_models import prepare as folder_with_tokenizer
from tests.fuzz.cases import Border, Case, damaged_bytes
from wsrun.models.chat import end_of_turn, render, user
from wsrun.models.template import check_template

LOOP = "{% for m in messages %}"
PIECES = (
    "{{ m['content'] }}", "{{ m.content | trim }}", "{{ m.role }}", "{{ m['content'] | upper }}",
    "{{ m.content[:9] }}", "{{ messages[0]['content'] }}", "{{ messages[-1].content }}",
    "<|im_start|>", "{{ bos_token }}", "{{ eos_token }}", "{{ x }}", "{{ x.y }}", "{{ 1 / 0 }}",
    "{{ m.content + 1 }}", "{{ raise_exception('no') }}", "{{ strftime_now('%Y') }}", "\n",
    "{{ m.content | tojson }}",
    "{{ m.content.split()[0] }}", "{{ m.content | replace('a', 'b') }}", "{{ m | length }}",
    "{{ m.content | reverse }}", "{{ m.content | indent }}", "{{ m.content | wordwrap(9) }}",
    "{{ m.__class__.__mro__ }}", "{{ cycler.__init__.__globals__.os.system('touch ran') }}",
    "{{ namespace(a=1).a }}", "{{ m.content | escape }}", "{{ [] | first }}",
    "{{ m.content.zz() }}", "{% include 'x' %}", "{% import 'x' as y %}", "{{ 'a' | int('x') }}",
    "{{ ''.join(m.content) }}",
)  # fmt: skip
ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 'x' * 10**10 }}", "{{ 'x' * 10**8 }}", "{% set x = 10**10**7 %}{{ x }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}"
    "{{ n.s }}",
    "{{ '%9999999999d' % 1 }}", "{{ 'x'.center(10**10) }}", "{{ range(10**9) | list }}",
    "{{ 'x' | center(10**9) }}", "{% for i in range(10**5) %}{{ messages }}{% endfor %}",
    "{{ lipsum(n=100000) }}", "{{ 'a'.replace('', 'x' * 10**5).replace('', 'x' * 10**5) }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ [1] * 10**9 }}", "{{ (1, 2) | batch(10**9, 0) | list }}",
    "{{ 'x' | indent(10**9, true) }}",
    "{% set s = messages[0].content %}{% for a in s %}{% for b in s %}{% for c in s %}"
    "{% for d in s %}{% endfor %}{% endfor %}{% endfor %}{% endfor %}",
)  # fmt: skip
CONDITIONS = (
    "messages[0].role == 'system'", "messages | length > 1", "messages | length > 2",
    "add_generation_prompt", "messages[0].content | length > 5", "loop.first", "loop.last",
    "m.role == 'user'", "m.role != 'system'", "enable_thinking", "not enable_thinking",
    "x is defined",
)  # fmt: skip
WORDS = ("Is", "it", "so?", "You", "lie.", "user", "<think>", "\n", "  ", "a", "é", "{{", "%}", "0")


def prepare(folder: Path) -> PreTrainedTokenizerFast:
    made = folder_with_tokenizer(folder)
    return PreTrainedTokenizerFast.from_pretrained(made)


def template(rng: random.Random, depth: int = 0) -> str:
    """Pieces, loops and conditions, one in another."""
    parts = []
    for _ in range(rng.randint(1, 4)):
        kind = rng.choice(["piece", "piece", "piece", "loop", "if", "whole"])
        if depth > 2 or kind == "piece":
            parts.append(rng.choice(PIECES))
        elif kind == "loop":
            parts.append(f"{LOOP}{template(rng, depth + 1)}{{% endfor %}}")
        elif kind == "whole":
            parts.append(TEMPLATE)
        else:
            condition = rng.choice(CONDITIONS)
            other = f"{{% else %}}{template(rng, depth + 1)}" * rng.randint(0, 1)
            parts.append(f"{{% if {condition} %}}{template(rng, depth + 1)}{other}{{% endif %}}")
    return "".join(parts)


def any_template(rng: random.Random) -> str:
    kind = rng.choice(["random"] * 12 + ["bytes"] * 4 + ["sound"] * 3 + ["odd", "endless"])
    if kind == "endless":
        nasty = rng.choice(ENDLESS)
        if rng.random() < 0.3:
            nasty = f"{{% if {rng.choice(CONDITIONS[:5])} %}}{nasty}{{% endif %}}"
        return rng.choice([nasty + TEMPLATE, TEMPLATE + nasty, nasty])
    if kind == "bytes":
        return damaged_bytes(rng, TEMPLATE.encode())[0].decode(errors="replace")
    if kind == "sound":
        return TEMPLATE.replace("['content']", rng.choice(["['content'] | trim", ".content"]))
    return rng.choice(["x", "{{", "{{ 1 }}", "{% for %}", "{" * 2000]) if kind == "odd" else (
        LOOP + template(rng) + "{% endfor %}" if rng.random() < 0.5 else template(rng))  # fmt: skip


def case(rng: random.Random, folder: Path, prepared: Any) -> Case:
    tok = prepared
    tok.chat_template = any_template(rng)
    one, other = (" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(2))
    system = rng.choice([None, "", other, "You lie about everything."])
    turns = [*user(f"{one} asked?", system)]
    if rng.random() < 0.2:
        turns += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": one}]
    prefill = rng.choice(["", "My answer: **"])

    def read() -> list[int]:
        check_template(tok)
        if rng.random() < 0.3:
            end_of_turn(tok)
        return render(tok, turns, prefill)

    def right(ids: list[int]) -> bool:
        """Up to white space, each text stands in what the ids say, and the prefill ends it."""
        text = tok.decode(ids)
        bare = "".join(text.split())
        texts = ["".join(t["content"].split()) for t in turns if t["role"] != "assistant"]
        return all(t in bare for t in texts) and text.endswith(prefill)

    shown = f"{tok.chat_template[:150]!r} on {turns!r}"
    return Case(shown, read, (str(tok.name_or_path),), right)


BORDER = Border("templates", prepare, case)
