"""The embedded model: corpus odds, tokenizer, and the packaged checkpoint as a user gets it."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from steerkit.datasets.arithmetic import Arithmetic
from steerkit.errors import ModelError
from steerkit.evaluation import Arm, Protocol, evaluate
from steerkit.models import load_model
from steerkit.zoo import tiny_reasoner
from steerkit.zoo.build import RECIPES, SPECS, gate, main, way_of
from steerkit.zoo.corpus import REQUESTS, WAYS, Mixture, generate_dialogue
from steerkit.zoo.pretrain import Recipe, batches, new_model, pretrain


@pytest.fixture(scope="module")
def loaded():
    return load_model("tiny-reasoner", dtype="float32")


def test_corpus_has_the_stated_odds_and_error_rates():
    rng, mix = random.Random(1), Mixture()
    ways, right, asked = Counter(), Counter(), 0
    for _ in range(6000):
        dialogue = generate_dialogue(rng, mix)
        text, user = dialogue.messages[-1]["content"], dialogue.messages[-2]["content"]
        assert dialogue.problem.split == "train"
        assert dialogue.requested == any(user.endswith(request) for request in REQUESTS[dialogue.way])
        assert way_of(text) == dialogue.way
        asked += dialogue.requested
        if not dialogue.requested:
            ways[dialogue.way] += 1
        found = re.findall(r"\\boxed\{(-?\d+)\}", text)
        right[dialogue.way, "n"] += 1
        right[dialogue.way, "right"] += bool(found) and int(found[-1]) == dialogue.problem.answer
    assert asked / 6000 == pytest.approx(mix.requested, abs=0.03)
    for way, odds in zip(WAYS, mix.neutral, strict=True):
        assert ways[way] / ways.total() == pytest.approx(odds, abs=0.03)
    rate = {way: right[way, "right"] / right[way, "n"] for way in WAYS}
    assert rate["worked"] > 0.9 and 0.15 < rate["bare"] < 0.25 and 0.4 < rate["foreign"] < 0.6 and rate["ramble"] == 0


def test_tokenizer_is_lossless_and_splits_digits(loaded):
    tokenizer = loaded.tokenizer
    for text in ("Tom has 12 apples.", "Сначала 3+4=7.", "漢字 🙂 \x00\t tabs  and   spaces", "naïve"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    pieces = [tokenizer.decode([i]) for i in tokenizer("123", add_special_tokens=False)["input_ids"]]
    assert pieces == ["1", "2", "3"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<|user|>x<|end|><|assistant|>"


def test_packaged_checkpoint(loaded):
    folder = Path(tiny_reasoner())
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5_000_000
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["gate"] == "passed" == (gate(card["measured"]) or "passed")
    assert loaded.base.config.num_hidden_layers >= 6
    assert card["parameters"] == loaded.base.num_parameters()
    assert card["recipe"]["steps"] == RECIPES["tiny-reasoner"].steps


def test_the_skill_is_latent(loaded):
    """The card's claim on fresh problems: a worked opening alone turns most answers right."""
    examples = Arithmetic(n=1, n_eval=96, seed=11).load("test")
    arms = [Arm("base"), Arm("opened", assistant_prefix="To")]
    rows = evaluate(loaded, arms, examples, Protocol((1.0,), max_tokens=112)).rows
    base, opened = (row["accuracy"] for row in rows)
    assert base < 0.5 and opened - base > 0.3, (base, opened)


def test_pretraining_batches_weigh_completions(loaded):
    recipe = RECIPES["tiny-reasoner"]
    ids, weights = next(batches(loaded.tokenizer, Mixture(), recipe))
    assert ids.shape == weights.shape and len(ids) == recipe.batch
    assert not weights[ids == loaded.tokenizer.pad_token_id].any()
    assistant = loaded.tokenizer.convert_tokens_to_ids("<|assistant|>")
    for row, weight in zip(ids, weights, strict=True):
        start = int((row == assistant).nonzero()[0]) + 1
        assert (weight[:start] == recipe.prompt_weight).all() and weight[start] == 1


def test_new_models_are_seeded(loaded):
    recipe = RECIPES["tiny-reasoner"]
    a, b = new_model(recipe, loaded.tokenizer), new_model(recipe, loaded.tokenizer)
    assert torch.equal(a.lm_head.weight, b.lm_head.weight)


def test_the_siblings_are_what_transfer_needs(loaded):
    """The same shape from the same weights and from others, and another shape; together under 12 MB in 16 bits."""
    sizes, base = {}, loaded.base
    for name in ("tiny-reasoner-instruct", "tiny-reasoner-seed1", "tiny-reasoner-wide"):
        model = new_model(RECIPES[name], loaded.tokenizer)
        sizes[name] = 2 * model.num_parameters()
        shape = (model.config.hidden_size, model.config.num_hidden_layers)
        if name == "tiny-reasoner-wide":
            assert shape[0] > base.config.hidden_size and shape[1] > base.config.num_hidden_layers
        else:
            assert shape == (base.config.hidden_size, base.config.num_hidden_layers)
        assert torch.equal(model.lm_head.weight, base.lm_head.weight) == (name == "tiny-reasoner-instruct")
    assert sum(sizes.values()) < 12_000_000
    with pytest.raises(ModelError, match="The recipe is 9 layers x 128, tiny-reasoner is 6 x 128"):
        new_model(Recipe(n_layers=9, start="tiny-reasoner"), loaded.tokenizer)


def test_the_instruct_sibling_goes_on_from_the_base(loaded):
    """A few steps of its recipe: the loss is the trained base's, far below that of new weights."""
    spec = SPECS["tiny-reasoner-instruct"]
    short = Recipe(steps=2, batch=8, lr=spec.recipe.lr, start="tiny-reasoner")
    trained = pretrain(new_model(short, loaded.tokenizer), loaded.tokenizer, spec.mixture, short, lambda line: None)
    new = Recipe(steps=2, batch=8)
    untrained = pretrain(new_model(new, loaded.tokenizer), loaded.tokenizer, spec.mixture, new, lambda line: None)
    assert trained < 1.0 < 4.0 < untrained


def test_gates_of_siblings_are_their_own():
    def measured(base, opened):
        arms = (("neutral", base), ("worked opening prefilled", opened))
        return {"with_system_prompt": [{"arm": arm, "temperature": 1.0, "accuracy": a} for arm, a in arms]}

    assert gate(measured(0.5, 0.9)) and not gate(measured(0.5, 0.9), SPECS["tiny-reasoner-instruct"])
    assert gate(measured(0.5, 0.6), SPECS["tiny-reasoner-instruct"])


def test_a_sibling_needs_a_folder(capsys):
    with pytest.raises(SystemExit):
        main(["tiny-reasoner-wide"])
    assert "say with --out where it goes" in capsys.readouterr().err
