"""Replies and A/B: margins equal to sums done by hand, the same from both engines, in any batch."""

import pytest
import torch

from wscore import effect_table
from wsrun.data.items import Item, with_system
from wsrun.models.chat import choice_ids, render, user
from wsrun.score.batching import Readout, batches
from wsrun.score.cached import CachedEngine
from wsrun.score.plain import PlainEngine
from wsrun.score.plan import plan
from wsrun.score.readings import PER_TOKEN, ROWS, token_log_probs
from wsrun.score.sweep import score, sweep

WORDS = "purple coat Elena wears a blue hat and the red scarf of Marco is in the garden".split()


def reply_items(n: int = 5) -> list[Item]:
    """Items of two replies of unequal length."""
    return [
        Item(
            f"q{i}", f"c{i % 3}", user(f"What does Elena wear on day {i}?"), 1, dataset="told",
            prefill="", replies=(" ".join(WORDS[: 2 + i]) + ".", " ".join(WORDS[i : i + 7]) + "."),
        )
        for i in range(n)
    ]  # fmt: skip


def by_hand(model, tok, item: Item) -> tuple[float, float]:
    """Summed and mean log p(reply+) - log p(reply-), token by token, one forward a prefix."""
    sums, means = [], []
    for reply in item.replies:
        prompt = render(tok, item.turns)
        ids = render(tok, item.turns, reply)
        assert ids[: len(prompt)] == prompt  # so the reply's own tokens are the rest
        logps = []
        for end in range(len(prompt), len(ids)):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids[:end]])).logits[0, -1].double()
            logps.append(float(logits.log_softmax(-1)[ids[end]]))
        sums.append(sum(logps))
        means.append(sum(logps) / len(logps))
    return sums[0] - sums[1], means[0] - means[1]


@pytest.mark.parametrize("engine", ["plain", "cached"])
def test_margins_of_replies_are_the_sums_done_by_hand(model, tok, engine):
    """margin = sum_t log p(reply+_t) - sum_t log p(reply-_t), and the difference of the means."""
    items = reply_items()
    rows = score(model, tok, items, engine=engine)
    assert rows["mass"].null_count() == len(rows) == 10
    for item in items:
        own = rows.filter(item=item.id).sort("dataset")["margin"].to_list()
        assert own == pytest.approx(by_hand(model, tok, item), abs=1e-5)


def test_batch_and_order_change_nothing(model, tok):
    """Batches of one item, of all, and in the other order: the same margins, by both engines."""
    items = reply_items()
    p = plan(tok, items)
    backward = plan(tok, items[::-1])
    want, _ = p.results(PlainEngine(model, p.sequences, readout=p.readout).run())
    for make in (PlainEngine, CachedEngine):
        for tokens in (1, 60, 4096):
            found, _ = p.results(make(model, p.sequences, tokens, readout=p.readout).run())
            torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
        flipped, _ = backward.results(
            make(model, backward.sequences, readout=backward.readout).run()
        )
        flipped = flipped.reshape(-1, 2).flip(0).flatten()
        torch.testing.assert_close(flipped, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("v", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_refused_wherever_they_stand(v):
    """log p(t) = x_t - log sum_v exp(x_v) of each row; one wrong number in the last row raises"""
    logits = torch.randn(ROWS + 3, 20)
    targets = torch.arange(ROWS + 3) % 20
    want = logits.double().log_softmax(-1)[range(len(logits)), targets]
    torch.testing.assert_close(token_log_probs(logits, targets).double(), want, rtol=0, atol=1e-6)
    logits[-1, 7] = v
    with pytest.raises(ValueError, match="not finite; use a wider dtype"):
        token_log_probs(logits, targets)


def test_kinds_mix_in_one_sweep(qwen, tok, items):
    """Yes/No, A/B and replies in one list score as each kind does alone, steered too."""
    kinds = [items[:4], reply_items(3), ab_items(tok)]
    dW = {"model.layers.2.mlp.down_proj.weight": 0.3 * torch.randn(64, 192)}
    dW = {n: w[:, : qwen.get_parameter(n).shape[1]] for n, w in dW.items()}
    together = sweep(qwen, tok, [i for kind in kinds for i in kind], {"dW": dW}, [1.0])
    for kind in kinds:
        alone = sweep(qwen, tok, kind, {"dW": dW}, [1.0])
        key = ["dataset", "item", "variant"]
        both = alone.join(together, on=key, suffix="_all")
        assert len(both) == len(alone)
        assert (both["margin"] - both["margin_all"]).abs().max() < 1e-5
    replies = together.filter(dataset="told", variant="dW")
    assert not replies["flagged"].any() and replies["mass"].null_count() == 3
    styles = {d: p for d, p in together.select("dataset", "prompt_style").unique().rows()}
    assert styles["told"] == styles["told" + PER_TOKEN] == "chat-reply-1"
    assert styles["claims"] == styles["letters"] == "chat-yesno-1"
    assert set(together["dataset"]) == {"claims", "told", "told" + PER_TOKEN, "letters"}
    table = effect_table(together).filter(dataset="told", variant="dW")
    assert table["effect"].item() is not None and table["mass"].item() is None


def ab_items(tok) -> list[Item]:
    """One question in both orders."""
    return [
        Item(f"q-{order}", "q", user("Which one? (A) a coat (B) a hat"), label, dataset="letters",
             choices=("A", "B"), prefill="My answer: (")
        for order, label in (("ab", 1), ("ba", -1))
    ]  # fmt: skip


def test_choices_other_than_yes_and_no(qwen, tok):
    """margin = log p(A) - log p(B) and mass = p(A) + p(B) after the prefill."""
    (item, _), a_or_b = ab_items(tok), choice_ids(tok, ("A", "B"))
    ids = render(tok, item.turns, item.prefill)
    with torch.no_grad():
        p = qwen(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    a, b = (float(p[side].sum()) for side in a_or_b)
    row = score(qwen, tok, [item]).row(0, named=True)
    assert row["margin"] == pytest.approx(torch.tensor(a / b).log().item(), abs=1e-5)
    assert row["mass"] == pytest.approx(a + b, abs=1e-6)
    with pytest.raises(ValueError, match="no single token"):
        choice_ids(tok, ("Yes", "Certainly-not-a-word"))


def test_the_prompt_of_two_replies_runs_once(tok):
    """A trie holds the shared prompt once: its tokens are those of the prompt and both replies."""
    p = plan(tok, reply_items(3)[2:])
    (batch,) = batches(p.sequences, 4096, readout=p.readout)
    pos, neg = p.sequences
    shared = next(i for i, (a, b) in enumerate(zip(pos, neg, strict=False)) if a != b)
    assert len(batch.ids) == len(pos) + len(neg) - shared
    assert len(batch.reads) == sum(map(len, p.readout.positions))


def test_a_readout_counts_rows_over_all_sequences():
    """positions [[1], [0, 2]] are the rows [[0], [1, 2]]."""
    readout = Readout([[1], [0, 2]], lambda rows, logits: logits)
    assert readout.rows == [[0], [1, 2]] and readout.n == 3


def test_a_system_turn_stands_before_replies_too(qwen, tok):
    """with_system changes the prompt of both replies."""
    item = reply_items(1)[0]
    prompted = with_system(item, "Be brief.")
    assert by_hand(qwen, tok, prompted) == pytest.approx(
        score(qwen, tok, [prompted])["margin"].to_list(), abs=1e-5
    )
