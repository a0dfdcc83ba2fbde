"""Does a prompt do what dW does, and does dW add anything to it?

Question:   on the same test items, how does the best dW compare with the best system prompt, with
            one adapter alone (tau_pos, -tau_neg), with both at once, and does dW of one adapter
            undo what another fine-tuning did?
Prediction: dW beats neither pole's prompt on a model that was trained to obey them; it moves a
            fine-tuned model, and it adds to a prompt.
Rule:       a way beats dW, or loses to it, where the 95 % interval of their paired difference on
            test items excludes 0; else it is not apart from it. The same rule tells finetuned+dW
            from finetuned, prompt+dW from the prompt alone, and the other pole's prompts from -dW.

    python experiments/t3_prompts.py
    python experiments/t3_prompts.py --data data/english --model ... --adapters ...

simple and engineered are system prompts towards the pole (`--pos`, and <pos>_engineered where
personas.json has it), simple_neg and engineered_neg towards the other one; neutral only asks for
help. tau_pos and -tau_neg are the halves of dW (Fierro & Roger 2025, arXiv 2511.05408: the
non-contrastive variants). finetuned is theta_ft = W0 + tau_neg of the first family, finetuned+dW is
theta_ft + k dW of another one; prompt+dW is the chosen prompt together with the chosen family's dW.
Wording, family and dose are picked on validation items.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import polars as pl

from wscore import add, contrast, scale
from wsrun.report import curves
from wsrun.report.console import console, guarded
from wsrun.report.standings import against_dW, span, standings, winner
from wsrun.score.names import DW
from wsrun.score.sweep import Variant
from wsrun.steer.prompts import OTHER_POLE, reaching, read_wordings
from wsrun.study.benchmark import Options, check, choose, load_splits, of_poles, prompts, report_on
from wsrun.study.controls import nothing, random_changes
from wsrun.study.next_command import say_next
from wsrun.study.selection import Chosen
from wsrun.study.session import Pairs, draw, read_pairs, record, share, write

EXPERIMENT = "t3_prompts"
PROMPTS = ("simple", "engineered")  # the ways that the best prompt is taken from
AGAINST = (f"-{DW}", *OTHER_POLE)
ASIDE = (DW, "finetuned", *AGAINST)  # ways that are no rivals of dW
OVER = ("over_diff", "over_lo", "over_hi")


@dataclass(frozen=True)
class Config(Options):
    """Options of T3."""

    pos: str = "honest"
    """persona of personas.json towards which dW points"""
    neg: str = "dishonest"
    """persona of the other pole"""


def main(cfg: Config) -> None:
    """Pick every way's setting on validation, report all on test items, print the comparisons."""
    check(cfg, "t3")
    share(cfg)
    wordings = read_wordings(cfg.data, cfg.pos, cfg.neg)
    validation, test = load_splits(cfg)
    wordings = reaching(test.tok, [*validation.items, *test.items], wordings, "t3")
    pairs = read_pairs(test.model, cfg)
    candidates = [
        *of_poles(cfg, pairs),
        *prompts(wordings),
        *finetuned(cfg, pairs),
    ]
    chosen = choose(cfg, EXPERIMENT, validation, candidates, AGAINST)
    if chosen is None:  # a shard
        return
    best = best_prompt(chosen)
    both = choose(cfg, EXPERIMENT, validation, [chosen[DW].variant, *with_dW(cfg, best, chosen)])
    assert both is not None
    chosen |= {way: c for way, c in both.items() if way == "prompt+dW"}
    controls = [nothing(chosen), *random_changes(chosen[DW].variant, cfg.randoms)]
    rows, table = report_on(cfg, EXPERIMENT, test, chosen, controls)
    over = {"prompt+dW": best.name, "finetuned+dW": "finetuned"}
    over |= {way: f"-{DW}" for way in AGAINST[1:]}
    known = {c.variant.name for c in chosen.values()}
    over = {chosen[way].variant.name: of for way, of in over.items() if way in chosen}
    table = above(cfg, rows, table, {name: of for name, of in over.items() if of in known})
    systems = {c.variant.name: c.variant.system for c in chosen.values()}
    table = table.with_columns(system=pl.col("variant").replace_strict(systems, default=None))
    table = deltas(table, best.name)
    said = table.select("dataset", "prompt_baseline_delta", "weight_steer_delta").unique()
    made = record(
        cfg, test, pairs, wordings=wordings, best_prompt=best.name, system=best.system,
        deltas_on_test=said.sort("dataset").to_dicts(),
    )  # fmt: skip
    path = write(cfg, EXPERIMENT, rows, table, made)
    report(cfg, table, best)
    draw(curves.ways, table, path, "What do prompts, dW and both do?")
    console.print(f"the wordings stand in {path}")
    say_next(cfg, "t9_synthetic", "changes that were never trained")


def finetuned(cfg: Config, pairs: Pairs) -> Iterator[Variant]:
    """theta_ft = W0 + tau_neg of the first pair, and theta_ft + k dW of every other pair.

    With one pair alone, dW is its own.
    """
    (family, seed), pair = next(iter(pairs.items()))
    yield Variant("finetuned", pair.neg, family=family, seed=seed, alphas=(1.0,))
    others = {key: p.dW for key, p in pairs.items() if key != (family, seed)}
    for (other, of), dW in (others or {(family, seed): pair.dW}).items():
        for k in cfg.alphas:
            change = partial(lambda dW, k: add(pair.neg, scale(k, dW)), dW, k)
            name = f"finetuned+dW@{other}, k {k:g}"
            yield Variant(name, change, family=other, seed=of, alphas=(1.0,))


def best_prompt(chosen: Mapping[str, Chosen]) -> Variant:
    """The wording towards the pole with the largest effect on validation items."""
    return max((chosen[w] for w in PROMPTS if w in chosen), key=lambda c: c.validation).variant


def with_dW(cfg: Config, best: Variant, chosen: Mapping[str, Chosen]) -> Iterator[Variant]:
    """The best prompt together with the chosen family's dW at every dose."""
    dW = chosen[DW].variant
    yield Variant(
        f"prompt+dW@{best.name}",
        dW.delta,
        family=dW.family,
        seed=dW.seed,
        alphas=cfg.alphas,
        system=best.system,
    )


def above(
    cfg: Config, rows: pl.DataFrame, table: pl.DataFrame, over: Mapping[str, str]
) -> pl.DataFrame:
    """Columns over, over_diff, over_lo, over_hi: a line against the line that it builds on."""
    found = [pl.DataFrame(schema=dict.fromkeys(("dataset", "variant", "over"), pl.String()))]
    found[0] = found[0].with_columns(pl.lit(0.0).alias(c) for c in OVER)
    for name, reference in over.items():
        of = rows.filter(pl.col("variant").is_in(["base", name, reference]))
        apart = contrast(of, {"variant": reference}, resamples=cfg.resamples).filter(variant=name)
        diff = dict(zip(OVER, ("diff", "diff_lo", "diff_hi"), strict=True))
        found.append(apart.select("dataset", "variant", over=pl.lit(reference), **diff))
    return table.join(
        pl.concat(found), on=("dataset", "variant"), how="left", maintain_order="left"
    )


def deltas(table: pl.DataFrame, best: str) -> pl.DataFrame:
    """Columns prompt_baseline_delta and weight_steer_delta: the effects of the best prompt and of
    the chosen dW on the same items of a data set."""
    for column, name in {"prompt_baseline_delta": best, "weight_steer_delta": DW}.items():
        has = table.filter(pl.col("role") != "unmatched", variant=name)
        line = has.select("dataset", pl.col("effect").alias(column))
        table = table.join(line, on="dataset", how="left", maintain_order="left")
    return table


def report(cfg: Config, table: pl.DataFrame, best: Variant) -> None:
    """Print the standings, what beats dW and what dW adds."""
    console.print(f"best prompt on validation items, {best.name}: {best.system}", markup=False)
    for (dataset,), part in table.group_by("dataset", maintain_order=True):
        title = f"{dataset}: effect in nats on test items, and paired difference to dW"
        console.print(standings(part, title))
        line = part.row(0, named=True)
        console.print(
            f"{dataset}: prompt_baseline_delta {line['prompt_baseline_delta']:+.2f}, "
            f"weight_steer_delta {line['weight_steer_delta']:+.2f} nats, on the same "
            f"{line['n']} items"
        )
        for sentence in against_dW(part, lambda way: way not in ASIDE):
            console.print(sentence)
        for r in part.filter(pl.col("over").is_not_null()).iter_rows(named=True):
            console.print(f"{dataset}: {over_sentence(r)}")


def over_sentence(line: Mapping) -> str:
    """The rule on a line and the one it builds on; towards the other pole, lower is better."""
    ends, other = (line["over_lo"], line["over_hi"]), ""
    if line["way"] in AGAINST:
        ends, other = [None if e is None else -e for e in reversed(ends)], " to the other pole"
    verb = winner(dict(zip(("diff_lo", "diff_hi"), ends, strict=True)))
    setting = f"{line['variant'].partition('@')[2]}, alpha {line['alpha']:g}"
    return f"{line['way']} ({setting}) {verb} {line['over']}{other}: {span(line, *OVER)} nats"


if __name__ == "__main__":
    guarded(main, Config)
