"""Folded checkpoints: stock transformers, which knows nothing of steerkit, is the truth."""

from __future__ import annotations

import json

import pytest
import torch
from exporter_helpers import IDS, TOK, loaded_model, random_vector, steered_logits
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from steerkit.errors import ModelError, VectorError
from steerkit.exporters import Folded
from steerkit.models import load_model

FAMILIES = {
    "llama": {},
    "qwen2": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "tie_word_embeddings": True},
    "mistral": {"head_dim": 16},
    "granite": {"residual_multiplier": 0.3, "attention_multiplier": 0.4, "logits_scaling": 2.0},
    "gpt2": {},
    "gpt_neox": {},
    "opt": {},
}
POINTS = {
    "output": ("layers.0.output", "layers.2.output"),
    "inside": ("layers.0.attn_output", "layers.1.mlp_output", "layers.1.output", "layers.2.down_proj"),
}


def stock(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_stock_transformers_gives_the_steered_logits(tmp_path, family, points):
    loaded = loaded_model(family, **FAMILIES[family])
    vector = random_vector(loaded, points=POINTS[points])
    report = Folded().export(vector, loaded, tmp_path / "out")
    model = stock(tmp_path / "out")
    assert model.config.model_type == ("llama" if family in ("qwen2", "mistral") else family)
    expected = steered_logits(loaded, vector)
    with torch.no_grad():
        assert (model(IDS).logits - expected).abs().max() <= 1e-4
        # In cached decoding, too.
        steered = vector.steer(loaded.base)
        with steered.applied():
            greedy = loaded.base.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=8, do_sample=False)
        assert torch.equal(
            model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=8, do_sample=False), greedy
        )
    assert report.comparison.difference <= 1e-4
    assert report.path == tmp_path / "out"


@pytest.mark.parametrize("intervention", ["bias", "projected", "lowrank"])
def test_every_constant_intervention_folds(tmp_path, intervention):
    loaded = loaded_model("llama")
    site = "down_proj" if intervention == "bias" else "output"
    vector = random_vector(loaded, intervention, points=(f"layers.0.{site}", f"layers.2.{site}"))
    Folded().export(vector, loaded, tmp_path / "out")
    with torch.no_grad():
        assert (stock(tmp_path / "out")(IDS).logits - steered_logits(loaded, vector)).abs().max() <= 1e-4


def test_the_vector_lies_in_down_proj_and_the_other_new_biases_are_zero(tmp_path):
    loaded = loaded_model("qwen2")
    vector = random_vector(loaded, points=("layers.1.output",))
    Folded().export(vector, loaded, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["architectures"], config["mlp_bias"], config["attention_bias"]) == (["LlamaForCausalLM"], True, True)
    state, base = load_file(tmp_path / "out/model.safetensors"), loaded.base.state_dict()
    (tensors,) = vector.tensors.values()
    assert torch.equal(state["model.layers.1.mlp.down_proj.bias"], tensors["vector"])
    new = {name for name in state if name not in base} - {"model.layers.1.mlp.down_proj.bias"}
    assert {name.partition("layers.")[2][2:] for name in new} == {
        "mlp.gate_proj.bias",
        "mlp.up_proj.bias",
        "mlp.down_proj.bias",
        "self_attn.o_proj.bias",
    }
    assert not any(state[name].any() for name in new)
    for name, tensor in base.items():  # the q, k and v biases among them
        assert torch.equal(state[name], tensor), name


