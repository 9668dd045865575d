"""Where a forward pass can be read or edited: hook points, and more of them than those that a vector can stand at.

=============  ======================  ===============================================================
site           shape                   what it is
=============  ======================  ===============================================================
input          [B, T, D]               the residual stream that enters the block
attn_input     [B, T, D]               what the attention module is given (the normed stream)
q, k, v        [B, T, heads x width]   its projections, before rotation (k and v: the key-value heads)
heads          [B, T, heads x width]   the heads' results, side by side: the input of its output projection
attn_pattern   [B, heads, T, T]        attention weights, rows: queries (read only)
attn_output    [B, T, D]               what attention adds to the stream
mlp_input      [B, T, D]               what the MLP module is given (the normed stream)
down_input     [B, T, d_inner]         the input of the MLP's last linear map
down_proj      [B, T, D]               its output, before a post-norm where there is one
mlp_output     [B, T, D]               what the MLP adds to the stream
output         [B, T, D]               the residual stream that leaves the block
=============  ======================  ===============================================================

``attn_output`` and ``mlp_output`` are in the units of the stream, also in families that multiply a module's output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from steerkit.errors import ModelError, SteerkitError
from steerkit.hookpoints import SITES, HookPoint
from steerkit.models.layout import Layout, hidden_of, text_config, with_hidden
from steerkit.models.sites import ATTENTION, MLP, down_projection, find_site, first_child
from steerkit.registry import did_you_mean

READ_SITES = (
    "input", "attn_input", "q", "k", "v", "heads", "attn_pattern", "attn_output", "mlp_input", "down_input",
    "down_proj", "mlp_output", "output",
)  # fmt: skip

_FUSED = ("qkv_proj", "c_attn", "Wqkv", "att_proj")
"""q, then k, then v, side by side. Families that interleave them by head (gpt_neox, bloom, falcon) are refused."""
_OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo")


@dataclass(frozen=True)
class Place:
    """One site of one block of a given model."""

    point: HookPoint
    module: nn.Module
    side: str
    """``input`` or ``output`` of the module."""
    gain: float = 1.0
    """The module puts out ``gain`` times what is added to the stream."""
    columns: slice | None = None
    """Its part of a fused projection's output."""

    def read(self, value: Any, length: int) -> Tensor:
        """The site's tensor, from the module's input or output.

        Args:
            length: T: some modules run on [B * T, D].
        """
        if self.point.site == "attn_pattern":
            if not isinstance(value, tuple) or len(value) < 2 or not isinstance(value[1], Tensor):
                raise ModelError(f"{self.point}: {type(self.module).__name__} gives no attention weights back.")
            pattern: Tensor = value[1]
            return pattern.detach().clone()
        found = hidden_of(value)
        found = found if found.dim() == 3 else found.reshape(-1, length, found.shape[-1])
        found = found if self.columns is None else found[..., self.columns]
        # Cloned: falcon adds to its MLP's output in place.
        return found.detach().clone() if self.gain == 1.0 else found.detach() / self.gain

    def write(self, value: Any, tensor: Tensor) -> Any:
        """The module's input or output with the site's tensor in it."""
        whole = hidden_of(value)
        tensor = (tensor if self.gain == 1.0 else tensor * self.gain).to(whole.dtype)
        if self.columns is not None:
            changed = whole.clone().reshape(*tensor.shape[:2], -1)
            changed[..., self.columns] = tensor
            tensor = changed
        return with_hidden(value, tensor.reshape(whole.shape))


def find_place(model: PreTrainedModel, layout: Layout, point: HookPoint) -> Place:
    """Where ``point`` is in ``model``.

    Raises:
        SteerkitError: for an unknown site, or a layer outside the model.
        ModelError: if the family has no such module.
    """
    if point.site not in READ_SITES:
        hint = did_you_mean(point.site, READ_SITES)
        raise SteerkitError(f"Unknown site {point.site!r}.{hint} Sites: {', '.join(READ_SITES)}.")
    layers = len(layout.block_list(model))
    if not 0 <= point.layer < layers:
        raise SteerkitError(f"{point} is outside the model: it has layers 0 to {layers - 1}.")
    if point.site == "input":
        return Place(point, layout.block_list(model)[point.layer], "input")
    if point.site in SITES:
        site = find_site(model, layout, point)
        return Place(point, site.module, "output", site.gain)
    if point.site == "down_input":
        return Place(point, down_projection(model, layout, point.layer), "input")
    if point.site == "mlp_input":
        return Place(point, _inner(model, layout, point.layer, "mlp"), "input")
    attention = _inner(model, layout, point.layer, "attention")
    if point.site == "attn_input":
        return Place(point, attention, "input")
    if point.site == "attn_pattern":
        return Place(point, attention, "output")
    if point.site == "heads":
        return Place(point, _child(point, attention, _OUT), "input")
    return _projection(model, point, attention)


def head_counts(model: PreTrainedModel) -> tuple[int, int, int]:
    """(query heads, key-value heads, width of a head)."""
    config = text_config(model)
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, groups, int(width)


def _inner(model: PreTrainedModel, layout: Layout, layer: int, what: str) -> nn.Module:
    """The attention or MLP module itself, not the norm behind it that a site's hook may stand at."""
    block = layout.block_list(model)[layer]
    found = first_child(block, ATTENTION if what == "attention" else MLP)
    if found is None:
        children = ", ".join(name for name, _ in block.named_children())
        raise ModelError(f"layers.{layer}: no {what} module in {type(block).__name__} (it has {children}).")
    return found


def _child(point: HookPoint, parent: nn.Module, names: tuple[str, ...]) -> nn.Module:
    for name in names:
        if isinstance(child := getattr(parent, name, None), nn.Module):
            return child
    inside = ", ".join(name for name, _ in parent.named_children())
    raise ModelError(f"{point}: {type(parent).__name__} has none of {', '.join(names)} (it has {inside}).")


def _projection(model: PreTrainedModel, point: HookPoint, attention: nn.Module) -> Place:
    if isinstance(single := getattr(attention, f"{point.site}_proj", None), nn.Module):
        return Place(point, single, "output")
    fused = _child(point, attention, (f"{point.site}_proj", *_FUSED))
    heads, groups, width = head_counts(model)
    sizes = {"q": heads * width, "k": groups * width, "v": groups * width}
    start = {"q": 0, "k": sizes["q"], "v": sizes["q"] + sizes["k"]}[point.site]
    return Place(point, fused, "output", columns=slice(start, start + sizes[point.site]))
