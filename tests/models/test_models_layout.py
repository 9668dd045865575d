from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from steerkit.errors import ModelError
from steerkit.models import layout as layouts
from steerkit.models.layout import FAMILIES, Layout, final_logits, find_layout, hidden_of, verify_layout, with_hidden
from steerkit.testing import FAMILIES as TINY
from steerkit.testing import tiny_model

# Families whose default config builds no model: what it lacks.
NEEDS = {
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
}


def on_meta(family):
    config = AutoConfig.for_model(family, **NEEDS.get(family, {}))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_table_row_is_right_and_is_what_discovery_finds(family):
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    model = on_meta(family)
    layout = find_layout(model)
    assert layout == FAMILIES[family] == layouts._discover(model)
    assert len(layout.block_list(model)) == model.config.get_text_config().num_hidden_layers
    assert model.get_submodule(layout.unembedding) is model.get_output_embeddings()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_unknown_family_is_discovered(family, monkeypatch):
    model = tiny_model(family)
    expected = find_layout(model)
    monkeypatch.setattr(layouts, "FAMILIES", {})
    assert find_layout(model) == expected


def test_undiscoverable_model_says_how_to_say_it(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(layouts, "FAMILIES", {})
    model.model.norm = nn.Identity()
    del model.model.norm
    with pytest.raises(ModelError, match=r"layout: \{blocks: .*ModuleLists here: model\.layers"):
        find_layout(model)


def test_override():
    model = tiny_model("gpt2")
    said = {"blocks": "transformer.h", "norm": "transformer.ln_f", "unembedding": "lm_head"}
    assert find_layout(model, said) == find_layout(model, Layout(**said)) == find_layout(model)


@pytest.mark.parametrize(
    "override, message",
    [
        ({"blocks": "transformer.h"}, "exactly blocks, norm and unembedding; got blocks"),
        (
            {"blocks": "transformer.x", "norm": "transformer.ln_f", "unembedding": "lm_head"},
            "'transformer.x', which GPT2",
        ),
        ({"blocks": "transformer.ln_f", "norm": "transformer.ln_f", "unembedding": "lm_head"}, "'transformer.ln_f'"),
    ],
)
def test_bad_override(override, message):
    with pytest.raises(ModelError, match=message):
        find_layout(tiny_model("gpt2"), override)


QUIRKS = {
    "gemma2": {"final_logit_softcapping": 0.5},
    "granite": {"logits_scaling": 7.0},
    "cohere": {"logit_scale": 0.3},
    "minicpm3": {"dim_model_base": 8, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
                 "v_head_dim": 8, "num_key_value_heads": 4, "head_dim": 8},
    "hyperclovax": {"logits_scaling": 3.0},
    "nanochat": {"final_logit_softcapping": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("family", [*TINY, *(f for f in QUIRKS if f not in TINY), "opt", "phi", "olmo2", "stablelm"])
@torch.no_grad()
def test_final_logits_equal_the_models(family):
    extra = {"ffn_dim": 64, "word_embed_proj_dim": 16} if family == "opt" else {}
    model = tiny_model(family, **{**extra, **QUIRKS.get(family, {})})
    ids = torch.randint(3, 97, (2, 5))
    expected = model(ids).logits
    got = final_logits(model, find_layout(model), model.base_model(ids).last_hidden_state)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    if family in QUIRKS:  # the rule must matter here
        raw = model.get_output_embeddings()(model.base_model(ids).last_hidden_state)
        assert (raw - expected).abs().max() > 0.01


def test_verify_layout_catches_a_scale_that_no_rule_knows(monkeypatch):
    model = tiny_model("granite", logits_scaling=7.0)
    layout = find_layout(model)
    verify_layout(model, layout)
    monkeypatch.setattr(layouts, "_LOGIT_SCALES", {})
    with pytest.raises(ModelError, match="do not give the model's logits"):
        verify_layout(model, layout)
    assert not any(m._forward_hooks for m in model.modules())


def test_hidden_of_and_with_hidden():
    hidden, new = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    assert hidden_of(hidden) is hidden and hidden_of((hidden, "cache")) is hidden
    assert with_hidden(hidden, new) is new and with_hidden((hidden, "cache"), new) == (new, "cache")
