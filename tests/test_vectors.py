from __future__ import annotations

import json
import math
import os
import shlex
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from steerkit import vectors
from steerkit.cli import main
from steerkit.errors import VectorError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel, fingerprint, load_model
from steerkit.testing import randomize, tiny_model
from steerkit.vectors import CONFIG_FILE, TENSOR_FILE, SteeringVector, VectorMetadata

IDS = torch.arange(3, 13)[None]
RECEIPTS = {"command": "steerkit fit --config a|b.yaml", "dataset": "org/sums", "reward": float("nan"), "steps": [1, 2]}


def steered(seed=0):
    items = Static.build([HookPoint(2), HookPoint(0)], 32)
    for offset, item in enumerate(items.values()):
        randomize(item, 10 * seed + offset)
    return SteeredModel(tiny_model("llama"), items)


def make(seed=0, **metadata):
    metadata = {"model": "org/tiny", "n_layers": 3, "receipts": RECEIPTS, **metadata}
    return SteeringVector.from_interventions("static", steered(seed).interventions, VectorMetadata(**metadata))


def same(a, b):
    return list(a.tensors) == list(b.tensors) and all(
        torch.equal(t, b.tensors[p][n]) for p, tensors in a.tensors.items() for n, t in tensors.items()
    )


def rewrite_config(folder, **changes):
    config = json.loads((folder / CONFIG_FILE).read_text())
    config.update(changes)
    (folder / CONFIG_FILE).write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def rewrite_tensors(folder, tensors):
    """As a third party's tool would: tensors and a fitting digest, and no config in the header."""
    save_file(tensors, folder / TENSOR_FILE)
    rewrite_config(folder, digest=vectors.files.digest_of(tensors))


def test_round_trip_gives_the_same_model(tmp_path):
    model = steered()
    vector = SteeringVector.from_interventions(
        "static", model.interventions, VectorMetadata("org/tiny", fingerprint(model.base), 0, 3, RECEIPTS)
    )
    again = SteeringVector.from_pretrained(vector.save_pretrained(tmp_path / "new" / "vector"))
    assert same(vector, again) and list(again.tensors) == [HookPoint(0), HookPoint(2)]
    assert (again.intervention, again.metadata.d_model, again.metadata.n_layers) == ("static", 32, 3)
    assert again.metadata.receipts == {**RECEIPTS, "reward": None}
    assert torch.equal(again.steer(tiny_model("llama"))(IDS).logits, model(IDS).logits)
    assert all(item.vector.requires_grad for item in again.to_interventions().values())


def test_it_is_a_copy():
    model = steered()
    vector = SteeringVector.from_interventions("static", model.interventions)
    before = vector.norms()
    with torch.no_grad():
        model.interventions[HookPoint(0)].vector.zero_()
    assert vector.norms() == before


def test_config_file_is_plain_json(tmp_path):
    make().save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert config["format_version"] == 2 and config["hook_points"] == ["layers.0.output", "layers.2.output"]
    assert sorted(os.listdir(tmp_path)) == ["README.md", TENSOR_FILE, CONFIG_FILE]
    assert sorted(load_file(tmp_path / TENSOR_FILE)) == ["layers.0.output/vector", "layers.2.output/vector"]
    assert all(stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644 for name in os.listdir(tmp_path))


def test_card(tmp_path):
    make().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    for line in ('base_model: "org/tiny"', 'library_name: "steerkit"', 'datasets: ["org/sums"]', "| reward | `null` |"):
        assert line in card.splitlines()
    assert r"| command | `steerkit fit --config a\|b.yaml` |" in card
    make(model="/home/me/tiny").save_pretrained(tmp_path)
    assert "base_model" not in (tmp_path / "README.md").read_text()


