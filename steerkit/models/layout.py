"""Where each model family keeps its blocks, final norm and unembedding, and how it turns hidden states into logits.

A family is a row of ``FAMILIES``; one that is not there is discovered; one that can't be discovered is named in config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from steerkit.errors import ModelError


@dataclass(frozen=True, slots=True)
class Layout:
    """Dotted module paths, relative to the model with the language-model head."""

    blocks: str
    """The ModuleList of transformer blocks, in forward order."""
    norm: str
    """The final norm, between the last block and the unembedding."""
    unembedding: str
    """The linear map from the final-normed stream to the vocabulary."""

    def block_list(self, model: nn.Module) -> nn.ModuleList:
        return cast(nn.ModuleList, model.get_submodule(self.blocks))


_MODEL = Layout("model.layers", "model.norm", "lm_head")
_MODEL_FINAL = Layout("model.layers", "model.final_layernorm", "lm_head")
_TRANSFORMER = Layout("transformer.h", "transformer.ln_f", "lm_head")
_ROWS: tuple[tuple[Layout, str], ...] = (
    (
        _MODEL,
        "apertus arcee cohere cohere2 deepseek_v2 deepseek_v3 ernie4_5 exaone4 gemma gemma2 gemma3_text gemma4_text "
        "glm glm4 glm4_moe gpt_oss granite granitemoe granitemoehybrid granitemoeshared helium hunyuan_v1_dense "
        "hyperclovax internlm3 llama minicpm3 ministral ministral3 mistral mixtral nanochat nemotron olmo olmo2 olmo3 "
        "olmoe phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next seed_oss smollm3 stablelm starcoder2 vaultgemma",
    ),
    (_MODEL_FINAL, "bamba falcon_h1 jamba persimmon phi"),
    (_TRANSFORMER, "bloom codegen falcon gpt2 gpt_bigcode gpt_neo gptj"),
    (Layout("gpt_neox.layers", "gpt_neox.final_layer_norm", "lm_head"), "gpt_neox"),
    (Layout("model.decoder.layers", "model.decoder.final_layer_norm", "lm_head"), "opt"),
    (Layout("transformer.blocks", "transformer.norm_f", "lm_head"), "mpt"),
    (Layout("biogpt.layers", "biogpt.layer_norm", "output_projection"), "biogpt"),
    (Layout("model.layers", "model.layer_norm", "lm_head"), "xglm"),
    (Layout("model.layers", "model.embedding_norm", "lm_head"), "lfm2"),
    (Layout("model.language_model.layers", "model.language_model.norm", "lm_head"), "gemma3"),
)
FAMILIES: Mapping[str, Layout] = {name: layout for layout, names in _ROWS for name in names.split()}
"""``config.model_type`` -> layout."""

_LOGIT_SCALES: Mapping[str, Callable[[Any], float]] = {
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe"), lambda config: config.logit_scale),
    **dict.fromkeys(
        ("granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "minicpm3"),
        lambda config: 1.0 / config.logits_scaling,
    ),
    "hyperclovax": lambda config: config.logits_scaling,
    "falcon_h1": lambda config: config.lm_head_multiplier,
}
"""Families that multiply their logits by a constant of the config (source: their modeling files in transformers)."""


def find_layout(model: PreTrainedModel, override: Layout | Mapping[str, str] | None = None) -> Layout:
    """The layout of ``model``: what config says, else the family's row, else what discovery finds.

    Raises:
        ModelError: if the override names a module that is not there, or nothing can be discovered.
    """
    family = model.config.model_type
    if override is not None:
        layout = override if isinstance(override, Layout) else _read_override(override)
        missing = _missing(model, layout)
        if missing:
            raise ModelError(f"layout names {missing!r}, which {type(model).__name__} lacks. {_how_to_say_it(model)}")
        return layout
    row = FAMILIES.get(family)
    # A row can be wrong for one checkpoint of its family (OPT-350m has no final norm): then discovery decides.
    found = row if row is not None and not _missing(model, row) else _discover(model)
    if found is None:
        raise ModelError(f"Can't find the blocks, final norm and unembedding of a {family!r}. {_how_to_say_it(model)}")
    return found


def text_config(model: PreTrainedModel) -> Any:
    """The language model's config, also inside a multimodal one."""
    return model.config.get_text_config()


