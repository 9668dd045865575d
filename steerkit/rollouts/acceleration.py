"""What makes a decoding step faster without changing what it computes: packed weights, grouped attention."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from steerkit.models import SteeredModel

_GROUPED = "steerkit_grouped"


@contextmanager
def accelerated(model: SteeredModel, pack: str = "auto") -> Iterator[None]:
    """Inside the block, forward passes of ``model.base`` without gradients run faster."""
    with ExitStack() as stack:
        stack.enter_context(_grouped_attention(model.base))
        # A baseline's weights change every step, or are wrapped: packing them again would cost more than it gives.
        if pack == "auto" and model.adapter is None and model.device.type == "cpu" and model.dtype == torch.float32:
            stack.enter_context(_packed_linears(model.base))
        yield


@contextmanager
def _grouped_attention(base: Any) -> Iterator[None]:
    """For one query a row, heads that share keys are queries of one attention: the keys need no copy for each of
    them.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config = base.config.get_text_config()
    # Falcon compares the name itself and would fall back to another attention, with a mask that is not its own.
    if config._attn_implementation != "sdpa" or not base._supports_attention_backend:
        yield
        return
    AttentionInterface.register(_GROUPED, grouped_attention)
    AttentionMaskInterface.register(_GROUPED, sdpa_mask)
    config._attn_implementation = _GROUPED
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' attention function: query [B, H, T, d], key and value [B, H / g, S, d] -> [B, T, H, d]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    groups = query.shape[1] // key.shape[1]
    if query.shape[2] != 1 or groups == 1 or (attention_mask is not None and attention_mask.shape[1] != 1):
        output: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output
    rows, heads, _, width = query.shape
    folded = query.view(rows, heads // groups, groups, width)
    out = nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling")
    )
    return out.reshape(rows, 1, heads, out.shape[-1]), None


_WORTH_PACKING = 200_000
"""Numbers in a weight, above which packed products win (measured: 128 x 512 loses at every row count, 576 x 576
wins).
"""

_packed: weakref.WeakKeyDictionary[nn.Module, tuple[int, int, Tensor]] = weakref.WeakKeyDictionary()


@contextmanager
def _packed_linears(base: nn.Module) -> Iterator[None]:
    """oneDNN's own weight layout: at 8 to 64 rows its products take about half the time."""
    if not torch.backends.mkldnn.is_available():
        yield
        return
    linears = [
        m
        for m in base.modules()
        # A weight that is spread over processes is not here to be packed.
        if type(m) is nn.Linear and m.weight.numel() >= _WORTH_PACKING and not hasattr(m.weight, "device_mesh")
    ]
    for linear in linears:
        linear.forward = _PackedForward(_pack(linear), linear.bias)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for linear in linears:
            del linear.forward


def _pack(linear: nn.Linear) -> Tensor:
    state = (linear.weight.data_ptr(), linear.weight._version)
    found = _packed.get(linear)
    if found is None or found[:2] != state:
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        found = (*state, packed)
        _packed[linear] = found
    return found[2]


class _PackedForward:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, hidden: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, self.weight, self.bias, "none", [], "")
        return out
