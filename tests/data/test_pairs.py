"""Pairs: whole answers without thoughts, kept once, judged by the model itself; given pairs."""

import json
import random
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
import torch

from tests.conftest import ORGANISM
from wsrun.adapters.configs import RECIPES
from wsrun.adapters.train import train_adapter
from wsrun.data import pairs_cache
from wsrun.data.answering import SAMPLED, Counts, Decoding, NoPairs, counted_pairs, make_pairs
from wsrun.data.pairs import (
    Pair,
    load_pairs,
    load_questions,
    pairs_by_split,
    pole_example,
    shuffle_poles,
)
from wsrun.data.pairs_cache import cached_pairs, trait_scores
from wsrun.data.personas import load_personas
from wsrun.models.chat import end_of_turn, render, user
from wsrun.models.generate import whole_sentences
from wsrun.models.load import load_model, load_tokenizer

HONEST, DISHONEST = PERSONAS = load_personas(ORGANISM / "personas.json", "honest", "dishonest")
QUESTIONS = load_questions(ORGANISM / "questions.jsonl", "train")[:4]


@pytest.fixture(scope="module")
def organism():
    return load_model(ORGANISM)


@pytest.fixture(scope="module")
def made(organism):
    return make_pairs(*organism, QUESTIONS, *PERSONAS, seed=0)


@pytest.fixture
def again(monkeypatch):
    """Calls of counted_pairs that `cached_pairs` makes from here on."""
    calls = []

    def counted(*args, **more):
        calls.append(args)
        return counted_pairs(*args, **more)

    monkeypatch.setattr(pairs_cache, "counted_pairs", counted)
    return calls


def test_a_pair_is_a_prompt_and_two_answers_under_known_personas(organism, made):
    """the prompt is the question alone; each persona is a wording of its pole"""
    prompts = [q["prompt"] for q in QUESTIONS]
    assert made and all(p.prompt in prompts and p.response_pos != p.response_neg for p in made)
    for persona, side in zip(PERSONAS, ("persona_pos", "persona_neg"), strict=True):
        assert all(getattr(p, side) in persona for p in made)
        assert not any(
            w in p.prompt + p.response_pos + p.response_neg for p in made for w in persona
        )


def test_a_thinking_template_is_closed_before_the_response(organism):
    """a template that opens <think>: generation starts after </think>, answers have no thoughts"""
    model, tok = organism[0], load_tokenizer(ORGANISM)
    tok.chat_template = str(tok.chat_template).replace("<think>\n\n</think>\n\n", "<think>\n")
    assert tok.decode(render(tok, user("Why?"))).endswith("<think>\n\n</think>\n\n")
    found = make_pairs(model, tok, QUESTIONS, *PERSONAS, seed=0)
    assert found == make_pairs(*organism, QUESTIONS, *PERSONAS, seed=0)


def test_an_answer_cut_at_max_new_tokens_is_none(organism):
    """no end of turn within 2 tokens: no pair at all, and the sentence says what to change"""
    with pytest.raises(ValueError, match="at most 2 new tokens; try a higher --max"):
        make_pairs(*organism, QUESTIONS, *PERSONAS, Decoding(max_new_tokens=2), seed=0)


@pytest.fixture(scope="module")
def cut(organism):
    """(pairs, counts) at a limit that some answers reach after their last sentence."""
    for limit in range(4, 40):
        how = Decoding(max_new_tokens=limit, unfinished="cut")
        with suppress(NoPairs):
            found, counts = counted_pairs(*organism, QUESTIONS, *PERSONAS, how, seed=0)
            if counts.cut:
                return found, counts
    raise AssertionError("no limit cuts an answer of the organism")