def saved(folder, family="llama", dtype=torch.float32, **overrides):
    """A checkpoint on disk, loaded in float32 as the command does."""
    loaded = loaded_model(family, vocab_size=len(TOK), **overrides)
    base = loaded.base.to(dtype)
    base.generation_config = GenerationConfig(temperature=0.6, do_sample=False, top_p=0.9, eos_token_id=[1, 5])
    base.config.save_pretrained(folder)
    base.generation_config.to_json_file(folder / "generation_config.json")
    base.generation_config = GenerationConfig()
    given = (folder / "generation_config.json").read_text()
    base.save_pretrained(folder)
    (folder / "generation_config.json").write_text(given)  # as hub checkpoints have it: save_pretrained would refuse
    TOK.save_pretrained(folder)
    return load_model(str(folder), dtype="float32")


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_tokenizer_chat_template_generation_config_and_dtype_are_kept(tmp_path, family):
    loaded = saved(tmp_path / "base", family, torch.bfloat16)
    vector = random_vector(loaded)
    report = Folded().export(vector, loaded, tmp_path / "out")
    state = load_file(tmp_path / "out/model.safetensors")
    assert {t.dtype for t in state.values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert (generation["temperature"], generation["top_p"], generation["eos_token_id"]) == (0.6, 0.9, [1, 5])
    before, after = AutoTokenizer.from_pretrained(tmp_path / "base"), AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "Tom has 12 apples,\n\nAnna's 3."
    assert before(text).input_ids == after(text).input_ids
    assert before.chat_template and before.chat_template == after.chat_template
    # Only the vector is rounded, and the report says by how much that moves the logits.
    assert report.comparison.difference <= 1e-4
    assert "Rounding the vector to bfloat16" in report.comparison.note
    with torch.no_grad():
        moved = (stock(tmp_path / "out")(IDS).logits - steered_logits(loaded, vector)).abs().max()
    assert 1e-4 < moved < 0.1


def test_a_16_bit_bias_of_the_base_s_own_is_rounded_once_with_the_vector(tmp_path):
    loaded = saved(tmp_path / "base", "gpt2", torch.bfloat16)
    report = Folded().export(random_vector(loaded), loaded, tmp_path / "out")
    assert report.comparison.difference <= 1e-4


def test_another_dtype_on_demand(tmp_path):
    loaded = loaded_model("llama")
    report = Folded("bfloat16").export(random_vector(loaded), loaded, tmp_path / "out")
    assert {t.dtype for t in load_file(tmp_path / "out/model.safetensors").values()} == {torch.bfloat16}
    assert "weights were rounded to bfloat16" in report.comparison.note
    with pytest.raises(ModelError, match="float8"):
        Folded("float8")


def test_a_long_window_is_no_window(tmp_path):
    loaded = loaded_model("mistral", sliding_window=64)  # the whole context
    Folded().export(random_vector(loaded), loaded, tmp_path / "out")


REFUSED_MODELS = {
    "a norm behind the map": ("gemma2", {}, ("layers.1.output",), "stands between down_proj and the residual stream"),
    "a norm behind attention": ("olmo2", {}, ("layers.1.attn_output",), "stands between o_proj and"),
    "no bias in the config": ("phi3", {}, ("layers.1.output",), "'phi3' checkpoints can't have"),
    "attention only": ("falcon", {}, ("layers.1.attn_output",), "attention_bias"),
    "a mixture of experts": ("mixtral", {}, ("layers.1.output",), "mixture of experts"),
    "mistral's window": ("mistral", {"sliding_window": 8}, ("layers.1.output",), "sliding window of 8"),
    "qwen2's window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        ("layers.1.output",),
        "sliding window of 8",
    ),
}


@pytest.mark.parametrize("case", REFUSED_MODELS)
def test_models_that_can_t_hold_it_are_refused(tmp_path, case):
    family, overrides, points, reason = REFUSED_MODELS[case]
    loaded = loaded_model(family, **overrides)
    with pytest.raises(ModelError, match=reason) as error:
        Folded().export(random_vector(loaded, points=points), loaded, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_quantised_base_is_refused(tmp_path):
    loaded = loaded_model("llama")
    loaded.base.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ModelError, match="quantised"):
        Folded().export(random_vector(loaded), loaded, tmp_path / "out")


@pytest.mark.parametrize(("intervention", "site"), [("gated", "output"), ("tokenwise", "down_proj")])
def test_vectors_that_are_not_constant_are_refused(tmp_path, intervention, site):
    loaded = loaded_model("llama")
    vector = random_vector(loaded, intervention, points=(f"layers.1.{site}",))
    with pytest.raises(VectorError, match=f"folded can't express '{intervention}'"):
        Folded().export(vector, loaded, tmp_path / "out")
    assert not list(tmp_path.iterdir())
