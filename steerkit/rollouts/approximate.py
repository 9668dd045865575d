"""Products with rounded weights, for rollouts that may be approximate: faster, and of another policy.

What is sampled is then no longer the policy that is trained: the update has to weigh it (``training.step``).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from steerkit.errors import SteerkitError

PRECISIONS = ("exact", "bfloat16", "int8")

_kept: weakref.WeakKeyDictionary[nn.Module, tuple[int, int, str, Callable[[Tensor], Tensor]]] = (
    weakref.WeakKeyDictionary()
)


def coarse(linear: nn.Linear, precision: str) -> Callable[[Tensor], Tensor]:
    """The forward pass of ``linear`` with weights in ``precision``; made once, and again when the weights change."""
    state = (linear.weight.data_ptr(), linear.weight._version, precision)
    found = _kept.get(linear)
    if found is None or found[:3] != state:
        product: Callable[[Tensor], Tensor] = _Bfloat16(linear) if precision == "bfloat16" else _Int8(linear)
        _kept[linear] = (*state, product)
        return product
    return found[3]


def check_precision(precision: str) -> None:
    """
    Raises:
        SteerkitError: for one that there is not.
    """
    if precision not in PRECISIONS:
        raise SteerkitError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")


class _Bfloat16:
    """Weights and inputs rounded to bfloat16, sums in fp32."""

    def __init__(self, linear: nn.Linear) -> None:
        weight = linear.weight.detach().bfloat16()
        self.bias = None if linear.bias is None else linear.bias.detach().bfloat16()
        self.packed = (  # without AVX-512 oneDNN refuses bfloat16, and PyTorch's own product is taken
            weight.device.type == "cpu"
            and torch.backends.mkldnn.is_available()
            and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.packed else weight

    def __call__(self, hidden: Tensor) -> Tensor:
        narrow = hidden.bfloat16()
        if self.packed:
            out = torch.ops.mkldnn._linear_pointwise(narrow, self.weight, self.bias, "none", [], "")
        else:
            out = nn.functional.linear(narrow, self.weight, self.bias)
        return out.to(hidden.dtype)


class _Int8:
    """Weights in 8 bits with a scale for each output, inputs in 8 bits with one scale for the batch.

    Without VNNI instructions weights have 7 bits: there oneDNN adds two products in 16 bits, which 255 * 127 * 2 would
    overflow (oneDNN's "Nuances of int8 computations").
    """

    def __init__(self, linear: nn.Linear) -> None:
        weight = linear.weight.detach().float()
        if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
            raise SteerkitError("precision int8 runs on a CPU with oneDNN alone: take bfloat16.")
        largest = 127 if torch.cpu._is_vnni_supported() else 63
        self.scale = (weight.abs().amax(dim=1) / largest).clamp(min=1e-12)
        whole = (weight / self.scale[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(whole, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = None if linear.bias is None else linear.bias.detach().float()

    def __call__(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1]).float()
        step = max(float(flat.abs().amax()) / 127, 1e-12)
        narrow = (flat / step).round_().add_(128).to(torch.uint8)
        out = torch.ops.onednn.qlinear_pointwise(
            narrow, step, 128, self.weight, self.scale, self.zeros, self.bias, 1.0, 0, torch.float32, "none", [], ""
        )
        return out.reshape(*hidden.shape[:-1], -1).to(hidden.dtype)
