"""transfer: a copy to the same model has the whole gain, a rotated twin is reached by its map, misfits are refused."""

from __future__ import annotations

import pytest
import torch
from helpers import checkpoint, tokenizer

from steerkit.analysis import Transfer
from steerkit.analysis.stream_maps import matched_layer, moved, procrustes_map, rescaled, ridge_map
from steerkit.errors import SteerkitError, VectorError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import load_model
from steerkit.testing import check_analyzer, randomize
from steerkit.types import Example
from steerkit.vectors import SteeringVector, VectorMetadata

SMALL = {"samples": 2, "max_tokens": 5, "controls": 2, "verifier": "exact"}
EXAMPLES = [Example(f"p{k}", text, "15") for k, text in enumerate(["Tom has 12 apples.", "Anna gives 3.", "How many?"])]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_keeps_the_contract(family):
    check_analyzer(Transfer, family=family, drawn=family == "llama", **SMALL)


def static(width=32, layers=(0, 2), n_layers=3, seed=0):
    items = Static.build([HookPoint(layer) for layer in layers], width)
    for k, item in enumerate(items.values()):
        randomize(item, seed + k)
    return SteeringVector.from_interventions("static", items, VectorMetadata("tiny", d_model=width, n_layers=n_layers))


def test_maps_by_construction():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator) + 5.0
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    y = 3.0 * x.double() @ rotation - 2.0
    torch.testing.assert_close(procrustes_map(x, y), rotation, atol=1e-6, rtol=0)
    torch.testing.assert_close(ridge_map(x, y, 1e-9), 3.0 * rotation, atol=1e-5, rtol=0)
    wide = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(ridge_map(x, x.double() @ wide, 1e-9), wide, atol=1e-5, rtol=0)
    half = procrustes_map(x, x.double() @ wide)
    torch.testing.assert_close(half @ half.T, torch.eye(6, dtype=torch.float64), atol=1e-6, rtol=0)


def test_rounding_does_not_decide_a_map_of_few_tokens():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(5, 12, generator=generator), torch.randn(5, 9, generator=generator)
    noise = 1e-7 * torch.randn(5, 9, generator=generator)
    first, again = procrustes_map(x, y), procrustes_map(x, y + noise)
    torch.testing.assert_close(again, first, atol=1e-5, rtol=0)
    values = torch.linalg.svdvals(first)  # five tokens, centred: four directions, each of length 1
    torch.testing.assert_close(values[:4], torch.ones(4, dtype=torch.float64))
    assert values[4:].max() < 1e-9


def test_layers_are_matched_by_depth():
    assert [matched_layer(k, 6, 9) for k in range(6)] == [0, 2, 3, 5, 6, 8]
    assert [matched_layer(k, 6, 3) for k in range(6)] == [0, 0, 1, 1, 2, 2]
    vector = static(layers=(0, 1))
    there = moved(vector, {HookPoint(0): HookPoint(0), HookPoint(1): HookPoint(0)}, 32)
    both = vector.tensors[HookPoint(0)]["vector"] + vector.tensors[HookPoint(1)]["vector"]
    assert torch.equal(there.tensors[HookPoint(0)]["vector"], both) and len(there.tensors) == 1
    doubled = rescaled(vector, {HookPoint(0): 2.0, HookPoint(1): 0.5})
    assert torch.equal(doubled.tensors[HookPoint(0)]["vector"], 2 * vector.tensors[HookPoint(0)]["vector"])


def rotate(base, rotation):
    """The same function in another basis (RMS norms without gain): what a perfect map must find."""
    with torch.no_grad():
        base.model.embed_tokens.weight.copy_(base.model.embed_tokens.weight @ rotation)
        base.lm_head.weight.copy_(base.lm_head.weight @ rotation)
        for block in base.model.layers:
            attention, mlp = block.self_attn, block.mlp
            for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
                reader.weight.copy_(reader.weight @ rotation)
            for writer in (attention.o_proj, mlp.down_proj):
                writer.weight.copy_(rotation.T @ writer.weight)


