"""The two engines: the same numbers at every place, on seven families, and a model that is left as it was."""

from __future__ import annotations

import pytest
import torch

from steerkit.analysis import Text, make_engine
from steerkit.analysis.places import READ_SITES, find_place
from steerkit.analysis.texts import batches
from steerkit.errors import ModelError, SteerkitError, VectorError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import LoadedModel, find_layout
from steerkit.models.positions import positions_from_mask
from steerkit.testing import FAMILIES, randomize, tiny_model, tiny_tokenizer
from steerkit.vectors import SteeringVector

TEXTS = [
    Text("a", (5, 6, 7, 8, 9), 3, ("role_tags", "problem", "problem")),
    Text("b", (10, 11, 12), 2, ("problem",) * 2),
]
EDITS = {HookPoint(1, "attn_output"): lambda h: h * 0.5, HookPoint(1, "mlp_input"): lambda h: h + 0.1}


def loaded_model(family="llama"):
    base = tiny_model(family)
    return LoadedModel(base, tiny_tokenizer(), find_layout(base), "tiny")


def static(layers=(0, 2), width=32, mask="all"):
    items = Static.build([HookPoint(layer) for layer in layers], width)
    for seed, item in enumerate(items.values()):
        randomize(item, seed)
    return SteeringVector.from_interventions("static", items, token_mask=mask)


def batch():
    (found,) = batches(TEXTS, 0, torch.device("cpu"), 10**6)
    return found


