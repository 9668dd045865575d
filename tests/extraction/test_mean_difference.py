"""The mean difference against a hand-written loop over output_hidden_states, one unpadded row at a time."""

import math

import pytest
import torch
from helpers import checkpoint

from steerkit.errors import SteerkitError, VectorError
from steerkit.extraction import Branch, Contrast, mean_difference
from steerkit.hookpoints import HookPoint
from steerkit.models import load_model
from steerkit.vectors import SteeringVector, VectorMetadata

POINTS = [HookPoint(k) for k in range(3)]
CONTRAST = Contrast(
    [Branch((5, 6, 7, 8, 9, 10), 2), Branch((5, 6, 7, 30), 3), Branch((11, 12, 13, 14, 15, 16, 17, 18), 4)],
    [Branch((5, 6, 20), 2), Branch((5, 6, 7, 31, 32, 33, 34), 3), Branch((11, 12, 13, 14, 40), 4)],
)


def model(tmp_path_factory, family):
    return load_model(checkpoint(tmp_path_factory.mktemp(family), family))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return model(tmp_path_factory, "llama")


def by_hand(loaded, span):
    """[L, D] of block outputs; the last block's without the final norm, which output_hidden_states would apply."""
    last = {}
    blocks = loaded.layout.block_list(loaded.base)
    handle = blocks[-1].register_forward_hook(
        lambda _m, _a, out: last.update(out=out[0] if isinstance(out, tuple) else out)
    )
    total = torch.zeros(3, loaded.base.config.hidden_size, dtype=torch.float64)
    try:
        for positive, negative in zip(CONTRAST.positive, CONTRAST.negative, strict=True):
            for sign, branch in ((1, positive), (-1, negative)):
                with torch.no_grad():
                    states = loaded.base(torch.tensor([branch.ids]), output_hidden_states=True).hidden_states
                low, high = span(branch)
                for layer in range(3):
                    stream = states[layer + 1] if layer < 2 else last["out"]
                    total[layer] += sign * stream[0, low:high].double().mean(0) / len(CONTRAST)
    finally:
        handle.remove()
    return total


SPANS = {
    "completion": lambda b: (b.start, len(b.ids)),
    "first": lambda b: (b.start, b.start + 1),
}


@pytest.mark.parametrize("positions", list(SPANS))
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_equals_a_loop_by_hand(tmp_path_factory, family, positions):
    loaded = model(tmp_path_factory, family)
    expected = by_hand(loaded, SPANS[positions])  # transformers leaves hooks of its own
    hooks = sum(len(module._forward_hooks) for module in loaded.base.modules())
    for budget in (10_000, 9, 1):  # one padded batch, several, one row each
        found = mean_difference(loaded, POINTS, CONTRAST, positions, budget)
        for layer, point in enumerate(POINTS):
            got = found.difference[point].double()
            assert expected[layer].norm() > 0.05
            assert (got - expected[layer]).abs().max() < 1e-5 * max(1.0, float(expected[layer].abs().max()))
    assert hooks == sum(len(module._forward_hooks) for module in loaded.base.modules())


def test_left_padding_does_not_matter(loaded):
    alone = [mean_difference(loaded, POINTS, Contrast([p], [n])) for p, n in zip(*_sides(CONTRAST), strict=True)]
    together = mean_difference(loaded, POINTS, CONTRAST)
    for point in POINTS:
        mean = torch.stack([one.difference[point] for one in alone]).mean(0)
        assert torch.allclose(mean, together.difference[point], atol=1e-6)
        norm = sum(one.residual_norms[point] for one in alone) / 3
        assert together.residual_norms[point] == pytest.approx(norm, rel=1e-5)
        assert math.isnan(alone[0].agreement[point])
        even, odd = (alone[0].difference[point] + alone[2].difference[point]), alone[1].difference[point]
        assert together.agreement[point] == pytest.approx(torch.cosine_similarity(even, odd, 0).item(), abs=1e-5)


def _sides(contrast):
    return contrast.positive, contrast.negative