def hidden_of(output: Any) -> Tensor:
    """[B, T, D] from a block's output: a tensor in transformers 5, a tuple in older families."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """A block's output with its hidden state [B, T, D] replaced; the inverse of ``hidden_of``."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def final_logits(model: PreTrainedModel, layout: Layout, hidden: Tensor) -> Tensor:
    """Logits of final-normed hidden states, equal to ``model(...).logits``.

    Args:
        hidden: [..., D] after the final norm (``last_hidden_state``).

    Returns:
        [..., V] in the base's dtype.
    """
    unembedding = model.get_submodule(layout.unembedding)
    weight = getattr(unembedding, "weight", None)
    if isinstance(weight, Tensor) and weight.is_floating_point():
        hidden = hidden.to(weight.dtype)
    logits = unembedding(hidden)
    config = text_config(model)
    scale = _LOGIT_SCALES.get(config.model_type)
    if scale is not None:
        logits = logits * scale(config)
    # recurrent_gemma spells it otherwise than gemma 2 and its followers.
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


@torch.no_grad()
def verify_layout(model: PreTrainedModel, layout: Layout) -> None:
    """Probe three tokens: last block -> norm -> unembedding must give the model's own logits.

    For families that are not in the table: a constant that scales their logits would else pass unnoticed.

    Raises:
        ModelError: if the paths, or the rule from hidden states to logits, do not fit the model.
    """
    seen: list[Tensor] = []
    handle = layout.block_list(model)[-1].register_forward_hook(lambda _m, _a, out: seen.append(hidden_of(out)))
    try:
        expected = model(input_ids=torch.arange(3, device=model.device)[None], use_cache=False).logits
    finally:
        handle.remove()
    got = final_logits(model, layout, model.get_submodule(layout.norm)(seen[-1])) if seen else None
    if got is None or got.shape != expected.shape or not torch.allclose(got, expected, rtol=1e-3, atol=1e-3):
        raise ModelError(
            f"{type(model).__name__}: norm and unembedding of the last block's output do not give the model's logits "
            f"(layout {layout}). {_how_to_say_it(model)} If the paths are right, its logits need a rule in layout.py."
        )


def _read_override(override: Mapping[str, str]) -> Layout:
    names = set(Layout.__dataclass_fields__)
    if set(override) != names:
        got = ", ".join(sorted(override)) or "none"
        raise ModelError(f"layout needs exactly blocks, norm and unembedding; got {got}.")
    return Layout(**override)


def _missing(model: nn.Module, layout: Layout) -> str | None:
    """The first path that does not exist, or a ``blocks`` that is not a ModuleList."""
    for path in (layout.blocks, layout.norm, layout.unembedding):
        try:
            module = model.get_submodule(path)
        except AttributeError:
            return path
        if path == layout.blocks and not isinstance(module, nn.ModuleList):
            return path
    return None


def _discover(model: PreTrainedModel) -> Layout | None:
    """The heaviest ModuleList of num_hidden_layers items, its sibling norm of width D, the output embeddings."""
    config = text_config(model)
    depth, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    lists = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    head = model.get_output_embeddings()
    if not lists or head is None:
        return None
    blocks, _ = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    parent = blocks.rpartition(".")[0]
    norms = [
        name
        for name, child in model.get_submodule(parent).named_children()
        if any(mark in f"{name} {type(child).__name__}".lower() for mark in ("norm", "ln_f"))
        and all(p.shape == (width,) for p in child.parameters())
    ]
    if not norms:
        return None
    unembedding = next(p for p, m in model.named_modules(remove_duplicate=False) if m is head)
    # The last registered: an embedding norm, where there is one, comes before the blocks.
    return Layout(blocks, f"{parent}.{norms[-1]}".lstrip("."), unembedding)


def _how_to_say_it(model: nn.Module) -> str:
    lists = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return (
        "Say it in config, e.g. layout: {blocks: model.layers, norm: model.norm, unembedding: lm_head}; "
        f"ModuleLists here: {', '.join(lists[:5]) or 'none'}."
    )
