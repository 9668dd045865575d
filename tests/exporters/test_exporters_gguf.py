"""Control vector files, read by the gguf package; real llama.cpp: benchmarks/gguf_export.py."""

from __future__ import annotations

import builtins

import gguf
import numpy as np
import pytest
from exporter_helpers import loaded_model, random_vector

from steerkit.errors import ModelError, SteerkitError, VectorError
from steerkit.exporters import Gguf


def rows(path):
    reader = gguf.GGUFReader(str(path))
    assert all(tensor.tensor_type == gguf.GGMLQuantizationType.F32 for tensor in reader.tensors)
    return {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def test_the_file(tmp_path):
    loaded = loaded_model("mistral")
    vector = random_vector(loaded)
    report = Gguf().export(vector, loaded, tmp_path / "v.gguf")
    reader = gguf.GGUFReader(str(tmp_path / "v.gguf"))
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert reader.get_field("controlvector.layer_count").contents() == 2
    found = rows(tmp_path / "v.gguf")
    assert list(found) == ["direction.1", "direction.2"]
    for point, tensors in vector.tensors.items():
        assert np.array_equal(found[f"direction.{point.layer}"], tensors["vector"].numpy())
    assert (report.comparison.difference, report.comparison.allowed) == (0.0, 0.0)


def test_the_last_block_can_be_steered_alone(tmp_path):
    loaded = loaded_model("llama")
    Gguf().export(random_vector(loaded, points=("layers.2.output",)), loaded, tmp_path / "v.gguf")
    assert list(rows(tmp_path / "v.gguf")) == ["direction.2"]


def test_sites_that_end_at_the_block_s_output_are_added_up(tmp_path):
    loaded = loaded_model("granite", residual_multiplier=0.25)
    vector = random_vector(loaded, points=("layers.1.output", "layers.1.mlp_output", "layers.1.down_proj"))
    Gguf().export(vector, loaded, tmp_path / "v.gguf")
    by_site = {point.site: tensors["vector"].numpy() for point, tensors in vector.tensors.items()}
    expected = by_site["output"] + by_site["mlp_output"] + 0.25 * by_site["down_proj"]
    np.testing.assert_allclose(rows(tmp_path / "v.gguf")["direction.1"], expected, atol=1e-6)


@pytest.mark.parametrize("intervention", ["projected", "lowrank"])
def test_constant_interventions(tmp_path, intervention):
    loaded = loaded_model("gemma2")  # behind a norm, at a block's output: no matter
    vector = random_vector(loaded, intervention)
    Gguf().export(vector, loaded, tmp_path / "v.gguf")
    static = vector.as_static()
    for point, tensors in static.tensors.items():
        assert np.array_equal(rows(tmp_path / "v.gguf")[f"direction.{point.layer}"], tensors["vector"].numpy())


REFUSED = {
    "block 0": ("llama", "static", ("layers.0.output", "layers.1.output"), VectorError, "block 0.*begin at block 1"),
    "attention": ("llama", "static", ("layers.1.attn_output",), VectorError, "layers.1.attn_output"),
    "a gate": ("llama", "gated", ("layers.1.output",), VectorError, "gguf can't express 'gated'"),
    "token by token": ("llama", "tokenwise", ("layers.1.down_proj",), VectorError, "gguf can't express 'tokenwise'"),
    "before a norm": ("gemma2", "bias", ("layers.1.down_proj",), ModelError, "stands between"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path, case):
    family, intervention, points, kind, reason = REFUSED[case]
    loaded = loaded_model(family)
    with pytest.raises(kind, match=reason) as error:
        Gguf().export(random_vector(loaded, intervention, points), loaded, tmp_path / "v.gguf")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_without_the_package(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "gguf":
            raise ModuleNotFoundError("No module named 'gguf'")
        return real(name, *args, **kwargs)

    loaded = loaded_model("llama")
    vector = random_vector(loaded)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(SteerkitError, match=r"pip install gguf\."):
        Gguf().export(vector, loaded, tmp_path / "v.gguf")
    assert not list(tmp_path.iterdir())