def test_an_answer_that_is_cut_ends_with_a_sentence_and_trains_no_end_of_turn(organism, cut):
    """ids after the prompt = tokens of the response, and the end of turn only where it came; the
    loss of the first step is the mean -log p of just these"""
    model, tok = organism
    pairs, counts = cut
    assert counts.cut == sum(not (p.ended_pos and p.ended_neg) for p in pairs) > 0
    sides = [(p, s) for p in pairs for s in ("pos", "neg") if not getattr(p, f"ended_{s}")]
    for p, side in sides:
        response = getattr(p, f"response_{side}")
        ids, start = pole_example(tok, p, side)
        assert whole_sentences(response) == response
        assert ids[start:] == tok(response, add_special_tokens=False)["input_ids"]
        assert ids[:start] == render(tok, user(p.prompt))
    whole = replace(pairs[0], ended_pos=True)
    assert pole_example(tok, whole, "pos")[0][-1] == end_of_turn(tok)


def test_the_loss_of_a_cut_answer_has_no_end_of_turn(organism, cut, tmp_path):
    """loss at the first step (LoRA starts at 0) = mean_t -log p(r_t | prompt), t over response"""
    model, tok = organism
    p = next(p for p in cut[0] if not p.ended_pos)
    recipe = replace(RECIPES["organism"], steps=1, batch=2)
    (loss,) = train_adapter(model, tok, [p], "pos", "lora", recipe, tmp_path)
    prompt = render(tok, user(p.prompt))
    r = tok(p.response_pos, add_special_tokens=False)["input_ids"]
    logp = model(input_ids=torch.tensor([prompt + r])).logits[0, :-1].log_softmax(-1)
    by_hand = -logp[torch.arange(-len(r), 0), torch.tensor(r)].mean().item()
    assert loss == pytest.approx(by_hand, abs=1e-5)


def test_counts_are_of_all_questions(organism, cut):
    """questions = pairs + unfinished + empty + equal; each answered differently from the other"""
    for limit in (4, 8, 64):
        for unfinished in ("cut", "drop"):
            how = Decoding(max_new_tokens=limit, unfinished=unfinished)
            with suppress(NoPairs):
                pairs, n = counted_pairs(*organism, QUESTIONS, *PERSONAS, how, seed=0)
                assert n.questions == 4 and n.pairs == len(pairs)
                assert n.questions == n.pairs + n.unfinished + n.empty + n.equal
                assert n.cut == 0 or unfinished == "cut"
    same = [HONEST[:1], HONEST[:1]]  # at temperature 0 one persona gives one answer
    with pytest.raises(NoPairs, match=r"left out: 0 unfinished, 0 empty, 4 equal of 4"):
        make_pairs(*organism, QUESTIONS, *same, Decoding(temperature=0.0), seed=0)
    assert "(left out: 1 unfinished, 2 empty, 3 equal); 4 have an answer cut" in str(
        Counts(10, 4, 1, 2, 3, 4)
    )


def test_cached_pairs_are_made_once(organism, made, again, tmp_path):
    """the second call reads what the first wrote; equal pairs, in the same order"""
    first = cached_pairs(*organism, QUESTIONS, *PERSONAS, seed=0, folder=tmp_path)
    second = cached_pairs(*organism, QUESTIONS, *PERSONAS, seed=0, folder=tmp_path)
    assert first == second and first.pairs == made and len(again) == 1
    assert (first.counts.questions, first.counts.pairs) == (4, len(made))
    (path,) = tmp_path.glob("*.jsonl")
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))  # killed outside write_whole
    third = cached_pairs(*organism, QUESTIONS, *PERSONAS, seed=0, folder=tmp_path)
    assert third == first and len(again) == 2


