"""Persistence maps: planted models whose maps are known, and plain hooks on five families."""

from __future__ import annotations

import pytest
import torch

from steerkit.analysis import Persistence
from steerkit.analysis.persistence import JOINED
from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.models import LoadedModel, SteeredModel, find_layout
from steerkit.rollouts import EncodedPrompt, SamplingParams
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.testing import check_analyzer, tiny_model, tiny_tokenizer
from steerkit.types import Example
from steerkit.vectors import SteeringVector, VectorMetadata

FIVE = ("llama", "qwen2", "gemma2", "gpt2", "gpt_neox")
SMALL = {"max_tokens": 5, "controls": 1}


def loaded_model(family="llama"):
    base = tiny_model(family)
    return LoadedModel(base, tiny_tokenizer(), find_layout(base), "tiny")


def prompts():
    rows = [(5, 6, 7), (8, 9), (9, 10, 11, 12, 13), (15, 16, 5, 6)]
    return [EncodedPrompt(Example(f"p{k}", "text", ""), "text", ids) for k, ids in enumerate(rows)]


def static(directions, mask="all"):
    tensors = {HookPoint(layer): {"vector": vector} for layer, vector in directions.items()}
    return SteeringVector("static", tensors, {}, VectorMetadata("tiny", "", 32, 3), mask)


def directions(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(32, generator=generator) for layer in range(3)}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_contract(family):
    check_analyzer(Persistence, family=family, drawn=family == "llama", **SMALL)


@pytest.mark.parametrize("engine", ["nnsight", "batched"])
def test_blocks_that_add_nothing_carry_the_vector_unchanged(engine):
    """Planted: attention and MLP write zeros, so D_ij = s_i for each j, and Diff-Vector is cos(s_i, s_j)."""
    loaded = loaded_model()
    with torch.no_grad():
        for block in loaded.base.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    own = directions()
    result = Persistence(**SMALL).run(loaded, {"v": static(own)}, prompts(), engine=engine)
    for metric, expected in (
        ("Diff-Diff", lambda i, j: 1.0),
        ("Diff-Own", lambda i, j: 1.0),
        ("Diff-Vector", lambda i, j: float(torch.cosine_similarity(own[i], own[j], dim=0))),
    ):
        mean = result.arrays[f"{metric} v"].values[0]
        for i in range(3):
            assert mean[i, :i].isnan().all()
            for j in range(i, 3):
                assert float(mean[i, j]) == pytest.approx(expected(i, j), abs=1e-5), (metric, i, j)
    (row,) = result.find(metric="Diff-Diff, mean over later layers", steered_layer="each")
    assert row["value"] == pytest.approx(1.0, abs=1e-5) and row["n"] == 4


def test_a_block_that_turns_the_vector_is_seen():
    """Planted: the MLP of layer 1 adds -2 (u . x) v along fixed u, v by its own weights is hard to plant; instead
    layer 2's weights are random while layers 0 and 1 add nothing: the map must fall at layer 2 alone."""
    loaded = loaded_model()
    with torch.no_grad():
        for block in list(loaded.base.model.layers)[:2]:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        loaded.base.model.layers[2].mlp.down_proj.weight.mul_(20.0)
    result = Persistence(**SMALL).run(loaded, {"v": static(directions())}, prompts())
    mean = result.arrays["Diff-Diff v"].values[0]
    assert mean[0, 1] > 0.9999 and mean[0, 2] < 0.9
    assert mean[2, 2] == pytest.approx(1.0, abs=1e-5)  # a static vector at its own layer


@pytest.mark.parametrize("family", FIVE)
@torch.no_grad()
def test_maps_equal_plain_hooks(family):
    """Each text alone, unpadded, the cosines position by position as the paper defines them."""
    loaded, own = loaded_model(family), directions(1)
    analyzer = Persistence(**SMALL, positions="generated")
    result = analyzer.run(loaded, {"v": static(own, "not_first_generated")}, prompts())
    groups = TransformersSampler().sample(
        SteeredModel(loaded.base, {}), loaded.tokenizer, prompts(), 1, SamplingParams(1.0, 5), 0
    )
    for i in range(3):
        gaps = [[] for _ in range(3)]  # layer -> [T, D] of each text
        for group in groups:
            ids, length = (*group.prompt_ids, *group.rollouts[0].token_ids), len(group.prompt_ids)
            acts = torch.ones(1, len(ids), 1)
            acts[:, length - 1] = 0.0  # the mask "not_first_generated"
            steered, base = (streams(loaded, ids, i, own[i] * acts * scale) for scale in (1.0, 0.0))
            for j in range(3):
                gap = (steered[j] - base[j])[length - 1 :]
                # On its own layer nothing differs at position P - 1; above it, attention may carry a difference there.
                gaps[j].append(gap[gap.norm(dim=-1) > 1e-6 * base[j][length - 1 :].norm(dim=-1)])
        for j in range(i, 3):
            mean = torch.cat(gaps[j]).mean(0)
            for metric, other in (("Diff-Diff", mean), ("Diff-Vector", own[j]), ("Diff-Own", own[i])):
                each = [torch.cosine_similarity(gap, other[None]).mean() for gap in gaps[j]]
                expected = float(torch.stack(each).mean())
                got = float(result.arrays[f"{metric} v"].values[0, i, j])
                assert got == pytest.approx(expected, abs=1e-5), (metric, i, j)


def streams(loaded, ids, layer, added):
    seen, handles = {}, []

    def hook(index):
        def keep(_module, _args, output):
            output = output + added if index == layer else output
            seen[index] = output[0]
            return output

        return keep

    for index, block in enumerate(loaded.layout.block_list(loaded.base)):
        handles.append(block.register_forward_hook(hook(index)))
    loaded.base(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def test_vectors_of_one_layer_each_make_one_map():
    loaded, own = loaded_model(), directions()
    separate = {f"l{layer}": static({layer: own[layer]}) for layer in (2, 0)}
    result = Persistence(**SMALL).run(loaded, separate, prompts(), engine="batched")
    together = Persistence(**SMALL).run(loaded, {"v": static({0: own[0], 2: own[2]})}, prompts(), engine="batched")
    array = result.arrays[f"Diff-Vector {JOINED}"]
    assert array.labels["steered layer"] == ["0", "2"]
    torch.testing.assert_close(
        array.values[:3], together.arrays["Diff-Vector v"].values[:3], atol=1e-6, rtol=0, equal_nan=True
    )
    assert array.values[0, 0, 1].isnan()  # no vector stands at layer 1


def test_controls_differ_from_layer_to_layer():
    """Random directions that were the same at each layer would make the control's Diff-Vector as large as Diff-Own."""
    result = Persistence(max_tokens=5, controls=4).run(loaded_model(), {"v": static(directions())}, prompts())
    control = {metric: result.arrays[f"{metric} v"].values[3, 0, 1] for metric in ("Diff-Vector", "Diff-Own")}
    assert abs(control["Diff-Vector"]) < 0.3 < control["Diff-Own"]


def test_two_points_at_one_layer_are_refused():
    vector = static(directions())
    from dataclasses import replace

    tensors = {**vector.tensors, HookPoint(1, "attn_output"): {"vector": torch.ones(32)}}
    with pytest.raises(SteerkitError, match="v has two hook points at one layer"):
        Persistence(**SMALL).run(loaded_model(), {"v": replace(vector, tensors=tensors)}, prompts())
    with pytest.raises(SteerkitError, match="max_tokens must be at least 1"):
        Persistence(max_tokens=0)
