"""Models that nothing could be sampled from are refused when they are loaded, in one line."""

from __future__ import annotations

import pytest
import torch
from helpers import checkpoint
from transformers import CONFIG_MAPPING

from steerkit.cli import main
from steerkit.errors import ModelError
from steerkit.models import layout as layouts
from steerkit.models import load_model
from steerkit.models.caching import require_cache, verify_cache, verify_padding
from steerkit.testing import tiny_model

RECURRENT = {"mamba": "cache_params", "falcon_mamba": "cache_params", "rwkv": "state"}


@pytest.mark.parametrize("family", RECURRENT)
def test_recurrent_families_are_refused(family):
    sizes = {"state_size": 4, "attention_hidden_size": 32} if family == "rwkv" else {"state_size": 4}
    with pytest.raises(ModelError, match=f"'{family}' models keep their past in {RECURRENT[family]}.*another|use a"):
        require_cache(tiny_model(family, **sizes))


def test_refused_before_training_and_sampling(tmp_path, capsys):
    folder = checkpoint(tmp_path / "mamba", "mamba", state_size=4)
    with pytest.raises(ModelError, match="cache_params"):
        load_model(folder)
    for verb in (["chat", "--prompt", "Hi"], ["evaluate", "--out", str(tmp_path / "out")]):
        assert main([verb[0], "--model", folder, *verb[1:]]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("steerkit")]
        assert len(lines) == 1 and "'mamba' models keep their past in cache_params" in lines[0]
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.skipif("recurrent_gemma" not in CONFIG_MAPPING, reason="this transformers has no recurrent_gemma")
def test_a_model_that_keeps_its_past_to_itself():
    base = tiny_model("recurrent_gemma")
    require_cache(base)  # its forward does take a past
    with pytest.raises(ModelError, match="do not give back past_key_values"):
        verify_cache(base)
    with pytest.raises(ModelError, match="padded on the left"):
        verify_padding(base)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mpt", "gemma2", "jamba"])
def test_good_families_pass(family):
    base = tiny_model(family)
    verify_cache(base)
    verify_padding(base)
    verify_padding(base.to(torch.bfloat16))


def ignores_padding(base):
    forward = base.forward
    base.forward = lambda input_ids, attention_mask=None, **kwargs: forward(
        input_ids=input_ids, **{key: value for key, value in kwargs.items() if key != "position_ids"}
    )
    return base


def test_a_model_that_does_not_mask_padding():
    with pytest.raises(ModelError, match=r"padded on the left \(they differ by"):
        verify_padding(ignores_padding(tiny_model("llama")))


def test_unknown_families_are_probed_when_loaded(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path / "model")
    monkeypatch.setattr(layouts, "FAMILIES", {})
    monkeypatch.setattr("steerkit.models.load.FAMILIES", {})
    called = []
    monkeypatch.setattr("steerkit.models.load.verify_padding", lambda base: called.append("padding"))
    monkeypatch.setattr("steerkit.models.load.verify_cache", lambda base: called.append("cache"))
    load_model(folder)
    assert called == ["cache", "padding"]
