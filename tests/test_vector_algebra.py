"""Vector algebra: what the sum does to a model's logits, hand-computed norms and angles, refusals; files of version
1.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steerkit.errors import VectorError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Bias, Gated, LowRank, Projected, Static, Tokenwise
from steerkit.models import SteeredModel, fingerprint
from steerkit.testing import randomize, tiny_model
from steerkit.vectors import SteeringVector, VectorMetadata

IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))
KINDS = {
    "static": (Static, {}),
    "gated": (Gated, {}),
    "tokenwise": (Tokenwise, {"d_inner": 64}),
    "projected": (Projected, {"rank": 5}),
    "lowrank": (LowRank, {"rank": 2}),
    "bias": (Bias, {}),
}
OLD = Path(__file__).parent / "data" / "vector_v1"


def make(kind: str = "static", layers=(0, 2), seed: int = 0, **metadata) -> SteeringVector:
    cls, settings = KINDS[kind]
    built = cls.build([HookPoint(layer, cls.sites[0]) for layer in layers], 32, **settings)
    for k, item in enumerate(built.values()):
        randomize(item, seed + 10 * k)
    return SteeringVector.from_interventions(kind, built, VectorMetadata(n_layers=3, **metadata))


def change(vector: SteeringVector) -> torch.Tensor:
    """[B, T, D] of each hook point's own change to random streams, stacked."""
    wide = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        items = vector.to_interventions().values()
        return torch.stack([i.delta(wide[..., : i.settings.get("d_inner", 32)]).expand(2, 3, 32) for i in items])