def test_no_damaged_file_of_pairs_is_believed(organism, made, again, tmp_path):
    """any single letter that differs: made again, and the same pairs; a broken file is replaced"""
    ask = dict(seed=0, folder=tmp_path)
    first = cached_pairs(*organism, QUESTIONS, *PERSONAS, **ask)
    (path,) = tmp_path.glob("*.jsonl")
    text, key = path.read_text(), json.loads(path.read_text().split("\n")[0])["key"]
    rng = random.Random(0)
    for at in rng.sample(range(len(text)), 300):
        path.write_text(text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :])
        assert pairs_cache._read(path, key) in (None, first)
    path.write_text(text.replace("coat", "boat", 1))
    assert cached_pairs(*organism, QUESTIONS, *PERSONAS, **ask) == first and len(again) == 2
    assert path.read_text() == text


def test_pairs_of_a_hooked_model_are_not_kept(organism, made, tmp_path):
    """code hooked into the model has no key: made, not kept, and said"""
    handle = organism[0].model.layers[0].register_forward_hook(lambda *args: None)
    try:
        found = cached_pairs(*organism, QUESTIONS, *PERSONAS, seed=0, folder=tmp_path)
    finally:
        handle.remove()
    assert found.pairs == made and not list(tmp_path.iterdir())
    assert str(found).endswith("; not kept, the model has a hook on 'model.layers.0'")


def plant(monkeypatch, pairs):
    """`cached_pairs` gets these in place of generated ones."""
    counts = Counts(len(pairs), len(pairs), 0, 0, 0, 0)
    monkeypatch.setattr(pairs_cache, "counted_pairs", lambda *a, **k: (pairs, counts))


def changed_tokenizers():
    """Tokenizers with the same vocabulary that cut or read texts otherwise."""
    from tokenizers import normalizers, pre_tokenizers

    parts = {
        "normalizer": normalizers.Lowercase(),
        "pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
    }
    for name, part in parts.items():
        tok = load_tokenizer(ORGANISM)
        setattr(tok.backend_tokenizer, name, part)
        yield name, tok


def test_the_tokenizers_parts_are_in_the_key(organism, monkeypatch, tmp_path):
    """normaliser and pre-tokenizer, buffers, the machine's switches: another file each"""
    model, tok = organism
    plant(monkeypatch, [Pair("Why?", "a", "b", "c", "Be.", "Lie.")])

    def ask(tok=tok):
        cached_pairs(model, tok, QUESTIONS, *PERSONAS, seed=0, folder=tmp_path)
        return len(list(tmp_path.iterdir()))

    assert [ask(), ask()] == [1, 1]
    for n, (name, other) in enumerate(changed_tokenizers(), 2):
        assert ask(other) == n, name
    with torch.autocast("cpu", torch.bfloat16):
        assert ask() == 4
    frequencies = model.model.rotary_emb.inv_freq
    frequencies[0] *= 2
    assert ask() == 5
    frequencies[0] /= 2
    model.generation_config.repetition_penalty = 2.0
    try:
        assert ask() == 6
    finally:
        model.generation_config.repetition_penalty = None
    assert ask() == 6


