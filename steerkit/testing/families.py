"""Settings of tiny random models, one row for each family that needs its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING

from steerkit.models.layout import FAMILIES

_LATENT = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
_MAMBA = {"mamba_chunk_size": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_n_heads": 4}
_ONE_GROUP = {"n_group": 1, "topk_group": 1}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_key_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_value_head_dim": 8,
}  # fmt: skip
_VISION = {
    "hidden_size": 16, "image_size": 28, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
    "patch_size": 14,
}  # fmt: skip
_OPTIONAL: Mapping[str, Any] = {
    "head_dim": 8,
    "intermediate_size": 64,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "shared_expert_intermediate_size": 32,
}
"""Given to the families whose config has such a setting."""
_OWN: Mapping[str, Mapping[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "deepseek_v2": {**_LATENT, **_ONE_GROUP, "first_k_dense_replace": 1},
    "deepseek_v3": {**_LATENT, **_ONE_GROUP, "first_k_dense_replace": 1},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "gemma4_text": {"global_head_dim": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 512},
    "glm4_moe": _ONE_GROUP,
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention", "mamba"], "shared_intermediate_size": 64},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "mamba_d_state": 8, "use_mamba_kernels": False},
    "lfm2": {"block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention", "conv"]},
    "minicpm3": {**_LATENT, "dim_model_base": 8, "head_dim": 8},
    "llama4_text": {"intermediate_size_mlp": 64},
    "mpt": {"d_model": 32, "expansion_ratio": 2, "max_seq_len": 64, "n_heads": 4, "n_layers": 3},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "qwen3_5_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "xglm": {"attention_heads": 4, "d_model": 32, "ffn_dim": 64, "num_layers": 3},
}  # fmt: skip

TINY_FAMILIES = tuple(
    name
    for name in sorted({*FAMILIES, "bitnet", "cwm", "jais2", "llama4_text", "qwen3_5_text"})
    if name in CONFIG_MAPPING  # an older transformers has fewer
)
"""What ``tiny_model`` can build: the table of layouts, and some families that are discovered."""


def tiny_settings(family: str, **overrides: Any) -> dict[str, Any]:
    """Config settings of a model of ``family`` with 3 blocks, width 32 and a vocabulary of 97.

    Args:
        overrides: of the language model's settings.
    """
    if family == "gemma3":  # a language model inside one that also sees
        return {"text_config": tiny_settings("gemma3_text", **overrides), "vision_config": _VISION}
    shape: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "tie_word_embeddings": False,
    }
    known = vars(CONFIG_MAPPING[family]())
    optional = {name: value for name, value in _OPTIONAL.items() if name in known}
    return {**shape, **optional, **_OWN.get(family, {}), **overrides}
