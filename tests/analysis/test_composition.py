"""Composition: planted vectors that need each other, decoding against single runs, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import prompts, tokenizer

from steerkit.analysis import Composition, make_engine
from steerkit.analysis.composition import ACCURACY, GAIN, MORE, _merged, _Policy
from steerkit.analysis.parts import Parts
from steerkit.analysis.work import Work
from steerkit.errors import DataError, SteerkitError, VectorError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Gated, Static, Tokenwise
from steerkit.interventions.summed import Summed
from steerkit.models import LoadedModel, SteeredModel, find_layout
from steerkit.rollouts import SamplingParams
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.testing import check_analyzer, randomize, tiny_model
from steerkit.vectors import SteeringVector, VectorMetadata

TOK = tokenizer()
SMALL = {"max_tokens": 4, "verifier": "exact"}


def loaded_model(family="llama"):
    base = tiny_model(family, vocab_size=len(TOK), max_position_embeddings=256, eos_token_id=TOK.eos_token_id)
    return LoadedModel(base, TOK, find_layout(base), "tiny")


def static(layer, direction=None, mask="all", seed=0):
    direction = torch.randn(32, generator=torch.Generator().manual_seed(seed)) if direction is None else direction
    return SteeringVector(
        "static", {HookPoint(layer): {"vector": direction}}, {}, VectorMetadata("tiny", "", 32, 3), mask
    )


def accuracy(result, vectors, scale=1.0):
    (found,) = result.find(metric=ACCURACY, vectors=vectors, scale=scale)
    return found


def planted():
    """A model that says nothing but what the vectors say: '7' needs both, the end of the text comes by itself.

    The unembedding of '7' reads e1 + e2 at the first position; all else is zeroed, so greedy decoding says '7' only if
    e1 + e2 is above the threshold that a constant token holds.
    """
    loaded = loaded_model()
    base = loaded.base
    (seven,), (other,) = TOK.encode("7"), TOK.encode("9")
    with torch.no_grad():
        for block in base.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        base.model.embed_tokens.weight.zero_()
        base.model.embed_tokens.weight[:, 0] = 1.0
        base.model.embed_tokens.weight[[seven, other], 0] = 0.0
        base.model.embed_tokens.weight[[seven, other], 3] = 100.0  # after an answer the end wins
        base.model.norm.weight.fill_(1.0)
        base.lm_head.weight.zero_()
        base.lm_head.weight[seven, 1] = base.lm_head.weight[seven, 2] = 1.0
        base.lm_head.weight[other, 0] = 1.5
        base.lm_head.weight[TOK.eos_token_id, 3] = 10.0
    one, two = torch.zeros(32), torch.zeros(32)
    one[1], two[2] = 1.0, 1.0
    return loaded, static(0, one), static(1, two)


@pytest.mark.parametrize("engine", ["nnsight", "batched"])
def test_two_vectors_that_need_each_other(engine, tmp_path):
    loaded, one, two = planted()
    encoded = [type(p)(type(p.example)(p.example.id, "text", "7"), p.text, p.ids) for p in prompts(TOK)]
    joint = static(0, one.tensors[HookPoint(0)]["vector"] + two.tensors[HookPoint(1)]["vector"])
    vectors = {"one": one, "two": two, "joint": joint}
    result = Composition(
        joint="joint", scales=[1.0, 0.5], max_tokens=4, verifier={"name": "exact", "extract": "text"}
    ).run(loaded, vectors, encoded, engine=engine, folder=tmp_path)
    assert (
        accuracy(result, "base")["value"] == accuracy(result, "one")["value"] == accuracy(result, "two")["value"] == 0
    )
    assert accuracy(result, "one + two")["value"] == accuracy(result, "joint")["value"] == 1.0
    assert accuracy(result, "one + two", 0.5)["value"] == 0.0  # rescaled: below the threshold
    assert accuracy(result, "one + two")["control"] == 0.0
    assert accuracy(result, "all together")["value"] == 1.0
    assert result.find(metric=GAIN, scale=1.0)[0]["value"] == 1.0
    assert result.find(metric=GAIN, scale=0.5)[0]["value"] == 0.0
    assert result.find(metric=MORE, scale=1.0)[0]["value"] == 1.0
    assert result.arrays["pairs"].values[0, 2, 0, 1] == 1.0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_policy_decodes_as_it_does_alone(family):
    loaded = loaded_model(family)
    vectors = {"a": static(0, seed=1), "b": static(1, seed=2), "c": static(0, seed=3)}
    analyzer = Composition(**SMALL)
    with make_engine("batched", loaded) as engine:
        work = Work(loaded, vectors, prompts(TOK), engine, 0, 8192, Parts(None, {}))
        policies = analyzer._policies(work, vectors)
        groups = analyzer._decoded(work, policies, 0, len(policies))
    assert {"a + b x 1", "a + b + c x 0.5", "a + random b", "b, random"} <= {policy.name for policy in policies}
    texts = np.array([group.rollouts[0].text for group in groups]).reshape(len(policies), -1)
    for name, sum_of in (
        ("a + b x 1", vectors["a"] + vectors["b"]),
        ("a + c x 0.5", 0.5 * (vectors["a"] + vectors["c"])),
    ):
        (index,) = [k for k, policy in enumerate(policies) if policy.name == name]
        own = TransformersSampler().sample(
            sum_of.steer(loaded.base), TOK, prompts(TOK), 1, SamplingParams(0.0, SMALL["max_tokens"]), 0
        )
        assert texts[index].tolist() == [group.rollouts[0].text for group in own]
    assert len({tuple(line) for line in texts.tolist()}) > 3


@pytest.mark.parametrize(("cls", "settings"), [(Static, {}), (Gated, {}), (Tokenwise, {"d_inner": 64})])
@torch.no_grad()
def test_a_sum_adds_what_its_members_add(cls, settings):
    base = tiny_model("llama")
    point = HookPoint(1, cls.sites[0])
    items = [cls.build([point], 32, **settings)[point] for _ in range(2)]
    for seed, item in enumerate(items):
        randomize(item, seed)
    width = settings.get("d_inner", 32)
    hidden = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(5))
    expected = 0.5 * (items[0].delta(hidden) + items[1].delta(hidden))
    torch.testing.assert_close(Summed(items, 0.5).delta(hidden), expected)
    ids = torch.tensor([[5, 6, 7]])
    alone = SteeredModel(base, {point: items[0]})(ids).logits
    torch.testing.assert_close(SteeredModel(base, {point: Summed(items[:1])})(ids).logits, alone)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_contract(family):
    check_analyzer(Composition, family=family, drawn=family == "llama", **SMALL)


def test_bad_input():
    loaded, encoded = loaded_model(), prompts(TOK)
    pair = {"a": static(0), "b": static(1)}
    with pytest.raises(VectorError, match="composition takes 2 or more vectors, got 1"):
        Composition().run(loaded, {"a": static(0)}, encoded)
    with pytest.raises(VectorError, match="2 or more vectors beside the joint one, got 1"):
        Composition(joint="a").run(loaded, pair, encoded)
    with pytest.raises(SteerkitError, match=r"No vector is named 'z' \(joint\): there are a, b"):
        Composition(joint="z").run(loaded, pair, encoded)
    with pytest.raises(VectorError, match="need one token mask, got all, prompt"):
        Composition().run(loaded, pair | {"c": static(2, mask="prompt")}, encoded)
    with pytest.raises(SteerkitError, match="scales must be positive"):
        Composition(scales=[0.0])
    with pytest.raises(DataError, match="measures accuracy"):
        unanswered = [type(p)(type(p.example)(p.example.id, "text", ""), p.text, p.ids) for p in encoded]
        Composition().run(loaded, pair, unanswered)
    items = Gated.build([HookPoint(0)], 32)
    gated = SteeringVector.from_interventions("gated", items, VectorMetadata("tiny", "", 32, 3))
    if items[HookPoint(0)].reads != static(0).to_interventions()[HookPoint(0)].reads:
        with pytest.raises(VectorError, match="a \\+ b: .* read different parts"):
            _merged(_Policy("a + b", (static(0), gated)))