@pytest.mark.parametrize("kind", KINDS)
def test_multiples_scale_the_change(kind):
    vector = make(kind)
    assert change(vector).abs().max() > 0.01
    torch.testing.assert_close(change(0.5 * vector), 0.5 * change(vector))
    torch.testing.assert_close(change(-vector), -change(vector))
    torch.testing.assert_close(change(vector * 3), 3 * change(vector))
    assert (2 * vector).norm() == pytest.approx(2 * vector.norm(), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_every_kind_back(kind, tmp_path):
    vector = make(kind).with_mask("generated")
    again = SteeringVector.from_pretrained(vector.save_pretrained(tmp_path / "v"))
    assert again.token_mask == "generated" and dict(again.settings) == dict(vector.settings)
    assert torch.equal(change(again), change(vector))
    base = tiny_model("llama")
    steered = again.steer(base)
    assert steered.token_mask.spec == "generated"
    assert torch.equal(
        steered(IDS).logits, SteeredModel(base, vector.to_interventions(), None, "generated")(IDS).logits
    )


@pytest.mark.parametrize("kind", ["static", "projected", "lowrank", "bias"])
def test_as_static_steers_the_same(kind):
    vector, base = make(kind), tiny_model("llama")
    static = vector.as_static()
    assert static.intervention == "static"
    torch.testing.assert_close(static.steer(base)(IDS).logits, vector.steer(base)(IDS).logits, atol=1e-5, rtol=0)


def test_sum_of_two_layers_steers_both():
    base = tiny_model("llama")
    v3, v7 = make(layers=(0,), seed=1), make(layers=(2,), seed=2)
    both = SteeredModel(base, {**v3.to_interventions(), **v7.to_interventions()})
    assert torch.equal((v3 + v7).steer(base)(IDS).logits, both(IDS).logits)
    assert list((v3 + v7).tensors) == [HookPoint(0), HookPoint(2)]
    assert "sum_of" in (v3 + v7).metadata.receipts


def test_what_a_changed_vector_says_of_itself():
    recipe = {"prompt": {"style": "plain"}, "max_tokens": 9, "rewards": "exact"}
    results = [{"arm": "steered", "set": "s", "temperature": 0, "accuracy": 0.5, "ci95": [0.4, 0.6], "n": 4, "k": 1}]

    def told(layer, **more):
        metadata = VectorMetadata("m", "f", 2, 8, {**recipe, "results": results, "steps": 5, **more})
        return SteeringVector("static", {HookPoint(layer): {"vector": torch.ones(2)}}, {}, metadata)

    # How to measure it stays; what the parents were measured to do does not.
    both = (told(3) + 0.5 * told(7, max_tokens=10)).metadata.receipts
    assert both["prompt"] == recipe["prompt"] and both["rewards"] == "exact"
    assert "max_tokens" not in both and "results" not in both and "steps" not in both
    assert [part["steps"] for part in both["sum_of"]] == [5, 5] and both["sum_of"][1]["changed"] == ["times 0.5"]
    less = (-told(3)).with_mask("generated").at(3).metadata.receipts
    assert less["changed"] == ["times -1", "token mask generated", "only layers.3.output"]
    assert "results" not in less and less["steps"] == 5 and less["prompt"] == recipe["prompt"]
    assert told(3).as_static().metadata.receipts["results"] == results


def test_sum_at_one_layer_adds_numbers():
    first, second = make(seed=1), make("lowrank", seed=2)
    total = first + 0.5 * second
    torch.testing.assert_close(change(total), change(first) + 0.5 * change(second))
    assert (first - first).norm() == 0


def test_sum_of_gated_vectors_at_different_layers():
    both = make("gated", (0,), 1) + make("gated", (2,), 2)
    assert both.intervention == "gated" and len(both.tensors) == 2


def test_part_of_a_vector():
    vector = make(layers=(0, 1, 2))
    assert list(vector.at(1).tensors) == [HookPoint(1)]
    assert list(vector.at("layers.0.output", -1).tensors) == [HookPoint(0), HookPoint(2)]
    with pytest.raises(VectorError, match="no hook point at 1"):
        make(layers=(0, 2)).at(1)
    shared = make("projected", (0, 1))
    torch.testing.assert_close(change(shared.at(1))[0], change(shared)[1])


@pytest.mark.parametrize(
    "first, second, message",
    [
        (make("gated"), make("gated", seed=3), "has no common form there"),
        (make("gated", (0,)), make("static", (2,)), "one kind of intervention"),
        (make(), replace(make(), metadata=VectorMetadata(d_model=16)), "can't be added"),
        (make(), make().with_mask("generated"), "one token mask"),
    ],
)
def test_sums_that_have_no_meaning(first, second, message):
    with pytest.raises(VectorError, match=message):
        first + second


def test_other_types_are_python_errors():
    with pytest.raises(TypeError):
        make() + 1
    with pytest.raises(TypeError):
        make() * make()
    with pytest.raises(VectorError, match="can't be multiplied by nan"):
        make() * float("nan")


def test_norm_and_angle_by_hand():
    def vector(*numbers: float) -> SteeringVector:
        tensors = {HookPoint(0): {"vector": torch.tensor(numbers)}}
        return SteeringVector("static", tensors, {}, VectorMetadata(d_model=len(numbers)))

    assert vector(3, 4).norms() == {"layers.0.output": 5.0} and vector(3, 4).norm() == 5.0
    assert vector(1, 0).cos(vector(1, 1))["layers.0.output"] == pytest.approx(math.sqrt(0.5))
    assert vector(1, 2).cos(vector(-2, -4))["layers.0.output"] == pytest.approx(-1.0)
    assert math.isnan(vector(0, 0).cos(vector(1, 1))["layers.0.output"])
    with pytest.raises(VectorError, match="share no hook point"):
        make(layers=(0,)).cos(make(layers=(1,)))


def test_norm_of_a_low_rank_vector_is_that_of_what_is_added():
    vector = make("lowrank")
    added = change(vector)[:, 0, 0]
    assert list(vector.norms().values()) == pytest.approx([float(x.norm()) for x in added], rel=1e-5)


def test_random_control_of_shared_parameters_is_shared():
    control = make("lowrank").random_like(0)
    bases = [named["basis"] for named in control.tensors.values()]
    assert torch.equal(bases[0], bases[1])
    assert control.metadata.receipts["control_seed"] == 0


def test_applied_steers_foreign_calls():
    base, vector = tiny_model("llama"), make()
    plain = base(IDS).logits
    with vector.applied(base):
        inside = base(IDS).logits
    assert torch.equal(inside, vector.steer(base)(IDS).logits) and torch.equal(base(IDS).logits, plain)


def test_a_file_of_version_1_is_still_read(tmp_path):
    """Written by steerkit 0.1.0 before the format had a token mask."""
    vector = SteeringVector.from_pretrained(OLD)
    assert vector.tensors[HookPoint(0)]["vector"].tolist() == [1.0, -2.0, 0.5, 0.0]
    assert vector.tensors[HookPoint(2)]["vector"].tolist() == [0.25, 3.0, -1.0, 8.0]
    assert (vector.intervention, vector.token_mask) == ("static", "all")
    assert vector.metadata == VectorMetadata("org/tiny", "0123456789abcdef", 4, 3, {"steps": 2, "seed": 0})
    shutil.copytree(OLD, tmp_path / "v")
    vector.save_pretrained(tmp_path / "v")  # and written anew
    assert SteeringVector.from_pretrained(tmp_path / "v").tensors[HookPoint(2)]["vector"].tolist()[3] == 8.0


def test_push_to_hub_uploads_the_folder(monkeypatch):
    import huggingface_hub

    seen = {}

    class Api:
        def create_repo(self, repo_id, private, exist_ok):
            seen["repo"] = (repo_id, private, exist_ok)
            return f"https://hub/{repo_id}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            seen["vector"] = SteeringVector.from_pretrained(folder_path)
            seen["card"] = (Path(folder_path) / "README.md").read_text()
            seen["files"] = sorted(p.name for p in Path(folder_path).iterdir())

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert make().push_to_hub("me/vector", private=True) == "https://hub/me/vector"
    assert seen["repo"] == ("me/vector", True, True)
    assert seen["files"] == ["README.md", "steering.safetensors", "steering_config.json"]
    assert 'from_pretrained("me/vector")' in seen["card"]  # not the temporary folder
    assert torch.equal(change(seen["vector"]), change(make()))
    with pytest.raises(VectorError, match="not a hub id"):
        make().push_to_hub("nowhere")


def test_a_hub_that_refuses_is_one_line(monkeypatch):
    import huggingface_hub

    class Api:
        def create_repo(self, *args, **kwargs):
            raise ConnectionError("401\nmore")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(VectorError, match=r"did not take me/vector \(401\): is `hf auth login` done"):
        make().push_to_hub("me/vector")


def test_width_of_the_down_projection_is_checked():
    vector = make("tokenwise", layers=(0,))
    with pytest.raises(VectorError, match="expected d_inner 48"):
        vector.steer(tiny_model("llama", intermediate_size=48))


def test_fingerprint_mismatch_is_refused_on_demand():
    base, other = tiny_model("llama"), tiny_model("llama", seed=1)
    vector = make(fingerprint=fingerprint(base), model="org/base")
    vector.check_fits(base, same_base=True)
    with pytest.raises(VectorError, match="trained on org/base"):
        vector.check_fits(other, same_base=True)


def test_repr_is_one_short_line():
    text = repr(make(layers=(0, 1, 2), model="org/base"))
    assert text.startswith("SteeringVector(static at layers.0.output, layers.1.output") and text.endswith("org/base)")
    assert "\n" not in text and len(text) < 200
