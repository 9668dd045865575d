"""The rules read what analyzers really write: each one is run, small, on tiny-reasoner with random vectors."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from claim_cases import arm, rules

from steerkit import registry
from steerkit.datasets.arithmetic import Arithmetic
from steerkit.hookpoints import HookPoint
from steerkit.models import load_model
from steerkit.models.sites import inner_width
from steerkit.study.claims.evidence import Analysed
from steerkit.study.claims.measures import _chosen
from steerkit.study.claims.rules import control_names
from steerkit.testing import randomize
from steerkit.vectors import SteeringVector, VectorMetadata

INSTALLED = {entry.name for entry in registry.entries("analyzers")}
TESTS = [
    (claim, index, test)
    for claim, rule in rules().claims.items()
    for index, test in enumerate(rule.tests)
    if test.settings.get("analyzer") in INSTALLED
]
SMALL: dict[str, dict[str, Any]] = {
    "logit_lens": {"max_tokens": 4, "streams": 1, "controls": 1, "random_directions": 8},
    "persistence": {"max_tokens": 4, "controls": 1},
    "path_patching": {"max_tokens": 4, "controls": 1, "accuracy": False},
    "attention_shift": {"max_tokens": 4, "controls": 1},
    "token_language": {"max_tokens": 4, "controls": 1},
    "token_scale": {"max_tokens": 4, "controls": 1},
    "first_token": {"max_tokens": 16, "k": 1, "controls": 1, "token": "To"},
    "composition": {"max_tokens": 4, "joint": "joint"},
    "transfer": {"max_tokens": 4, "samples": 1, "controls": 1},
    "diff_sae": {"latents": 16, "k": 2, "steps": 3, "batch": 64, "samples": 6, "listed": 2, "features": 1,
                 "controls": 1, "shuffles": 2, "layer": 4},
}  # fmt: skip
"""All that costs time at its least; prompts: 4 (diff_sae: 8, so that some have right and wrong completions)."""


@cache
def loaded():
    return load_model("tiny-reasoner")


def vector(layers: list[int], kind: str = "static") -> SteeringVector:
    base, layout = loaded().base, loaded().layout
    cls = registry.resolve("interventions", kind)
    needs = {"d_inner": inner_width(base, layout, 0)} if cls.needs else {}
    items = cls.build([HookPoint(layer, cls.sites[0]) for layer in layers], 128, **needs)
    for layer, item in zip(layers, items.values(), strict=True):
        randomize(item, layer, std=0.3)
    return SteeringVector.from_interventions(kind, items, VectorMetadata("tiny-reasoner", d_model=128, n_layers=6))


@cache
def analysed(analyzer: str, of: str) -> Analysed:
    """The analyzer's result on the arm's vector, named ``v``; composition has three of them and a joint one."""
    if analyzer == "composition":
        vectors = {f"v{layer}": vector([layer]) for layer in (0, 3, 5)} | {"joint": vector([0, 3, 5])}
    elif of == "tokenwise":
        vectors = {"v": vector(list(range(6)), "tokenwise")}
    else:
        vectors = {"v": vector(list(range(6)) if of == "static_all" else [int(of.rpartition("_")[2])])}
    examples = Arithmetic().load("validation")[: 8 if analyzer == "diff_sae" else 4]
    made = registry.resolve("analyzers", analyzer)(**SMALL[analyzer])
    result = made.run(loaded(), vectors, examples, engine="batched")
    return Analysed(analyzer, result, dict.fromkeys(vectors, (of, 0)))


@pytest.mark.parametrize(("claim", "index", "test"), TESTS, ids=[f"{claim}-{index}" for claim, index, _ in TESTS])
def test_a_rule_finds_its_rows(claim, index, test):
    named = test.settings.get("arm")
    of = arm(named) if named else "static_all"
    run = analysed(test.settings["analyzer"], of)
    name = "v" if named else None
    where = {"metric": test.settings["metric"], **test.settings.get("where", {})}
    rows = _chosen(run.result.rows, name, where, run)
    segments = where.get("segment")
    expected = len(segments) if segments else 3 if test.settings["analyzer"] == "composition" else 1
    assert len(rows) == expected, (claim, where, [row["metric"] for row in run.result.rows])
    for control, spec in control_names(test.settings).items():
        if spec == "own":
            # (a share of a gain that is 0 on these few problems has neither)
            assert all(row["control"] is not None or row["value"] is None for row in rows), control
        else:
            assert len(_chosen(run.result.rows, name, {**where, **spec}, run)) == expected, control


def test_settings_that_rules_select_by_are_settings():
    for claim, rule in rules().claims.items():
        for test in rule.tests:
            if test.settings.get("settings"):
                known = registry.resolve("analyzers", test.settings["analyzer"]).__dataclass_fields__
                assert set(test.settings["settings"]) <= set(known), claim


def test_the_lens_and_the_ablation_find_theirs():
    lens = analysed("logit_lens", "static_5")
    first = _chosen(lens.result.tables["direct"], "v", {"lens": "norm", "side": "top", "rank": 1}, lens)
    assert len(first) == 1 and {"token_id", "token", "cosine", "point"} <= first[0].keys()
    sae = analysed("diff_sae", "static_3")
    ranked = _chosen(sae.result.rows, "v", {"metric": "active rate, right - wrong", "rank": 1}, sae)
    ablated = _chosen(
        sae.result.rows, "v",
        {"metric": "accuracy, edited - steered", "run": "ablated", "feature": ranked[0]["feature"]}, sae,
    )  # fmt: skip
    assert len(ranked) == len(ablated) == 1 and ablated[0]["control"] is not None