@pytest.fixture
def twins(tmp_path):
    """A model, and the same one in a rotated basis."""
    donor = load_model(checkpoint(tmp_path / "donor"))
    with torch.no_grad():
        for name, parameter in donor.base.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
    donor.base.save_pretrained(tmp_path / "donor")
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1))).Q
    twin = load_model(str(tmp_path / "donor"))
    rotate(twin.base, rotation)
    twin.base.save_pretrained(tmp_path / "twin")
    tokenizer().save_pretrained(tmp_path / "twin")
    return load_model(str(tmp_path / "donor")), str(tmp_path / "twin"), rotation


@pytest.mark.parametrize("engine", ["nnsight", "batched"])
def test_a_rotated_twin_is_reached_by_its_map(twins, tmp_path, engine):
    donor, twin, rotation = twins
    vector = static()
    own = SteeringVector(
        "static", {p: {"vector": named["vector"] @ rotation} for p, named in vector.tensors.items()}, {},
        vector.metadata,
    )  # fmt: skip
    own.save_pretrained(tmp_path / "own")
    examples = [Example(f"q{k}", f"Tom has {k} apples. Anna gives Tom {k + 3} more.", "15") for k in range(12)]
    result = Transfer(recipient=twin, own=str(tmp_path / "own"), ridge=1e-6, **SMALL).run(
        donor, {"v": vector}, examples, engine=engine
    )
    for point in ("layers.0.output", "layers.2.output"):
        for arm, least, most in (("ridge", 0.99, 1.0), ("procrustes", 0.99, 1.0), ("copy", -0.6, 0.6)):
            (found,) = result.find(metric="cosine with own", arm=arm, point=point)
            assert least <= found["value"] <= most + 1e-6, (arm, point, found["value"])
    assert "layers.2.output -> layers.2.output" in result.notes[0]


def test_the_same_model_has_the_whole_gain():
    """By construction: own is the copy, so its share of the gain is 1 wherever there is a gain at all."""
    from test_diff_sae import opening_vector

    from steerkit.datasets.arithmetic import Arithmetic

    loaded = load_model("tiny-reasoner", dtype="float32")
    examples = Arithmetic(n=1, n_eval=12, seed=3).load("test")
    result = Transfer(samples=2, max_tokens=90, controls=1).run(
        loaded, opening_vector(loaded, 150.0), examples, engine="batched"
    )
    for arm in ("copy", "norm_matched"):
        (gain,) = result.find(metric="normalised gain", arm=arm)
        assert gain["value"] == pytest.approx(1.0) and gain["control"] < 0.7
    (own,) = result.find(metric="accuracy - base", arm="own")
    assert own["value"] > 0.3 and own["ci95"][0] > 0


def test_another_width_and_depth(tmp_path):
    donor = load_model(checkpoint(tmp_path / "donor"))
    wide = checkpoint(tmp_path / "wide", seed=2, hidden_size=48, num_hidden_layers=5)
    result = Transfer(recipient=wide, **SMALL).run(donor, static(), EXAMPLES, engine="batched")
    arms = {row["arm"] for row in result.find(metric="accuracy")}
    assert arms == {"base", "random", "norm_matched", "ridge", "procrustes"}
    assert not result.find(metric="normalised gain") and "layers.2.output -> layers.4.output" in str(result.notes)


def test_bad_input(tmp_path):
    donor = load_model(checkpoint(tmp_path / "donor"))
    wide = checkpoint(tmp_path / "wide", hidden_size=48)
    from steerkit.zoo import tiny_reasoner

    def run(vector=None, **changed):
        return Transfer(**(SMALL | changed)).run(donor, vector or static(), EXAMPLES, engine="batched")

    static().save_pretrained(tmp_path / "own")
    with pytest.raises(VectorError, match="own: The vector is 32 wide .* the model 48"):
        run(recipient=wide, own=str(tmp_path / "own"))
    with pytest.raises(SteerkitError, match="has another tokenizer than"):
        run(recipient=tiny_reasoner())
    with pytest.raises(SteerkitError, match="No model"):
        run(recipient="tiny-reasonr")
    with pytest.raises(SteerkitError, match="ridge must be above 0"):
        Transfer(ridge=0.0)
    from steerkit.interventions.gated import Gated

    items = {HookPoint(0): randomize(Gated(32))}
    gated = SteeringVector.from_interventions("gated", items, VectorMetadata("tiny", d_model=32, n_layers=3))
    with pytest.raises(SteerkitError, match="'gated' vectors depend on the token.* can't be mapped"):
        run(gated, recipient=wide)
