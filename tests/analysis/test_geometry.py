"""Geometry of planted vectors: known angles, ranks and sizes."""

from __future__ import annotations

import pytest
import torch

from steerkit.analysis import Geometry
from steerkit.analysis.geometry import stable_rank
from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Tokenwise
from steerkit.models import LoadedModel, find_layout
from steerkit.rollouts import EncodedPrompt
from steerkit.testing import randomize, tiny_model, tiny_tokenizer
from steerkit.types import Example
from steerkit.vectors import SteeringVector, VectorMetadata

PROMPTS = [EncodedPrompt(Example(f"p{k}", "text", ""), "text", ids) for k, ids in enumerate([(5, 6, 7), (8, 9)])]


def loaded_model(family="llama"):
    base = tiny_model(family)
    return LoadedModel(base, tiny_tokenizer(), find_layout(base), "tiny")


def static(rows):
    tensors = {HookPoint(layer): {"vector": torch.tensor(row)} for layer, row in rows.items()}
    return SteeringVector("static", tensors, {}, VectorMetadata("tiny", "", 32, 3))


def unit(index, size=1.0):
    return [size if k == index else 0.0 for k in range(32)]


def test_planted_angles_and_ranks():
    orthogonal = static({0: unit(0, 2.0), 1: unit(1, 2.0), 2: unit(2, 2.0)})
    equal = static({0: unit(0, 3.0), 1: unit(0, 3.0), 2: unit(0, -3.0)})
    result = Geometry().run(loaded_model(), {"orthogonal": orthogonal, "equal": equal}, PROMPTS)

    def value(**keys):
        (found,) = result.find(**keys)
        return found

    assert value(metric="stable rank", vector="orthogonal")["value"] == pytest.approx(3.0)
    assert value(metric="stable rank", vector="equal")["value"] == pytest.approx(1.0)
    assert 2.0 < value(metric="stable rank", vector="equal")["control"] < 3.0  # random rows of width 32
    within = {"vector": "equal", "other_point": "layers.1.output", "point": "layers.0.output"}
    assert value(metric="cosine", **within)["value"] == pytest.approx(1.0)
    assert value(metric="cosine", vector="equal", point="layers.1.output", other_point="layers.2.output")["value"] == (
        pytest.approx(-1.0)
    )
    between = result.find(metric="cosine", vector="orthogonal", other="equal")
    assert [row["value"] for row in between] == pytest.approx([1.0, 0.0, 0.0])
    # E|cos| of random directions of width d is about sqrt(2 / (pi d)) = 0.141
    assert between[0]["control"] == pytest.approx(0.141, abs=0.03) and between[0]["control_ci95"] is not None
    table = result.arrays["cosines"]
    assert table.labels["direction"][:2] == ["orthogonal 0", "orthogonal 1"] and table.values[0, 3] == pytest.approx(
        1.0
    )


@torch.no_grad()
def test_ratio_to_the_residual_stream():
    loaded = loaded_model()
    result = Geometry(positions="last_prompt:1").run(loaded, static({1: unit(4, 2.5)}), PROMPTS)
    sizes = []
    for prompt in PROMPTS:
        hidden = loaded.base(torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states[2]
        sizes.append(float(hidden[0, -1].norm()))
    (row,) = result.find(metric="norm / residual norm")
    assert row["value"] == pytest.approx(sum(2.5 / size for size in sizes) / 2, rel=1e-5) and row["n"] == 2
    (norm,) = result.find(metric="norm")
    assert norm["value"] == 2.5 and norm["n"] == 1 and norm["ci95"] is None


@torch.no_grad()
def test_a_tokenwise_vector_is_measured_by_what_it_adds():
    """|a . x| |b| at each token, x seen by a hook of this test."""
    loaded = loaded_model()
    point = HookPoint(1, "down_proj")
    item = randomize(Tokenwise(32, 64), 3)
    vector = SteeringVector.from_interventions("tokenwise", {point: item}, VectorMetadata("tiny", "", 32, 3))
    result = Geometry().run(loaded, vector, PROMPTS)
    ratios = []
    for prompt in PROMPTS:
        seen = {}
        down = loaded.base.model.layers[1].mlp.down_proj
        handle = down.register_forward_hook(lambda _m, args, _o, seen=seen: seen.update(x=args[0]))
        hidden = loaded.base(torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states[2]
        handle.remove()
        added = (seen["x"][0] @ item.a).abs() * item.b.norm()
        ratios.append(float(added.mean() / hidden[0].norm(dim=-1).mean()))
    (row,) = result.find(metric="norm / residual norm")
    assert row["value"] == pytest.approx(sum(ratios) / 2, rel=1e-4)


def test_stable_rank_of_known_matrices():
    assert stable_rank(torch.diag(torch.tensor([3.0, 4.0]))) == pytest.approx(25 / 16)
    assert stable_rank(torch.zeros(2, 2)) != stable_rank(torch.zeros(2, 2))  # NaN: nothing has no rank


def test_bad_settings():
    with pytest.raises(SteerkitError, match="controls must be at least 2"):
        Geometry(controls=1)
    with pytest.raises(SteerkitError, match="Unknown token mask"):
        Geometry(positions="everywhere")
