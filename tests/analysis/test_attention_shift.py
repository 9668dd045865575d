"""Attention shift: patterns by hand, by the library's own output on five families, and a planted head."""

from __future__ import annotations

import pytest
import torch
from block_by_hand import Block

from steerkit.analysis import AttentionShift
from steerkit.analysis.attention_shift import DISTANCE
from steerkit.errors import DataError, SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.models import LoadedModel, SteeredModel, find_layout
from steerkit.rollouts import EncodedPrompt, SamplingParams
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.testing import check_analyzer, tiny_model, tiny_tokenizer
from steerkit.types import Example
from steerkit.vectors import SteeringVector, VectorMetadata

FIVE = ("llama", "qwen2", "gemma2", "gpt2", "gpt_neox")
SMALL = {"max_tokens": 5, "controls": 1, "sampler": "transformers"}


def loaded_model(family="llama", **overrides):
    base = tiny_model(family, **overrides)
    return LoadedModel(base, tiny_tokenizer(), find_layout(base), "tiny")


def prompts():
    rows = [(5, 6, 7), (8, 9), (9, 10, 11, 12, 13), (15, 16, 5, 6)]
    return [EncodedPrompt(Example(f"p{k}", "text", ""), "text", ids) for k, ids in enumerate(rows)]


def static(layer=0, direction=None):
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3)) if direction is None else direction
    return SteeringVector("static", {HookPoint(layer): {"vector": direction}}, {}, VectorMetadata("tiny", "", 32, 3))


def texts_of(loaded):
    """The tokens that the analyzer reads: prompt and the base's completion at temperature 1."""
    model = SteeredModel(loaded.base, {}, loaded.layout)
    groups = TransformersSampler().sample(model, loaded.tokenizer, prompts(), 1, SamplingParams(1.0, 5), 0)
    return [(*group.prompt_ids, *group.rollouts[0].token_ids) for group in groups]


@pytest.mark.parametrize("engine", ["nnsight", "batched"])
@pytest.mark.parametrize("family", FIVE)
@torch.no_grad()
def test_against_the_librarys_own_patterns(family, engine):
    loaded, vector = loaded_model(family), static()
    result = AttentionShift(**SMALL).run(loaded, {"v": vector}, prompts(), engine=engine)
    block = loaded.layout.block_list(loaded.base)[0]
    loaded.base.set_attn_implementation("eager")
    expected = torch.zeros(3, 4)
    for ids in texts_of(loaded):
        given = {"input_ids": torch.tensor([ids]), "output_attentions": True, "use_cache": False}
        vanilla = loaded.base(**given).attentions
        handle = block.register_forward_hook(lambda _m, _a, output: output + vector.tensors[HookPoint(0)]["vector"])
        steered = loaded.base(**given).attentions
        handle.remove()
        for layer in range(3):
            gap = (steered[layer][0] - vanilla[layer][0]).abs().sum(-1) / 2  # [H, T]
            expected[layer] += gap.mean(-1) / 4
    torch.testing.assert_close(result.arrays["v"].values[0], expected, atol=1e-5, rtol=0)
    assert float(expected[0].max()) == 0.0 and float(expected[1].min()) > 1e-3
    for layer in range(3):
        (got,) = result.find(layer=layer, metric=DISTANCE)
        assert got["value"] == pytest.approx(float(expected[layer].mean()), abs=1e-5) and got["n"] == 4


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@torch.no_grad()
def test_against_patterns_by_hand(family):
    loaded, vector = loaded_model(family), static(1)
    result = AttentionShift(**SMALL).run(loaded, {"v": vector}, prompts(), engine="batched")
    block, expected, seen = Block(loaded.base, 2), torch.zeros(4), []
    module = loaded.layout.block_list(loaded.base)[2]
    handle = module.register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append((args or kwargs["hidden_states"])[0]), with_kwargs=True
    )
    for ids in texts_of(loaded):
        seen.clear()
        loaded.base(torch.tensor([ids]), use_cache=False)
        x = seen[0][0]
        patterns = [
            block.pattern(*block.qkv(block.norm(stream, "attn"))[:2])
            for stream in (x, x + vector.tensors[HookPoint(1)]["vector"])
        ]
        expected += (patterns[1] - patterns[0]).abs().sum(-1).mean(-1) / 2 / 4
    handle.remove()
    torch.testing.assert_close(result.arrays["v"].values[0, 2], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("engine", ["nnsight", "batched"])
def test_a_vector_that_one_heads_queries_read(engine):
    """Planted: dimension 30 is constant, 31 empty, the vector swaps them (the norm stays), one head's q reads 31."""
    loaded = loaded_model(num_key_value_heads=4)
    base = loaded.base
    with torch.no_grad():
        base.model.embed_tokens.weight[:, 30], base.model.embed_tokens.weight[:, 31] = 2.0, 0.0
        for block in base.model.layers:
            a, m = block.self_attn, block.mlp
            a.o_proj.weight[30:], m.down_proj.weight[30:] = 0.0, 0.0
            for projection in (a.q_proj, a.k_proj, a.v_proj, m.gate_proj, m.up_proj):
                projection.weight[:, 30:] = 0.0
        base.model.layers[2].self_attn.q_proj.weight[8:16, 31] = 5.0
    direction = torch.zeros(32)
    direction[30], direction[31] = -2.0, 2.0
    result = AttentionShift(**SMALL).run(loaded, {"v": static(1, direction)}, prompts(), engine=engine)
    moved = result.arrays["v"].values[0]
    assert moved[2, 1] > 0.01
    moved[2, 1] = 0.0
    assert float(moved.abs().max()) < 1e-6
    assert result.find(layer=2)[0]["control"] > 0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_contract(family):
    check_analyzer(AttentionShift, family=family, drawn=family == "llama", **SMALL)


def test_bad_input():
    with pytest.raises(SteerkitError, match="controls must be at least 1"):
        AttentionShift(controls=0)
    with pytest.raises(SteerkitError, match="Unknown token mask 'al'"):
        AttentionShift(positions="al")
    with pytest.raises(DataError, match="attention_shift needs prompts"):
        AttentionShift().run(loaded_model(), static())