def places(loaded):
    """Every place that the family has (gpt_neox interleaves q, k and v)."""
    found = []
    for point in (HookPoint(layer, site) for layer in range(3) for site in READ_SITES):
        try:
            find_place(loaded.base, loaded.layout, point)
            found.append(point)
        except ModelError:
            assert loaded.base.config.model_type == "gpt_neox" and point.site in "qkv"
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_engines_agree_everywhere(family):
    loaded, vector = loaded_model(family), static()
    points = places(loaded)
    traces = {}
    for name in ("nnsight", "batched"):
        with make_engine(name, loaded) as engine:
            traces[name] = engine.run(batch(), vector, points, EDITS, logits=True)
            plain = engine.run(batch(), None, [HookPoint(2)], logits=True)
    for point in points:
        torch.testing.assert_close(traces["nnsight"][point], traces["batched"][point], atol=1e-5, rtol=0)
    torch.testing.assert_close(traces["nnsight"].logits, traces["batched"].logits, atol=1e-5, rtol=0)
    assert (traces["batched"].logits - plain.logits).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_is_read_is_what_a_plain_hook_sees(family):
    """Block outputs and logits against hooks written here: the left padding, too."""
    loaded, vector = loaded_model(family), static()
    given = batch()
    blocks = loaded.layout.block_list(loaded.base)
    seen = {}

    def hook(layer):
        def add(_module, _args, output):
            if HookPoint(layer) in vector.tensors:
                output = output + vector.tensors[HookPoint(layer)]["vector"]
            seen[layer] = output
            return output

        return add

    handles = [block.register_forward_hook(hook(layer)) for layer, block in enumerate(blocks)]
    extra = {"position_ids": positions_from_mask(given.mask)}
    logits = loaded.base(given.ids, attention_mask=given.mask, use_cache=False, **extra).logits
    for handle in handles:
        handle.remove()
    for name in ("nnsight", "batched"):
        with make_engine(name, loaded) as engine:
            trace = engine.run(given, vector, [HookPoint(layer) for layer in range(3)], logits=True)
        real = given.mask.bool()
        for layer in range(3):
            torch.testing.assert_close(trace[HookPoint(layer)][real], seen[layer][real], atol=1e-5, rtol=0)
        torch.testing.assert_close(trace.logits[real], logits[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["nnsight", "batched"])
def test_a_row_does_not_depend_on_its_batch(name):
    loaded, vector = loaded_model(), static(mask="generated")
    point = HookPoint(2)
    with make_engine(name, loaded) as engine:
        together = engine.run(batch(), vector, [point])[point]
        for row, text in enumerate(batch().texts):
            (alone,) = batches([text], 0, torch.device("cpu"), 100)
            got = engine.run(alone, vector, [point])[point][0]
            torch.testing.assert_close(batch().unpad(together, row), got, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["nnsight", "batched"])
def test_the_mask_says_where_the_vector_acts(name):
    loaded = loaded_model()
    with make_engine(name, loaded) as engine:
        base = engine.run(batch(), read=[HookPoint(0)])[HookPoint(0)]
        for mask in ("all", "generated", "prompt", "first_generated", "segment:problem"):
            steered = engine.run(batch(), static((0,), mask=mask), [HookPoint(0)])[HookPoint(0)]
            moved = (steered - base).abs().amax(-1) > 1e-6
            assert torch.equal(moved, batch().select(mask)), mask


def test_selections_and_targets():
    given = batch()  # b is shorter and stands first
    assert [text.id for text in given.texts] == ["b", "a"]
    assert given.ids.tolist() == [[0, 0, 10, 11, 12], [5, 6, 7, 8, 9]]
    assert given.targets.tolist() == [[-1, -1, 11, 12, -1], [6, 7, 8, 9, -1]]
    assert given.select("first_generated").tolist() == [
        [False, False, False, True, False],
        [False, False, True] + [False] * 2,
    ]
    assert given.select("generated").tolist() == [[False] * 3 + [True] * 2, [False] * 2 + [True] * 3]


@pytest.mark.parametrize("name", ["nnsight", "batched"])
def test_an_edit_replaces_what_stands_there(name):
    """Attention's output zeroed: the block is its MLP alone."""
    loaded = loaded_model()
    points = [HookPoint(1, "input"), HookPoint(1, "mlp_output"), HookPoint(1)]
    with make_engine(name, loaded) as engine:
        trace = engine.run(batch(), None, points, {HookPoint(1, "attn_output"): torch.zeros_like})
    got = trace[points[0]] + trace[points[1]]
    torch.testing.assert_close(trace[points[2]], got, atol=1e-6, rtol=0)


def test_attention_patterns_are_rows_of_shares():
    loaded = loaded_model("qwen2")
    before = loaded.base.config._attn_implementation
    point = HookPoint(1, "attn_pattern")
    with make_engine("nnsight", loaded) as engine:
        pattern = engine.run(batch(), static(), [point])[point]
    assert pattern.shape == (2, 4, 5, 5)
    torch.testing.assert_close(pattern.sum(-1)[1], torch.ones(4, 5))
    assert not pattern[1].triu(1).any()
    assert loaded.base.config._attn_implementation == before


def test_the_model_is_left_as_it_was_after_an_error():
    loaded = loaded_model()
    attributes = {name: sorted(vars(module)) for name, module in loaded.base.named_modules()}
    for name in ("nnsight", "batched"):
        with pytest.raises(ZeroDivisionError), make_engine(name, loaded) as engine:
            engine.run(batch(), static(), [HookPoint(0)], {HookPoint(1): lambda h: h / (1 // 0)})
        assert attributes == {key: sorted(vars(module)) for key, module in loaded.base.named_modules()}
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in loaded.base.modules())


def test_bad_places_and_vectors():
    loaded = loaded_model()
    with make_engine("batched", loaded) as engine:
        with pytest.raises(SteerkitError, match=r"layers.3.output is outside the model: it has layers 0 to 2"):
            engine.run(batch(), read=[HookPoint(3)])
        with pytest.raises(SteerkitError, match=r"Unknown site 'mlp_inputs'. Did you mean 'mlp_input'\?"):
            engine.run(batch(), read=[HookPoint(0, "mlp_inputs")])
        with pytest.raises(SteerkitError, match="can only be read"):
            engine.run(batch(), edits={HookPoint(0, "attn_pattern"): torch.zeros_like})
        with pytest.raises(VectorError, match="40 wide"):
            engine.run(batch(), static(width=40), [HookPoint(0)])
    with pytest.raises(SteerkitError, match=r"No engine 'nsight'. Did you mean 'nnsight'\?"):
        make_engine("nsight", loaded)