def test_the_cards_snippet_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = load_model("tiny-reasoner").base
    static = {HookPoint(2): {"vector": 20 * torch.randn(128, generator=torch.Generator().manual_seed(0))}}
    vector = SteeringVector("static", static, {}, VectorMetadata("tiny-reasoner", fingerprint(base), 128, 6))
    vector.save_pretrained(tmp_path / "runs" / "it's" / "vector")  # an absolute path: the card has it from here
    text = (tmp_path / "runs" / "it's" / "vector" / "README.md").read_text()
    assert str(tmp_path) not in text
    snippet = text.partition("```python\n")[2].partition("```")[0]
    exec(compile(snippet, "card", "exec"), {})
    steered = capsys.readouterr().out
    assert "Tom has 12 pens." in steered
    exec(compile(snippet.replace("vector.applied(loaded.base)", "torch.no_grad()"), "card", "exec"), {"torch": torch})
    assert capsys.readouterr().out != steered  # the snippet did steer
    command = shlex.split(text.partition("made for: `")[2].partition("`")[0])
    assert main([*command[1:], "--prompt", "Hi", "--max_tokens", "2"]) == 0


def test_norms():
    tensors = {HookPoint(1): {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}}
    assert SteeringVector("x", tensors).norms() == {"layers.1.output": 5.0}


def test_random_like_keeps_norms_and_nothing_else():
    vector = make()
    control = vector.random_like(7)
    for point, norm in vector.norms().items():
        assert math.isclose(control.norms()[point], norm, rel_tol=1e-5)
    cosines = [
        float(torch.cosine_similarity(control.tensors[p]["vector"], vector.tensors[p]["vector"], dim=0))
        for p in vector.tensors
    ]
    assert max(map(abs, cosines)) < 0.6
    assert same(control, vector.random_like(7)) and not same(control, vector.random_like(8))
    assert control.metadata.model == vector.metadata.model and control.metadata.receipts["control_seed"] == 7


def test_random_like_zero_is_zero():
    vector = SteeringVector("static", {HookPoint(0): {"vector": torch.zeros(4)}})
    assert vector.random_like(0).norms() == {"layers.0.output": 0.0}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(bad, tmp_path):
    tensor = torch.tensor([1.0, bad])
    with pytest.raises(VectorError, match=r"layers.0.output vector: NaN or infinite"):
        SteeringVector("static", {HookPoint(0): {"vector": tensor}})
    make().save_pretrained(tmp_path)
    rewrite_tensors(tmp_path, {"layers.0.output/vector": tensor})
    with pytest.raises(VectorError, match="NaN or infinite"):
        SteeringVector.from_pretrained(tmp_path)


def test_no_hook_point():
    with pytest.raises(VectorError, match="at least one hook point"):
        SteeringVector("static", {})
    with pytest.raises(VectorError, match="at least one hook point"):
        SteeringVector.from_interventions("static", {})


# -- does it fit


def test_width_differs():
    with pytest.raises(VectorError, match=r"vector is 32 wide .*org/tiny.*the model 40"):
        make().check_fits(tiny_model("llama", hidden_size=40))


def test_layer_outside_the_model():
    shallow = tiny_model("llama", num_hidden_layers=2)
    with pytest.raises(VectorError, match=r"layers.2.output is outside the model: it has layers 0 to 1"):
        make().steer(shallow)


def test_other_weights_fit_unless_the_same_base_is_wanted():
    mark = fingerprint(tiny_model("llama"))
    vector, other = make(fingerprint=mark), tiny_model("llama", seed=1)
    vector.check_fits(other)
    vector.check_fits(tiny_model("llama"), same_base=True)
    with pytest.raises(VectorError, match=f"fingerprint {mark}"):
        vector.check_fits(other, same_base=True)


def test_tensors_that_are_not_the_plugins():
    vector = SteeringVector("static", {HookPoint(0): {"gate": torch.ones(4)}}, {}, VectorMetadata(d_model=4))
    with pytest.raises(VectorError, match=r"layers.0.output does not fit 'static'"):
        vector.to_interventions()


# -- bad files


