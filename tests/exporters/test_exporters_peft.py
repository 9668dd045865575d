"""PEFT adapters, loaded by PeftModel into a fresh copy of the base."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from exporter_helpers import IDS, loaded_model, random_vector, steered_logits
from peft import PeftModel
from safetensors.torch import load_file

from steerkit.errors import ModelError, VectorError
from steerkit.exporters import Peft

# PEFT 0.21 asks transformers 5.23 for it.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")


def peft_logits(loaded, folder, expect_warning=False):
    base = copy.deepcopy(loaded.base)
    with warnings.catch_warnings():
        if expect_warning:  # warnings are errors in these tests
            warnings.filterwarnings("ignore", message=".*merging LoRA weights won't be possible.*")
        model = PeftModel.from_pretrained(base, str(folder)).eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gpt2", "gpt_neox", "granite", "gemma2", "phi3"])
def test_tokenwise_is_rank_1_lora(tmp_path, family):
    loaded = loaded_model(family)
    vector = random_vector(loaded, "tokenwise", points=("layers.0.down_proj", "layers.2.down_proj"))
    report = Peft().export(vector, loaded, tmp_path / "out")
    assert (peft_logits(loaded, tmp_path / "out") - steered_logits(loaded, vector)).abs().max() <= 1e-4
    assert report.comparison.difference <= 1e-4
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["lora_bias"]) == ("LORA", 1, 1, False)
    assert config["base_model_name_or_path"] == loaded.name
    assert len(load_file(tmp_path / "out/adapter_model.safetensors")) == 4


def test_tokenwise_can_be_merged(tmp_path):
    loaded = loaded_model("qwen2")
    vector = random_vector(loaded, "tokenwise", points=("layers.1.down_proj",))
    Peft().export(vector, loaded, tmp_path / "out")
    merged = PeftModel.from_pretrained(copy.deepcopy(loaded.base), str(tmp_path / "out")).merge_and_unload()
    assert type(merged) is type(loaded.base)
    with torch.no_grad():
        assert (merged(IDS).logits - steered_logits(loaded, vector)).abs().max() <= 1e-4


@pytest.mark.parametrize("family", ["llama", "granite", "gpt2", "opt"])
@pytest.mark.parametrize(
    "points", [("layers.0.output",), ("layers.1.attn_output", "layers.1.mlp_output", "layers.2.output")]
)
def test_a_constant_is_the_bias_of_lora_b(tmp_path, family, points):
    loaded = loaded_model(family)
    vector = random_vector(loaded, points=points)
    Peft().export(vector, loaded, tmp_path / "out")
    got = peft_logits(loaded, tmp_path / "out", expect_warning=family in ("llama", "granite"))
    assert (got - steered_logits(loaded, vector)).abs().max() <= 1e-4


def test_bias_is_expressed_behind_a_norm_too(tmp_path):
    loaded = loaded_model("gemma2")
    vector = random_vector(loaded, "bias", points=("layers.1.down_proj",))
    Peft().export(vector, loaded, tmp_path / "out")
    assert (peft_logits(loaded, tmp_path / "out", True) - steered_logits(loaded, vector)).abs().max() <= 1e-4


REFUSED = {
    "a gate": ("llama", "gated", ("layers.1.output",), VectorError, "peft can't express 'gated'"),
    "a norm": ("gemma2", "static", ("layers.1.output",), ModelError, "stands between down_proj"),
    "experts": ("mixtral", "static", ("layers.1.output",), ModelError, "mixture of experts"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path, case):
    family, intervention, points, kind, reason = REFUSED[case]
    loaded = loaded_model(family)
    with pytest.raises(kind, match=reason) as error:
        Peft().export(random_vector(loaded, intervention, points), loaded, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
