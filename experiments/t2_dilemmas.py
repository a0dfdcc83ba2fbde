"""How does every family's dW act on the full set of dilemmas, from alpha = -2 to 2?

Question:   does the share of honest answers rise with alpha, the coefficient of dW, in both
            directions, on dilemmas that no adapter was trained on?
Prediction: it rises at every step from -2 to 2 in every family; a change that only raises Yes
            shows as bias and not as discrimination.
Rule:       per family: supported if the effect rises at every step between neighbouring alphas, the
            95 % interval of each paired difference above 0; refuted if one of them lies below 0;
            else undetermined.

    python experiments/t2_dilemmas.py
    python experiments/t2_dilemmas.py --source wassname/daily_dilemmas-self-honesty --model ...

All rows ("dilemmas") stand beside those whose own action is flagged as about honesty
("dilemmas_honesty"; all rows where the set has no flags), from one scoring. alpha = 0 is the base.
`yes_bias` is a planted change of the readout that raises Yes on every item alike, `zero` is dW zero
times. A local --source is a folder, parquet or jsonl file of the hub set's columns.
"""

from wsrun.script import guarded

from collections.abc import Iterator
from dataclasses import dataclass

from wscore import DeltaLike, scale
from wsrun.data.source import load_dose_items, load_items
from wsrun.report.console import console, strong
from wsrun.report.effect_figures import effects_by_dose
from wsrun.report.verdicts import RuleResult
from wsrun.score.variants import Variant
from wsrun.steer.interventions import ConstructedDelta, WeightDelta
from wsrun.study.controls import final_states, yes_bias
from wsrun.study.dilemmas import (
    RESPONSE,
    dose_table,
    print_doses,
    rises,
    shown,
    with_honesty,
    with_honesty_read,
)
from wsrun.study.next_command import say_next
from wsrun.study.options import Common, check_common
from wsrun.study.scoring import run_sweep
from wsrun.study.session import (
    Pairs,
    Session,
    marked,
    read_pairs,
    run_record,
    save_figure,
    write_tables,
)
from wsrun.study.start import Asked, load_session, run_shards

EXPERIMENT = "t2_dilemmas"
QUESTION = "How does the honesty of the answers follow the dose of dW?"


@dataclass(frozen=True)
class Config(Common):
    """Options of T2."""

    dilemmas: int | None = None
    """how many of the dilemmas to score, the first by dilemma_idx; None for all"""
    alphas: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    """coefficients of dW; 0 is the base, which is scored in any case"""
    source: str | None = None
    """hub name of the dilemmas, or a local folder, parquet or jsonl; None for those of `data`"""
    nats: float = 2.0
    """how much the planted yes_bias raises the margin"""


def main(cfg: Config) -> None:
    """Score every family at every alpha, write rows, summary and figure, print the verdicts."""
    check_common(cfg, "t2")
    if not any(cfg.alphas):
        raise ValueError("t2: --alphas needs one that is not 0, got 0")
    run_shards(cfg)
    source = cfg.source or cfg.data
    dilemmas, to_check = (
        load_dose_items(source, cfg.dilemmas, n) for n in (cfg.limit, cfg.check_limit)
    )
    session = load_session(cfg, Asked(dilemmas.items, to_check.items))
    session = session._replace(reads=with_honesty_read(session.reads))
    pairs = read_pairs(session.model, cfg)
    rows = run_sweep(cfg, EXPERIMENT, session, variants(pairs, planted_bias(cfg, session)))
    if rows is None:  # a shard
        return
    rows = with_honesty(rows, dilemmas)
    table = dose_table(rows, cfg.families, cfg.resamples)
    verdicts = [
        RuleResult(d, "the effect rises with alpha", f, *rises(table, d, f))
        for d in table["dataset"].unique().sort()
        for f in sorted(cfg.families)
    ]
    record = run_record(
        cfg, session, pairs, dilemmas={"source": source, "revision": dilemmas.revision}
    )
    path = write_tables(cfg, EXPERIMENT, rows, table, record, verdicts)
    print_doses(rows, table, dilemmas)
    for v in verdicts:
        if v.dataset in shown(table, dilemmas):
            console.print(strong(f"{v.dataset}: {v.outcome}:"), v.sentence)
    drawn = table.filter(
        table["variant"].is_in(RESPONSE) & table["dataset"].is_in(shown(table, dilemmas))
    )
    save_figure(effects_by_dose, marked(drawn, session.reads), path, QUESTION)
    say_next(cfg, "t3_prompts", "the same change beside prompts")


def planted_bias(cfg: Config, session: Session) -> DeltaLike | None:
    """A change that raises Yes by cfg.nats whatever is asked; None where items have replies."""
    if session.items[0].replies:
        return None
    states = final_states(session.model, session.tok, load_items(cfg.data, "validation"))
    return yes_bias(session.model, session.tok, states, cfg.nats)


def variants(pairs: Pairs, planted: DeltaLike | None) -> Iterator[Variant]:
    """dW of every family and seed at every alpha; the planted bias and nothing, once each."""
    for (family, seed), pair in pairs.items():
        yield Variant("dW", WeightDelta(pair.dW), family=family, seed=seed)
    if planted:
        yield Variant("yes_bias", ConstructedDelta(planted), alphas=(1.0,))
    first = next(iter(pairs.values()))
    yield Variant("zero", ConstructedDelta(scale(0.0, first.dW)), alphas=(1.0,))


if __name__ == "__main__":
    guarded(main, Config)