def test_equal_completions_have_no_difference(loaded):
    found = mean_difference(loaded, POINTS, Contrast(CONTRAST.positive, CONTRAST.positive))
    assert all(float(d.abs().max()) == 0 for d in found.difference.values())
    like = SteeringVector("static", {p: {"vector": torch.ones(32)} for p in POINTS}, {}, VectorMetadata("", "", 32, 3))
    with pytest.raises(VectorError, match=r"layers\.0\.output: the mean difference is zero"):
        found.vector(loaded, norm_like=like)


@pytest.mark.parametrize("site", ["attn_output", "mlp_output"])
def test_sites_inside_a_block(loaded, site):
    """The stream after attention is the block's input plus what attention adds; after the MLP, the block's output."""
    found = mean_difference(loaded, [HookPoint(1, site)], CONTRAST).difference[HookPoint(1, site)]
    seen = {}
    block = loaded.layout.block_list(loaded.base)[1]
    handles = [
        block.self_attn.register_forward_hook(lambda _m, _a, out: seen.update(attention=out[0])),
        block.register_forward_hook(lambda _m, _a, out: seen.update(block=out[0] if isinstance(out, tuple) else out)),
        block.register_forward_pre_hook(lambda _m, args: seen.update(input=args[0])),
    ]
    total = torch.zeros(32)
    for sign, branches in ((1, CONTRAST.positive), (-1, CONTRAST.negative)):
        for branch in branches:
            with torch.no_grad():
                loaded.base(torch.tensor([branch.ids]))
            stream = seen["input"] + seen["attention"] if site == "attn_output" else seen["block"]
            total += sign * stream[0, branch.start :].mean(0) / 3
    for handle in handles:
        handle.remove()
    assert torch.allclose(found, total, atol=1e-5)


def test_last_prompt_reads_the_last_given_token(loaded):
    contrast = Contrast([Branch((5, 6, 7, 8, 9), 2, 2)], [Branch((5, 6, 20, 21), 2, 1)], same_prompt=False)
    found = mean_difference(loaded, POINTS, contrast, "last_prompt").difference[POINTS[0]]
    with torch.no_grad():
        first, second = (
            loaded.base(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0, -1]
            for ids in ((5, 6, 7, 8), (5, 6, 20))
        )
    assert torch.allclose(found, first - second, atol=1e-6)
    prompts = Contrast([Branch((5, 6, 7, 8), 4)], [Branch((5, 6, 20), 3)], same_prompt=False)
    alone = mean_difference(loaded, POINTS, prompts, "last_prompt").difference[POINTS[0]]
    assert torch.allclose(alone, first - second, atol=1e-6)
    with pytest.raises(SteerkitError, match="needs openings or requests"):
        mean_difference(loaded, POINTS, CONTRAST, "last_prompt")
    for positions in ("completion", "first"):
        with pytest.raises(SteerkitError, match="requests have none"):
            mean_difference(loaded, POINTS, prompts, positions)


def test_vector_scale_norm_and_receipts(loaded):
    found = mean_difference(loaded, POINTS, CONTRAST)
    raw = found.vector(loaded, receipts={"n": 3})
    assert raw.intervention == "static" and raw.metadata.receipts["n"] == 3
    assert raw.metadata.n_layers == 3 and raw.metadata.d_model == 32 and raw.metadata.fingerprint
    assert set(raw.metadata.receipts["residual_norms"]) == {str(p) for p in POINTS}
    for point in POINTS:
        assert torch.equal(raw.tensors[point]["vector"], found.difference[point])
    trained = SteeringVector(
        "static",
        {p: {"vector": torch.full((32,), 0.1 * (p.layer + 1))} for p in POINTS},
        {},
        VectorMetadata("", "", 32, 3),
    )
    matched = found.vector(loaded, scale=-2.0, norm_like=trained, token_mask="generated")
    assert matched.token_mask == "generated"
    assert matched.norms() == pytest.approx({name: 2 * norm for name, norm in trained.norms().items()}, rel=1e-5)
    assert all(value == pytest.approx(-1, abs=1e-6) for value in matched.cos(raw).values())
    with pytest.raises(VectorError, match=r"norm_like has no hook point layers\.0\.output"):
        found.vector(loaded, norm_like=trained.at(1))
    with pytest.raises(VectorError, match="finite"):
        found.vector(loaded, scale=math.inf)
