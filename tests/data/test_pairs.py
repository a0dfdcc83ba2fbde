"""Pairs: whole answers without thoughts, kept once, filtered by the model's own judgement."""

import json
import random
from dataclasses import replace

import pytest
import torch

from tests.conftest import ORGANISM
from wsrun.data import pairs_cache
from wsrun.data.pairs import Pair, load_questions, make_pairs
from wsrun.data.pairs_cache import cached_pairs, trait_scores
from wsrun.data.personas import load_personas
from wsrun.models.chat import render, user
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
    """Calls of make_pairs that `cached_pairs` makes from here on."""
    calls = []

    def counted(*args, **more):
        calls.append(args)
        return make_pairs(*args, **more)

    monkeypatch.setattr(pairs_cache, "make_pairs", counted)
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
        make_pairs(*organism, QUESTIONS, *PERSONAS, seed=0, max_new_tokens=2)


def test_cached_pairs_are_made_once(organism, made, again, tmp_path):
    """the second call reads what the first wrote; equal pairs, in the same order"""
    first = cached_pairs(*organism, QUESTIONS, *PERSONAS, seed=0, folder=tmp_path)
    second = cached_pairs(*organism, QUESTIONS, *PERSONAS, seed=0, folder=tmp_path)
    assert first == second and first.pairs == made and len(again) == 1
    assert (first.questions, first.finished) == (4, len(made))
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
    monkeypatch.setattr(pairs_cache, "make_pairs", lambda *a, **k: [Pair("Why?", "a", "b", "c")])

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
    """another seed, length, question, persona, template or weight: other files, made anew"""
    model, tok = organism
    turned = load_tokenizer(ORGANISM)
    turned.chat_template = str(tok.chat_template) + "\n"
    cached_pairs(model, tok, QUESTIONS, *PERSONAS, seed=0, folder=tmp_path)
    swapped = [PERSONAS[0], PERSONAS[1][:1]]
    cached_pairs(model, tok, QUESTIONS, *PERSONAS, seed=1, folder=tmp_path)
    cached_pairs(model, tok, QUESTIONS, *PERSONAS, seed=0, max_new_tokens=63, folder=tmp_path)
    cached_pairs(model, tok, QUESTIONS[:3], *PERSONAS, seed=0, folder=tmp_path)
    cached_pairs(model, tok, QUESTIONS, *swapped, seed=0, folder=tmp_path)
    cached_pairs(model, turned, QUESTIONS, *PERSONAS, seed=0, folder=tmp_path)
    weight = model.model.layers[0].mlp.up_proj.weight
    before = weight[0, 0].item()
    weight[0, 0] += 1e-3
    cached_pairs(model, tok, QUESTIONS, *PERSONAS, seed=0, folder=tmp_path)
    weight[0, 0] = before
    assert len(again) == len(list(tmp_path.glob("*.jsonl"))) == 7


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


def test_the_filter_keeps_pairs_that_differ_in_the_trait(organism, made, monkeypatch, tmp_path):
    """kept where s(pos) > s(neg): honest organism pairs all are, swapped ones none"""
    assert all(pos > neg for pos, neg in trait_scores(*organism, made).tolist())
    wrong = replace(made[0], response_pos=made[0].response_neg, response_neg=made[0].response_pos)
    planted = [wrong, *made[1:]]
    monkeypatch.setattr(pairs_cache, "make_pairs", lambda *a, **k: planted)
    ask = dict(seed=0, folder=tmp_path)
    found = cached_pairs(*organism, QUESTIONS, *PERSONAS, filtered=True, **ask)
    assert found.pairs == made[1:] and found.finished == len(planted)
    assert f"{len(made) - 1} of these pairs kept" in str(found)
    assert cached_pairs(*organism, QUESTIONS, *PERSONAS, **ask).pairs == planted
    monkeypatch.setattr(pairs_cache, "make_pairs", lambda *a, **k: [wrong])
    with pytest.raises(ValueError, match="of none of 1 pairs"):
        cached_pairs(*organism, QUESTIONS[:1], *PERSONAS, filtered=True, **ask)
    with pytest.raises(ValueError, match="do not name their personas"):
        trait_scores(*organism, [Pair("Why?", "a", "b", "c")])


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
