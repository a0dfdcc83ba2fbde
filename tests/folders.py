"""Folders as a user has them, small and random: a model with its tokenizer, adapters, items."""

import json
from itertools import count
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from tests.conftest import ORGANISM

REFUSES_SYSTEM = (  # as Gemma's: no system role, and one turn after another
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DROPS_SYSTEM = REFUSES_SYSTEM.replace(
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}",
    "{% for m in messages if m['role'] != 'system' %}",
)


def small_data(folder: Path, clusters: int = 3, wordings: int = 5, **more) -> Path:
    """The organism's first claims and dilemmas of each held-out split, and wordings of personas.

    `more` are columns added to every dilemma: name -> function of its row.
    """
    folder.mkdir(parents=True)
    for name, cluster in (("claims", "cluster"), ("dilemmas", "dilemma_idx")):
        lines = (ORGANISM / f"{name}.jsonl").read_text().splitlines()
        kept = []
        for split in ("validation", "test"):
            rows = [r for r in map(json.loads, lines) if r["split"] == split]
            first = list(dict.fromkeys(r[cluster] for r in rows))[:clusters]
            kept += [r for r in rows if r[cluster] in first]
        if name == "dilemmas":
            kept = [r | {column: of(r) for column, of in more.items()} for r in kept]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    personas = json.loads((ORGANISM / "personas.json").read_text())
    few = {name: texts[:wordings] for name, texts in personas.items()}
    (folder / "personas.json").write_text(json.dumps(few))
    return folder


def truthfulqa_like(folder: Path) -> str:
    """truthfulqa:PATH of a file of that form, with questions of every split."""
    lines, names = ["Category,Question,Best Answer,Incorrect Answers"], ("doves", "cooks", "ships")
    names += ("trees", "kings", "rocks")
    for n in range(24):
        lines.append(f"Law,What do {names[n % 6]} number{n} do?,They rest {n},They run; They fly")
    path = folder / "TruthfulQA.csv"
    path.write_text("\n".join(lines) + "\n")
    return f"truthfulqa:{path}"


def tiny_folder(
    folder: Path, make, tok, template: str = REFUSES_SYSTEM, families=("lora",), seeds=(0,)
) -> dict[str, Path]:
    """The flags --model and --adapters of a random model of `make`, with random LoRA or DoRA pairs.

    Pairs of one seed differ between families, of one family between seeds, and pos from neg.
    """
    model = make(vocab_size=len(tok))
    model.save_pretrained(folder / "model")
    tok.save_pretrained(folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(template)
    draws = count()
    for family in families:
        config = LoraConfig(
            r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False,
            use_dora=family == "dora",
        )  # fmt: skip
        for seed in seeds:
            for side in ("pos", "neg"):
                bare = make(vocab_size=len(tok))
                torch.manual_seed(next(draws))
                wrapped = get_peft_model(bare, config)
                wrapped.save_pretrained(str(folder / "adapters" / f"{family}-s{seed}" / side))
    return {"model": folder / "model", "adapters": folder / "adapters"}


def check_replies(table) -> None:
    """Assert what holds of a table about truthfulqa_like: two data sets, no mass, no flag, what
    the check says of each; an effect of exactly 0 for zero times dW."""
    assert set(table["dataset"]) == {"truthfulqa", "truthfulqa per token"}
    assert table["mass"].is_null().all() and (table["flagged_share"] == 0).all()
    assert table["reads"].is_not_null().all() and table["effect"].is_finite().all()
    assert (table.filter(variant="zero")["effect"] == 0).all()