def test_no_such_folder(tmp_path):
    with pytest.raises(VectorError, match=r"No vector at .*hub id"):
        SteeringVector.from_pretrained(tmp_path / "none")


@pytest.mark.parametrize("name", [CONFIG_FILE, TENSOR_FILE])
def test_missing_file(name, tmp_path):
    make().save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(VectorError, match=rf"has no {name}"):
        SteeringVector.from_pretrained(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_tensors(keep, tmp_path):
    make().save_pretrained(tmp_path)
    data = (tmp_path / TENSOR_FILE).read_bytes()
    (tmp_path / TENSOR_FILE).write_bytes(data[:keep])
    with pytest.raises(VectorError, match="is damaged"):
        SteeringVector.from_pretrained(tmp_path)


def test_one_flipped_bit(tmp_path):
    make().save_pretrained(tmp_path)
    data = bytearray((tmp_path / TENSOR_FILE).read_bytes())
    data[-2] ^= 1
    (tmp_path / TENSOR_FILE).write_bytes(data)
    with pytest.raises(VectorError, match="numbers are not those saved"):
        SteeringVector.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "not json", "\x00\xff"])
def test_config_is_not_json(text, tmp_path):
    make().save_pretrained(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(text)
    with pytest.raises(VectorError, match="is not JSON"):
        SteeringVector.from_pretrained(tmp_path)


@pytest.mark.parametrize("version", [3, 0, "1", None, ...])
def test_unknown_format_version(version, tmp_path):
    make().save_pretrained(tmp_path)
    rewrite_config(tmp_path, format_version=version)
    with pytest.raises(VectorError, match=r"expected a format_version up to 2, got .*update steerkit"):
        SteeringVector.from_pretrained(tmp_path)


def test_config_is_a_list(tmp_path):
    make().save_pretrained(tmp_path)
    (tmp_path / CONFIG_FILE).write_text("[]")
    with pytest.raises(VectorError, match="got list"):
        SteeringVector.from_pretrained(tmp_path)


@pytest.mark.parametrize("key", ["intervention", "settings", "d_model", "digest"])
def test_config_lacks_a_key(key, tmp_path):
    make().save_pretrained(tmp_path)
    rewrite_config(tmp_path, **{key: ...})
    with pytest.raises(VectorError, match=f"lacks '{key}'"):
        SteeringVector.from_pretrained(tmp_path)


def test_unreadable_hook_point(tmp_path):
    make().save_pretrained(tmp_path)
    rewrite_tensors(tmp_path, {"somewhere/vector": torch.ones(32)})
    with pytest.raises(VectorError, match="Can't read hook point 'somewhere'"):
        SteeringVector.from_pretrained(tmp_path)


def test_hub_out_of_reach_is_one_line(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(VectorError, match=r"the hub did not give it \(no route\)"):
        SteeringVector.from_pretrained("org/name")


def test_hub_id(monkeypatch, tmp_path):
    make().save_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, revision, allow_patterns: str(tmp_path))
    assert same(SteeringVector.from_pretrained("org/name"), make())


# -- a crash while saving


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_crash_leaves_the_old_vector_or_the_new(step, call, tmp_path, monkeypatch):
    old, new = make(0), make(1, model="org/newer")
    old.save_pretrained(tmp_path)
    real, calls = getattr(os, call), []

    def crash(*args):
        calls.append(args)
        if len(calls) > step:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(os, call, crash)
    with pytest.raises(KeyboardInterrupt):
        new.save_pretrained(tmp_path)
    found, expected = SteeringVector.from_pretrained(tmp_path), old if step == 0 else new
    assert same(found, expected) and found.metadata.model == expected.metadata.model
    assert sorted(os.listdir(tmp_path)) == ["README.md", TENSOR_FILE, CONFIG_FILE]


def test_a_full_disk_is_a_vector_error(tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VectorError, match=r"Can't save the vector to .*No space left"):
        make().save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == []
