"""What the page of wsrun chat shows, as HTML; every text of users and models is escaped.

gauge: margin = log p(Yes) - log p(No), a bar from 0 towards Yes (right) or No (left)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from math import ceil

from wsrun.cli.sides import SIDES, Reading, heads

TEMPLATES = str.maketrans({c: f"&#{ord(c)};" for c in "{}$`@\\"})
"""what gradio's templates would read as theirs"""
NATS = 4.0  # the gauge reaches at least this far
STYLE = """
.talk {display: grid; grid-template-columns: 1fr 1fr; gap: .4rem 1.2rem; align-items: start}
.talk .question {grid-column: 1 / -1; font-weight: 600; margin-top: .6rem}
.talk h3, .gauge h3 {font-size: .8rem; font-weight: 600; margin: 0; opacity: .75}
.talk .said {border-left: 3px solid var(--border-color-primary); padding-left: .7rem}
.talk .steered {border-color: var(--color-accent)}
.talk p, .question {white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0}
.gauge {display: grid; grid-template-columns: auto 1fr auto; gap: .3rem .8rem; align-items: center}
.gauge .wide {grid-column: 1 / -1; overflow-wrap: anywhere}
.gauge .ends {display: grid; grid-template-columns: 1fr auto 1fr; font-size: .8rem; opacity: .75}
.gauge .ends :last-child {text-align: right}
.gauge .track {position: relative; height: 1.1rem; border-radius: 3px;
  background: linear-gradient(var(--body-text-color), var(--body-text-color)) center / 1px 100%
  no-repeat, var(--border-color-primary)}
.gauge .bar {position: absolute; top: 0; bottom: 0; border-radius: 3px; background: #64748b}
.gauge .steered .bar {background: var(--color-accent)}
.gauge .silent .bar {opacity: .35}
.gauge .value {font-variant-numeric: tabular-nums; text-align: right}
.gauge b {display: block}
.gauge b::first-letter {text-transform: uppercase}
.hint {font-size: .85rem; opacity: .75}
footer {display: none !important}
@media (max-width: 640px) {
  .talk, .gauge {grid-template-columns: 1fr}
  .gauge .value {text-align: left}
  .gauge > span:empty {display: none}
  #talk, #talk > * {max-height: none !important}
}
"""


@dataclass
class Exchange:
    """A question, the alpha it was asked at, and what both sides have said so far."""

    question: str
    alpha: float
    texts: dict[str, str] = field(default_factory=lambda: dict.fromkeys(SIDES, ""))
    done: bool = False


def text(raw: str) -> str:
    """The text for the page: no tag, no entity, nothing that a template reads."""
    return escape(raw).translate(TEMPLATES)


def transcript(exchanges: Sequence[Exchange]) -> str:
    """Each question, and below it both answers, in two columns where the window is wide enough."""
    if not exchanges:
        return '<div class="hint">Both sides answer each question from the same seed.</div>'
    parts = []
    for asked in exchanges:
        parts.append(f'<div class="question">{text(asked.question)}</div>')
        for side, head in heads(asked.alpha).items():
            said = text(asked.texts[side] or "...")
            parts.append(f'<div class="said {side}"><h3>{head}</h3><p>{said}</p></div>')
    busy = "false" if exchanges[-1].done else "true"
    return f'<div class="talk" role="log" aria-busy="{busy}">{"".join(parts)}</div>'


def gauge(
    question: str, alpha: float, readings: Mapping[str, Reading], opening: str, warning: str = ""
) -> str:
    """Both readings as bars on one scale, pale where the side does not answer; then the warning."""
    reach = float(max(NATS, *(ceil(abs(r.margin)) for r in readings.values())))
    bars = "".join(_bar(s, head, readings[s], reach) for s, head in heads(alpha).items())
    warned = f'<div class="wide"><b>{text(warning)}</b></div>' if warning else ""
    return (
        f'<div class="gauge"><div class="wide question">{text(question)}</div>'
        f'<span></span><div class="ends"><span>No, -{reach:g} nats</span><span>0</span>'
        f"<span>Yes, +{reach:g}</span></div><span></span>{bars}{warned}"
        f'<div class="wide hint">Margin: log p(Yes) - log p(No). Mass: p(Yes) + p(No), of the next '
        f"word after “{text(opening)}”. The question is asked alone, without what was said "
        "above.</div></div>"
    )


def _bar(side: str, head: str, reading: Reading, reach: float) -> str:
    share = 50 * abs(reading.margin) / reach
    left = 50.0 if reading.margin >= 0 else 50 - share
    kind = side if reading.answers else f"{side} silent"
    return (
        f'<h3>{head}</h3><div class="{kind}"><div class="track">'
        f'<div class="bar" style="left: {left:.2f}%; width: {share:.2f}%"></div></div></div>'
        f'<div class="value">{reading.margin:+.2f} nats, mass {reading.mass:.2f}</div>'
    )
