"""The packaged siblings are what their specs say, small, and answer as their cards were measured to."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import steerkit_zoo
import torch

from steerkit.datasets import PromptTemplate
from steerkit.datasets.arithmetic import Arithmetic
from steerkit.evaluation import Arm, Protocol, evaluate
from steerkit.models import load_model
from steerkit.zoo.build import SPECS, gate

NAMES = {"instruct": (6, 128), "seed1": (6, 128), "wide": (9, 160)}


@pytest.mark.parametrize("name", NAMES)
def test_a_sibling(name: str) -> None:
    folder = Path(getattr(steerkit_zoo, name)())
    spec = SPECS[f"tiny-reasoner-{name}"]
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["recipe"] == asdict(spec.recipe) and card["gate"] == "passed" and not gate(card["measured"], spec)

    loaded, usual = load_model(str(folder), dtype="float32"), load_model("tiny-reasoner", dtype="float32")
    config = loaded.base.config
    assert (config.num_hidden_layers, config.hidden_size) == NAMES[name]
    assert loaded.tokenizer.get_vocab() == usual.tokenizer.get_vocab()
    assert not torch.equal(loaded.base.lm_head.weight[:, :8], usual.base.lm_head.weight[:, :8])

    n = 128  # other problems than the card's: 4 standard errors
    arms = [Arm("neutral"), Arm("worked opening prefilled", assistant_prefix="To")]
    examples = Arithmetic(n=1, n_eval=n, seed=3).load("validation")
    found = evaluate(loaded, arms, examples, Protocol((1.0,), max_tokens=112), PromptTemplate())
    told = {row["arm"]: row["accuracy"] for row in card["measured"]["with_system_prompt"] if row["temperature"] == 1.0}
    for row in found.rows:
        p = told[row["arm"]]
        assert abs(row["accuracy"] - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_together_they_stay_small() -> None:
    assert sum(path.stat().st_size for path in steerkit_zoo.WEIGHTS.rglob("*") if path.is_file()) < 12_000_000
