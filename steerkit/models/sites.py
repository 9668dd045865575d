"""The modules behind the hook sites inside a block, and a probe that they are what they are taken for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from steerkit.errors import ModelError
from steerkit.hookpoints import HookPoint
from steerkit.models.layout import Layout, hidden_of, text_config

ATTENTION = ("self_attn", "self_attention", "attn", "attention", "linear_attn", "mamba", "conv")
"""The last three mix tokens in the blocks of hybrid families that have no attention."""
MLP = ("mlp", "feed_forward", "block_sparse_moe", "moe", "ffn", "fc2")  # OPT's block has no MLP module
_DOWN = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "c_fc_out")
_POST_NORMS = {
    # A norm between a module and the stream: what is added to the stream is the norm's output.
    "attn_output": {
        "post_feedforward_layernorm": "post_attention_layernorm",
        "post_mlp_layernorm": "post_self_attn_layernorm",
        "post_norm2": "post_norm1",
    },
    "mlp_output": {
        "post_feedforward_layernorm": "post_feedforward_layernorm",
        "post_mlp_layernorm": "post_mlp_layernorm",
        "post_norm2": "post_norm2",
    },
}


@dataclass(frozen=True, slots=True)
class Site:
    """A hook point on a given model."""

    point: HookPoint
    module: nn.Module
    """Its forward hook adds the change."""
    gain: float = 1.0
    """1 / m in families whose block adds m times the module's output (granite's residual_multiplier, minicpm3's
    residual_scale)."""


def find_site(model: PreTrainedModel, layout: Layout, point: HookPoint) -> Site:
    """The module whose output the hook point changes.

    Raises:
        ModelError: if the block has no such module.
    """
    block = layout.block_list(model)[point.layer]
    if point.site == "output":
        return Site(point, block)
    if point.site == "down_proj":
        return Site(point, down_projection(model, layout, point.layer))
    names: tuple[str, ...] = ATTENTION if point.site == "attn_output" else MLP
    for marker, norm in _POST_NORMS[point.site].items():
        if hasattr(block, marker) and hasattr(block, norm):
            names = (norm,)
            break
    module = first_child(block, names)
    if module is None:
        children = ", ".join(name for name, _ in block.named_children())
        raise ModelError(
            f"{point}: {type(block).__name__} has none of {', '.join(names)} (it has {children}): use site 'output'."
        )
    multiplier = getattr(text_config(model), "residual_multiplier", None) or getattr(block, "residual_scale", None)
    return Site(point, module, 1.0 / multiplier if isinstance(multiplier, (int, float)) else 1.0)


def down_projection(model: PreTrainedModel, layout: Layout, layer: int) -> nn.Module:
    """The last linear map of a dense MLP; its weight is [D, d_inner] (GPT-2's Conv1D: [d_inner, D]).

    Raises:
        ModelError: for a mixture of experts, or names that are unknown here.
    """
    block = layout.block_list(model)[layer]
    mlp = first_child(block, MLP)
    found = mlp if mlp is None or not list(mlp.children()) else first_child(mlp, _DOWN)
    width = text_config(model).hidden_size
    if found is None or getattr(found, "weight", None) is None or width not in _shape(found):
        inside = "nothing" if mlp is None else ", ".join(name for name, _ in mlp.named_children()) or type(mlp).__name__
        raise ModelError(
            f"layers.{layer}.down_proj: no single down-projection in {type(block).__name__} (its MLP holds {inside}): "
            "a mixture of experts has many; use an intervention at site 'output'."
        )
    return found


def inner_width(model: PreTrainedModel, layout: Layout, layer: int) -> int:
    """d_inner: the width of the down-projection's input."""
    return _shape(down_projection(model, layout, layer))[1]


def _shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear map."""
    if hasattr(module, "in_features"):
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
    rows, columns = module.weight.shape  # type: ignore[misc]
    return int(columns), int(rows)


def first_child(parent: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """The first of these children that ``parent`` has."""
    found = next((getattr(parent, name) for name in names if isinstance(getattr(parent, name, None), nn.Module)), None)
    if found is None:
        return None
    # gpt_neo keeps its attention one level down: attn.attention.
    inner = [child for name, child in found.named_children() if name == "attention"]
    return inner[0] if inner and len(list(found.children())) == 1 else found


@torch.no_grad()
def verify_sites(model: PreTrainedModel, layout: Layout, layers: list[int]) -> None:
    """Probe three tokens: block input + attention + MLP must be the block's output.

    Else a module is not what it is taken for (bloom's MLP module adds the stream itself), and a change there would
    not be the one that is asked for.

    Raises:
        ModelError: naming the block.
    """
    parts: dict[int, list[Site]] = {}
    seen: dict[int, dict[str, Tensor]] = {layer: {} for layer in layers}
    for layer in layers:
        try:
            parts[layer] = [find_site(model, layout, HookPoint(layer, name)) for name in ("attn_output", "mlp_output")]
        except ModelError as error:
            raise _not_additive(model, layer, str(error).rstrip(".")) from error
    handles = []
    try:
        for layer, sites in parts.items():
            block = layout.block_list(model)[layer]
            handles += [site.module.register_forward_hook(_keep(seen[layer], site.point.site)) for site in sites]
            handles.append(block.register_forward_pre_hook(_keep_input(seen[layer]), with_kwargs=True))
            handles.append(block.register_forward_hook(_keep(seen[layer], "output")))
        model(input_ids=torch.arange(3, device=model.device)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    tolerance = 1e-3 if model.dtype == torch.float32 else 3e-2
    for layer, sites in parts.items():
        found = seen[layer]
        sizes = [found[site.point.site].float() / site.gain for site in sites if site.point.site in found]
        output = found["output"].float()
        total = found["input"].float() + sum(size.reshape(output.shape) for size in sizes)
        scale = max(float(output.abs().max()), 1.0)
        if len(sizes) < 2 or not float((total - output).abs().max()) <= tolerance * scale:
            raise _not_additive(model, layer, "attention and MLP outputs do not add up to the block's output")


def _not_additive(model: PreTrainedModel, layer: int, reason: str) -> ModelError:
    return ModelError(
        f"layers.{layer}: in a {model.config.model_type!r} block, sites 'attn_output' and 'mlp_output' can't be used, "
        f"use site 'output': {reason}."
    )


def block_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """[B, T, D] the residual stream that enters a block, from its forward arguments."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def _keep(seen: dict[str, Tensor], name: str) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        seen[name] = hidden_of(output).detach().clone()  # falcon adds to its MLP's output in place

    return hook


def _keep_input(seen: dict[str, Tensor]) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["input"] = block_input(args, kwargs).detach().clone()

    return hook