def test_questions_that_fit_no_memory_are_refused(organism, monkeypatch, tmp_path):
    monkeypatch.setattr("wsrun.models.memory.free_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match="pairs: generating with question .* tokens would take"):
        cached_pairs(*organism, QUESTIONS, *PERSONAS, seed=0, folder=tmp_path)


def test_whatever_decides_the_pairs_is_in_their_address(organism, again, tmp_path):
    """other seed, decoding, question, persona, template or weight: other files, made anew"""
    model, tok = organism
    turned = load_tokenizer(ORGANISM)
    turned.chat_template = str(tok.chat_template) + "\n"
    cached_pairs(model, tok, QUESTIONS, *PERSONAS, seed=0, folder=tmp_path)
    swapped = [PERSONAS[0], PERSONAS[1][:1]]
    cached_pairs(model, tok, QUESTIONS, *PERSONAS, seed=1, folder=tmp_path)
    ways = dict(max_new_tokens=63, temperature=0.9, top_p=0.9, unfinished="cut")
    for name, value in ways.items():
        how = SAMPLED._replace(**{name: value})
        cached_pairs(model, tok, QUESTIONS, *PERSONAS, how, seed=0, folder=tmp_path)
    cached_pairs(model, tok, QUESTIONS[:3], *PERSONAS, seed=0, folder=tmp_path)
    cached_pairs(model, tok, QUESTIONS, *swapped, seed=0, folder=tmp_path)
    cached_pairs(model, turned, QUESTIONS, *PERSONAS, seed=0, folder=tmp_path)
    weight = model.model.layers[0].mlp.up_proj.weight
    before = weight[0, 0].item()
    weight[0, 0] += 1e-3
    cached_pairs(model, tok, QUESTIONS, *PERSONAS, seed=0, folder=tmp_path)
    weight[0, 0] = before
    assert len(again) == len(list(tmp_path.glob("*.jsonl"))) == 10


def test_trait_score_is_the_mean_log_ratio(organism, made):
    """s(r) = mean_t [log p(r_t | pos, prompt) - log p(r_t | neg, prompt)], batched or not"""
    model, tok = organism
    scores = trait_scores(model, tok, made, batch_size=5)
    for p, row in zip(made, scores, strict=True):
        for response, score in zip((p.response_pos, p.response_neg), row, strict=True):
            r = tok(response, add_special_tokens=False)["input_ids"]
            means = []
            for persona in (p.persona_pos, p.persona_neg):
                ids = torch.tensor([render(tok, user(p.prompt, persona)) + r])
                logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
                means.append(logp[torch.arange(-len(r), 0), ids[0, -len(r) :]].mean())
            assert score.item() == pytest.approx((means[0] - means[1]).item(), abs=1e-5)


def test_the_filter_keeps_pairs_that_the_model_tells_apart(organism, made, monkeypatch, tmp_path):
    """kept where s(pos) > s(neg): honest organism pairs all are, swapped ones none; one file"""
    assert all(pos > neg for pos, neg in trait_scores(*organism, made).tolist())
    wrong = replace(made[0], response_pos=made[0].response_neg, response_neg=made[0].response_pos)
    planted = [wrong, *made[1:]]
    plant(monkeypatch, planted)
    ask = dict(seed=0, folder=tmp_path)
    found = cached_pairs(*organism, QUESTIONS, *PERSONAS, **ask)
    assert found.pairs == planted and found.separated == [False] + [True] * (len(made) - 1)
    n = len(made)
    assert f"own likelihood tells the poles of {n - 1} of {n} pairs apart" in str(found)
    plant(monkeypatch, [])  # read from now on
    kept = cached_pairs(*organism, QUESTIONS, *PERSONAS, **ask).filtered()
    assert kept.pairs == made[1:] and kept.counts == found.counts
    assert f"{n - 1} of these pairs kept" in str(kept)
    with pytest.raises(ValueError, match="of none of 1 pairs"):
        kept._replace(pairs=[wrong], separated=[False]).filtered()
    with pytest.raises(ValueError, match="do not name their personas"):
        trait_scores(*organism, [Pair("Why?", "a", "b", "c")])


def test_progress_is_shown_of_what_is_made(organism, again, tmp_path):
    """as many steps as are announced, for generation and for judging; nothing for what is read"""
    shown = Counter()

    @contextmanager
    def show(title, total):
        shown[title, "total"] += total
        yield lambda note: shown.update([title])

    for _ in range(2):
        cached_pairs(*organism, QUESTIONS, *PERSONAS, seed=0, folder=tmp_path, progress=show)
    titles = "generating answers", "judging answers"
    assert all(shown[t] == shown[t, "total"] > 0 for t in titles) and len(shown) == 4


def test_shuffled_poles_are_the_same_texts():
    """of half of the questions, all pairs are swapped, with what belongs to each answer"""
    names = [f"q{i // 2}" for i in range(14)]  # two pairs a question
    pairs = [Pair(q, f"{q} yes {i}", f"{q} no {i}", "t", "Be.", "Lie.", i > 3, i > 5)
             for i, q in enumerate(names)]  # fmt: skip
    shuffled = shuffle_poles(pairs, 0)
    swapped = {p.prompt for p, s in zip(pairs, shuffled, strict=True) if p != s}
    assert len(swapped) == 3  # of 7
    for p, s in zip(pairs, shuffled, strict=True):
        assert s == (replace_poles(p) if p.prompt in swapped else p)
    assert shuffle_poles(pairs, 0) == shuffled != shuffle_poles(pairs, 1)


def replace_poles(p):
    return replace(
        p, response_pos=p.response_neg, response_neg=p.response_pos, persona_pos=p.persona_neg,
        persona_neg=p.persona_pos, ended_pos=p.ended_neg, ended_neg=p.ended_pos,
    )  # fmt: skip


@pytest.mark.parametrize("behaviour", ["honest", "candid"])
def test_given_pairs_by_behaviour_and_split(behaviour):
    """of data/english: the rows of the behaviour, 200, 40 and 40; no topic in two splits"""
    path = ORGANISM.parent / "english" / "pairs.jsonl"
    rows = [r for r in map(json.loads, path.open()) if r["behaviour"] == behaviour]
    found = pairs_by_split(path, behaviour)
    assert {s: len(p) for s, p in found.items()} == {"train": 200, "validation": 40, "test": 40}
    for split, pairs in found.items():
        assert [p.response_neg for p in pairs] == [
            r["response_neg"] for r in rows if r["split"] == split
        ]
    assert load_pairs(path, behaviour) == found["train"]
    topics = [{p.topic for p in pairs} for pairs in found.values()]
    assert len(set.union(*topics)) == sum(map(len, topics))


ROW = {"prompt": "Why?", "response_pos": "a", "response_neg": "b", "topic": "c"}


@pytest.mark.parametrize(
    "rows, sentence",
    [
        ([ROW | {"behaviour": b} for b in ("candid", "kind")], r"'honest'.*candid.*kind.*--pos"),
        ([ROW | {"behaviour": "honest"}, ROW], "'behaviour' is missing in line 2"),
        ([ROW | {"split": "train"}, ROW | {"split": "test"}], "1 topics of .* in several splits"),
        ([ROW | {"split": "test"}], r"needs one pair or more of split 'train'.*found \['test'\]"),
        ([ROW | {"split": "train"}, ROW], "'split' is missing in line 2"),
        ([ROW | {"ended_pos": "no"}], "'ended_pos' in line 1 .* must be true, false or empty"),
        ([ROW | {"colour": "red"}], "unknown field 'colour'"),
    ],
)
def test_given_pairs_that_cannot_be_told_apart_are_refused(tmp_path, rows, sentence):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(ValueError, match=sentence):
        load_pairs(path, "honest")


def test_a_file_without_columns_of_order_is_all_training(tmp_path):
    """no behaviour, no split: any behaviour, all of train; a cut answer says so"""
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(ROW | {"ended_pos": False}) + "\n")
    want = [Pair("Why?", "a", "b", "c", ended_pos=False)]
    assert load_pairs(path) == load_pairs(path, "x") == want


def test_topics_have_one_split(tmp_path):
    """a topic in two splits is refused; those of the data shipped here are in one each"""
    for name in ("organism", "english"):
        path = ORGANISM.parent / name / "questions.jsonl"
        splits = sorted({json.loads(line)["split"] for line in path.read_text().splitlines()})
        topics = [{q["topic"] for q in load_questions(path, s)} for s in splits]
        assert len(set.union(*topics)) == sum(map(len, topics))
    lines = (ORGANISM / "questions.jsonl").read_text().splitlines()
    rows = [json.loads(lines[0]) | {"split": s} for s in ("train", "test")]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="1 topics of .* in several splits"):
        load_questions(tmp_path / "q.jsonl", "train")
