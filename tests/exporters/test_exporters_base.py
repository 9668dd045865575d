"""What every exporter keeps: nothing lost, nothing half written, nothing kept that does not reproduce the model."""

from __future__ import annotations

import pytest
import torch
from exporter_helpers import IDS, loaded_model, random_vector

from steerkit import exporters, registry
from steerkit.errors import ModelError, SteerkitError, VectorError
from steerkit.exporters import Folded, Gguf, Peft
from steerkit.exporters import folded as folded_module
from steerkit.exporters import peft as peft_module

ALL = [Folded, Gguf, Peft]


def test_they_are_registered():
    found = {entry.name: registry.resolve("exporters", entry.name) for entry in registry.entries("exporters")}
    assert {name: found.get(name) for name in ("folded", "gguf", "peft")} == {
        "folded": exporters.Folded,
        "gguf": exporters.Gguf,
        "peft": exporters.Peft,
    }
    assert all(cls.name == name for name, cls in found.items() if name in ("folded", "gguf", "peft"))


@pytest.mark.parametrize("exporter", ALL)
@pytest.mark.parametrize("mask", ["prompt", "first_generated", "last_prompt:2"])
def test_token_masks_are_refused(tmp_path, exporter, mask):
    loaded = loaded_model("llama")
    with pytest.raises(VectorError, match=f"{exporter.name} can't express the token mask '{mask}'"):
        exporter().export(random_vector(loaded).with_mask(mask), loaded, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exporter", ALL)
def test_a_vector_of_another_width_is_refused(tmp_path, exporter):
    vector = random_vector(loaded_model("llama", hidden_size=48))
    with pytest.raises(VectorError, match="48 wide"):
        exporter().export(vector, loaded_model("llama"), tmp_path / "out")


@pytest.mark.parametrize("exporter", ALL)
def test_what_is_there_stays(tmp_path, exporter):
    loaded = loaded_model("llama")
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(SteerkitError, match="exists already"):
        exporter().export(random_vector(loaded), loaded, out)
    assert (out / "thesis.txt").read_text() == "mine"
    with pytest.raises(SteerkitError, match="exists already"):
        exporter().export(random_vector(loaded), loaded, out / "thesis.txt")


@pytest.mark.parametrize("exporter", ALL)
def test_the_base_is_left_as_it_was(tmp_path, exporter):
    loaded = loaded_model("llama")
    plain = loaded.base(IDS).logits
    modules = {name: type(module) for name, module in loaded.base.named_modules()}
    state = {name: tensor.clone() for name, tensor in loaded.base.state_dict().items()}
    config = loaded.base.config.to_dict()
    exporter().export(random_vector(loaded), loaded, tmp_path / "deep" / "out")
    assert torch.equal(loaded.base(IDS).logits, plain)
    assert {name: type(module) for name, module in loaded.base.named_modules()} == modules
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.base.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in loaded.base.modules())
    assert loaded.base.config.to_dict() == config
    assert not hasattr(loaded.base, "peft_config")


@pytest.mark.parametrize(("exporter", "module"), [(Folded, folded_module), (Peft, peft_module)])
def test_an_export_that_does_not_reproduce_the_model_is_not_kept(tmp_path, monkeypatch, exporter, module):
    loaded = loaded_model("llama")
    right = module.summed
    calls = []

    def wrong(maps, vectors):  # the first call is the writer's
        calls.append(1)
        return {n: 1.001 * b if len(calls) == 1 else b for n, b in right(maps, vectors).items()}

    monkeypatch.setattr(module, "summed", wrong)
    with pytest.raises(ModelError, match="does not reproduce the steered model"):
        exporter().export(random_vector(loaded), loaded, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_without_a_check_nothing_is_compared(tmp_path):
    loaded = loaded_model("llama")
    assert Folded().export(random_vector(loaded), loaded, tmp_path / "out", check=False).comparison is None


def test_files_are_readable_by_others(tmp_path):
    loaded = loaded_model("llama")
    Peft().export(random_vector(loaded), loaded, tmp_path / "out")
    (tmp_path / "mine").write_text("")
    umask = (tmp_path / "mine").stat().st_mode
    assert {file.stat().st_mode for file in (tmp_path / "out").iterdir()} == {umask}
