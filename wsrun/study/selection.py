"""Choosing a setting and a coefficient for every method, on validation items.

A candidate is a variant named "method@setting" ("mean_diff@layer 3") with coefficients of its own;
`choose` scores all of them and picks one (setting, alpha) a method. With --match-dose every
candidate has one coefficient, at which all do the same amount. The choice of dW is one for all
scripts, kept in <out>/selection/<model>.<data>.json under everything that decides it.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from wscore import effect_table, tensors_sha256
from wscore.files import read_json, write_whole
from wscore.sealed_json import seal, unseal
from wsrun.data.items import items_sha256
from wsrun.data.replies import NEUTRAL, load_neutral
from wsrun.data.source import beside, source_name
from wsrun.models.code import tokenizer_sha256
from wsrun.models.machine import model_state
from wsrun.report.console import console, progress
from wsrun.score.doses import SPLIT, TEXTS, Divergence, matched, read_match
from wsrun.score.names import DW, method_name
from wsrun.score.scorer import PROMPT_STYLE
from wsrun.score.variants import Dose, Variant
from wsrun.steer.interventions import WeightDelta
from wsrun.study.options import BenchmarkOptions, check_common
from wsrun.study.scoring import run_sweep
from wsrun.study.selected import FOLDER, NEGATIVE_DW, Selection, Selections
from wsrun.study.session import Pairs, Session


def check_benchmark(cfg: BenchmarkOptions, what: str, *, adapters: bool = True) -> None:
    """Refuse options that cannot work before anything is loaded, as `check_common`."""
    check_common(cfg, what, adapters=adapters)
    if any(a <= 0 for a in cfg.alphas):
        raise ValueError(f"{what}: --alphas must be above 0; both directions are tried by itself")
    if not 0 <= cfg.most_flagged <= 1:
        raise ValueError(f"{what}: --most-flagged is a share, 0 to 1, got {cfg.most_flagged}")
    if cfg.n_random < 2:
        raise ValueError(f"{what}: --n-random must be at least 2, got {cfg.n_random}")
    if cfg.match_dose:
        read_match(cfg.match_dose)
        load_neutral(beside(cfg.data, NEUTRAL), SPLIT)


def select_dW(cfg: BenchmarkOptions, validation: Session, pairs: Pairs) -> Selections | None:
    """The one choice of dW, -dW, tau_pos and -tau_neg for a model and its data; None of a shard.

    It is read from its file, and made where that is absent or was made of anything else.
    """
    name = f"{Path(cfg.model).name}.{source_name(cfg.data)}.json"
    path, key = cfg.out / FOLDER / name, selection_key(cfg, validation, pairs)
    candidates = dW_candidates(cfg, pairs)
    before, why = read_sealed(path)
    if before and before["key"] == key:
        chosen = _from_json(before, candidates)
        console.print(f"dW as chosen in {path}: {_said(chosen)}", highlight=False)
        return chosen
    chosen = choose(cfg, FOLDER, validation, candidates, (NEGATIVE_DW,))
    if chosen is None:
        return None
    text = {
        "model": cfg.model,
        "data": cfg.data,
        "behaviour": cfg.behaviour,
        "key": key,
        "chosen": {name: _to_json(s) for name, s in chosen.items()},
        "unmatched": [[v.name, v.family, v.seed, v.alphas, v.dose] for v in chosen.unmatched],
    }
    sealed = json.dumps(seal(text), indent=1) + "\n"
    write_whole(path, lambda tmp: tmp.write_text(sealed, encoding="utf-8"))
    if before:
        why = f"anew, {', '.join(k for k in key if before['key'].get(k) != key[k])} differ"
    console.print(f"dW chosen {why}, kept in {path}: {_said(chosen)}", highlight=False)
    return chosen


def selection_key(cfg: BenchmarkOptions, validation: Session, pairs: Pairs) -> dict[str, Any]:
    """Everything that decides the choice of dW, as JSON has it."""
    neutral = load_neutral(beside(cfg.data, NEUTRAL), SPLIT) if cfg.match_dose else []
    return {
        **model_state(validation.model),
        "tokenizer": tokenizer_sha256(validation.tok),
        "items": items_sha256(validation.items),
        "prompt style": PROMPT_STYLE,
        "deltas": {
            f"{family}-s{seed}": [tensors_sha256(p.pos), tensors_sha256(p.neg)]
            for (family, seed), p in pairs.items()
        },
        "alphas": [*cfg.alphas],
        "match_dose": cfg.match_dose,
        "neutral texts": items_sha256(neutral),
        "most_flagged": cfg.most_flagged,
        "dtype": cfg.dtype,
    }


def _said(chosen: Mapping[str, Selection]) -> str:
    dW = chosen[DW]
    return f"{dW.variant.family} at alpha {dW.alpha:g}"


def read_sealed(path: Path) -> tuple[dict[str, Any], str]:
    """(the file's content, why dW is chosen if this is another choice's or {}).

    {} where there is no file, and where it is damaged.
    """
    if not path.exists():
        return {}, "here"
    try:
        content = unseal(read_json(path), repr(str(path)))
    except ValueError:
        return {}, "anew, the file was damaged or of an older version"
    return (content, "") if isinstance(content.get("key"), dict) else ({}, "anew, it had no key")


def _to_json(s: Selection) -> dict[str, Any]:
    return {
        "family": s.variant.family,
        "alpha": s.alpha,
        "validation": s.validation,
        "role": s.role,
        "seeds": [v.seed for v in s.variants],
        "dose": s.variant.dose,
    }


def _from_json(found: Mapping[str, Any], candidates: Sequence[Variant]) -> Selections:
    """The selections of a file, on the variants of this process."""
    known = {(v.name, v.family, v.seed): v for v in candidates}

    def at(name: str, family: str, seed: int, alphas: Sequence[float], dose: Any) -> Variant:
        dose = dose and Dose(*dose)
        return replace(known[name, family, seed], alphas=tuple(alphas), dose=dose)

    chosen = Selections()
    for name, s in found["chosen"].items():
        first, *others = (
            at(name, s["family"], seed, [s["alpha"]], s["dose"]) for seed in s["seeds"]
        )
        chosen[name] = Selection(first, s["validation"], tuple(others), s["role"])
    chosen.unmatched = [at(*line) for line in found["unmatched"]]
    return chosen


def dW_candidates(cfg: BenchmarkOptions, pairs: Pairs) -> list[Variant]:
    """dW of every family at every alpha, its halves tau_pos and -tau_neg, and -dW."""
    minus = tuple(-a for a in cfg.alphas)
    return [
        Variant(name, WeightDelta(delta), family=family, seed=seed, alphas=alphas)
        for (family, seed), pair in pairs.items()
        for name, delta, alphas in (
            (DW, pair.dW, cfg.alphas),
            (NEGATIVE_DW, pair.dW, minus),
            ("tau_pos", pair.pos, cfg.alphas),
            ("-tau_neg", pair.neg, minus),
        )
    ]


def choose(
    cfg: BenchmarkOptions,
    experiment: str,
    validation: Session,
    candidates: Sequence[Variant],
    negative_methods: Collection[str] = (),
) -> Selections | None:
    """{method: the candidate with the largest effect on validation items}; None of a shard.

    negative_methods aim at the other pole: theirs is the smallest effect. With cfg.match_dose only
    candidates at that dose are scored; a method without one is not chosen, which is said.
    """
    chosen = Selections()
    if cfg.match_dose:
        methods = dict.fromkeys(method_name(c.name) for c in candidates)
        dosed = match_doses(cfg, validation, candidates)
        candidates = [v for v in dosed if not (v.dose and v.dose.converged is False)]
        chosen.unmatched = [v for v in dosed if v.dose and v.dose.converged is False]
        left = {method_name(c.name) for c in candidates}
        if DW in methods and DW not in left:
            raise ValueError(f"no alpha brings dW to {cfg.match_dose}; give another --match-dose")
        for name in (m for m in methods if m not in left):
            console.print(f"{name}: no alpha brings a candidate to {cfg.match_dose}")
    if not candidates:
        return None if cfg.shard else chosen
    rows = run_sweep(cfg, f"{experiment}.validation", validation, candidates)
    if rows is None:
        return None
    chosen.rows = rows
    chosen |= best_by_method(rows, candidates, cfg.most_flagged, negative_methods)
    return chosen


def match_doses(
    cfg: BenchmarkOptions, session: Session, variants: Sequence[Variant]
) -> list[Variant]:
    """The variants at the alphas that --match-dose asks for, with what is known of their doses."""
    assert cfg.match_dose
    match = read_match(cfg.match_dose)
    texts = load_neutral(beside(cfg.data, NEUTRAL), SPLIT)[:TEXTS]
    kl = Divergence(session.model, session.tok, texts)
    candidates = len({(v.method, v.name, v.family, v.k) for v in variants})
    with progress(f"matching {cfg.match_dose}", candidates) as done:
        return matched(match, kl, variants, cfg.alphas, done)


def best_by_method(
    rows: pl.DataFrame,
    candidates: Iterable[Variant],
    most_flagged: float,
    negative_methods: Collection[str] = (),
) -> dict[str, Selection]:
    """{method: the candidate with the largest effect of `rows`, the mean over data sets and seeds}.

    A candidate with more than `most_flagged` of its rows flagged does not count; of a method that
    has no other, the least flagged is taken, with the role "flagged", and ValueError raised for dW.
    Of negative_methods the smallest effect is taken.
    """
    key = ["method", "family", "variant", "k", "alpha"]
    effects = (
        effect_table(rows, resamples=2)
        .group_by(key)
        .agg(validation=pl.col("effect").mean(), flagged=pl.col("flagged_share").max())
        .with_columns(name=pl.col("variant").str.split("@").list.first())
    )
    aim = pl.when(pl.col("name").is_in(list(negative_methods))).then(-1).otherwise(1)
    allowed = pl.max_horizontal(pl.col("flagged").min().over("name"), pl.lit(most_flagged))
    good = effects.filter(pl.col("flagged") <= allowed)
    if any(good.filter(name=DW)["flagged"] > most_flagged):
        raise ValueError(
            f"every candidate of {DW} has more than {most_flagged:.0%} of its rows flagged (little "
            "mass on Yes and No, or a dose lost in the dtype's rounding); give other --alphas, a "
            "wider --dtype or a higher --most-flagged"
        )
    order = good.sort(aim * pl.col("validation"), *key[1:], descending=[True] + [False] * 4)
    known: dict[tuple, list[Variant]] = {}
    for c in candidates:
        known.setdefault((c.method, c.family, c.name, c.k), []).append(c)
    best = {}
    for r in order.group_by("name", maintain_order=True).first().iter_rows(named=True):
        seeds = known[r["method"], r["family"], r["variant"], r["k"]]
        first, *others = (replace(c, alphas=(r["alpha"],)) for c in seeds)
        role = "flagged" if r["flagged"] > most_flagged else "selected"
        best[r["name"]] = Selection(first, r["validation"], tuple(others), role)
    return best
