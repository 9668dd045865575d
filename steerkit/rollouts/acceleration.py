"""What makes passes faster without changing what they compute: packed weights, grouped attention, fewer passes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from steerkit.rollouts.approximate import coarse
from steerkit.rollouts.fused import fused

if TYPE_CHECKING:
    from steerkit.models import SteeredModel

_GROUPED = "steerkit_grouped"
_Module = TypeVar("_Module", bound=nn.Module)


@contextmanager
def accelerated(
    model: SteeredModel, pack: str = "auto", precision: str = "exact", joined: Collection[nn.Module] = ()
) -> Iterator[None]:
    """Inside the block, forward passes of ``model.base`` without gradients run faster.

    Args:
        pack: ``never``, or ``auto``: where it pays.
        joined: maps that run as parts of one product while a token is decoded (``direct``), packed there.
        precision: ``exact``, or that of the products with the weights (``approximate.PRECISIONS``).
    """
    with ExitStack() as stack:
        stack.enter_context(_grouped_attention(model.base))
        stack.enter_context(fused(model.base))
        if precision != "exact":
            stack.enter_context(replaced(frozen_linears(model.base), lambda linear: coarse(linear, precision)))
            yield
            return
        # Full fine-tuning changes the weights every step: packing them again would cost more than it gives.
        if pack == "auto" and keeps_weights(model) and model.device.type == "cpu" and model.dtype == torch.float32:
            stack.enter_context(_packed_linears(model.base, joined))
            stack.enter_context(frozen_products(*joined))  # the prompts' passes still run them one by one
        yield


def keeps_weights(model: SteeredModel) -> bool:
    """Whether the base's own weights are the ones that run: always, but for full fine-tuning."""
    return model.adapter is None or bool(getattr(model.adapter, "keeps_weights", False))


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


WORTH_PACKING = {"AVX512": 0}.get(torch.backends.cpu.get_cpu_capability(), 200_000)
"""Numbers in a weight, above which packed products win. Measured: with AVX-512 they win at every size (256 x 128 -> 64:
153 against 103 GFLOP/s a thread), with AVX2 128 x 512 loses at every row count and 576 x 576 wins.
"""

ONEDNN_UPDATE = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether forward and backward passes of an update go through oneDNN (``accelerated_update``)."""

_Key = tuple[bool, tuple[int, ...]]
_State = tuple[tuple[int, int], ...]
_copies: weakref.WeakKeyDictionary[nn.Module, dict[_Key, tuple[_State, Tensor]]] = weakref.WeakKeyDictionary()
"""The first of the maps -> (packed, which maps) -> (state of each weight, copy)."""


def frozen_linears(*modules: nn.Module) -> list[nn.Linear]:
    """The linear maps that oneDNN can take over: those whose weights are here, in fp32, and are not trained."""
    return [
        m
        for module in modules
        for m in module.modules()
        # A weight that is spread over processes is not here.
        if type(m) is nn.Linear and m.weight.dtype == torch.float32 and not hasattr(m.weight, "device_mesh")
    ]


def is_spread(base: nn.Module) -> bool:
    """Whether weights of the base are spread over processes (FSDP2), and gathered block by block."""
    return any(hasattr(parameter, "device_mesh") for parameter in base.parameters())


@contextmanager
def replaced(modules: Sequence[_Module], forward: Callable[[_Module], Any]) -> Iterator[None]:
    # An outer block may have replaced some: what it put there is put back.
    before = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.forward = forward(module)
    try:
        yield
    finally:
        for module, old in zip(modules, before, strict=True):
            if old is None:
                del module.forward
            else:
                module.forward = old


def _packed_linears(base: nn.Module, but: Collection[nn.Module] = ()) -> AbstractContextManager[None]:
    """oneDNN's own weight layout: at 8 to 64 rows its products take about half the time.

    Args:
        but: maps that are left as they are.
    """
    if not torch.backends.mkldnn.is_available():
        return nullcontext()
    linears = [
        linear
        for linear in frozen_linears(base)
        if linear.weight.numel() >= WORTH_PACKING and not linear.weight.requires_grad and linear not in but
    ]
    return replaced(linears, lambda linear: _PackedForward(_weight([linear], True), linear.bias))


def joined(linears: Sequence[nn.Linear], pack: bool) -> Callable[[Tensor], Tensor]:
    """One product in the place of several of the same input: [..., D] -> [..., their widths, one after the other].

    Args:
        pack: whether the weights may be copied. Without it, or where a copy would be large and can't be packed, it is
            a product each.
    """
    size = sum(linear.weight.numel() for linear in linears)
    packs = (
        size >= WORTH_PACKING and torch.backends.mkldnn.is_available() and len(frozen_linears(*linears)) == len(linears)
    )
    alike = len({linear.bias is None for linear in linears}) == 1
    if not pack or not alike or (size >= WORTH_PACKING and not packs):
        return lambda hidden: torch.cat([linear(hidden) for linear in linears], dim=-1)
    bias = None if linears[0].bias is None else torch.cat([linear.bias.detach() for linear in linears])
    weight = _weight(linears, packs)
    return _PackedForward(weight, bias) if packs else lambda hidden: nn.functional.linear(hidden, weight, bias)


def _weight(linears: Sequence[nn.Linear], pack: bool) -> Tensor:
    """Their weights as one, in oneDNN's layout or not; kept until PyTorch counts a change of one of them."""
    weights = [linear.weight.detach() for linear in linears]
    state = tuple((weight.data_ptr(), linear.weight._version) for weight, linear in zip(weights, linears, strict=True))
    copies, key = _copies.setdefault(linears[0], {}), (pack, tuple(map(id, linears)))
    if key not in copies or copies[key][0] != state:
        whole = torch.cat(weights) if len(weights) > 1 else weights[0]
        if pack:
            whole = torch.ops.mkldnn._reorder_linear_weight(whole, None)
        copies[key] = state, whole
    return copies[key][1]


class _PackedForward:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, hidden: Tensor) -> Tensor:
        return _product(hidden, self.weight, self.bias)


@contextmanager
def accelerated_update(model: SteeredModel) -> Iterator[None]:
    """Inside the block, forward and backward passes of ``model.base`` run their norms and rotary embeddings in fewer
    passes over memory (``fused``), and their frozen linear maps through oneDNN where it is ahead.

    That is on a CPU with AVX-512 in fp32 alone. There PyTorch's products go through MKL, which on AMD machines reaches
    less than half of what oneDNN does (measured: 105 against 245 GFLOP/s a thread at 616 x 576 -> 1536). With AVX2 MKL
    is ahead at every size (256 x 128 -> 128: 65 against 53; 1000 x 576 -> 1536: 75 against 64).
    """
    with fused(model.base), frozen_products(model.base):
        yield


def frozen_products(*modules: nn.Module) -> AbstractContextManager[None]:
    """``accelerated_update`` of these modules: inside the block their frozen linear maps run through oneDNN."""
    linears = frozen_linears(*modules)
    on_cpu = all(linear.weight.device.type == "cpu" for linear in linears)
    if not ONEDNN_UPDATE or not on_cpu or not torch.backends.mkldnn.is_available():
        return nullcontext()
    return replaced(linears, _FrozenForward)


_FEW_ROWS = 16
"""Below this many rows oneDNN's reordering of the weight costs more than its product saves."""


class _FrozenForward:
    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear

    def __call__(self, hidden: Tensor) -> Tensor:
        weight, bias = self.linear.weight, self.linear.bias
        # Full fine-tuning puts trained weights in the place of frozen ones while its scope is open.
        few = hidden.numel() < _FEW_ROWS * hidden.shape[-1]
        if few or weight.requires_grad or hidden.dtype != torch.float32:
            return nn.functional.linear(hidden, weight, bias)
        out: Tensor = _FrozenLinear.apply(hidden, weight, bias)
        return out


class _FrozenLinear(torch.autograd.Function):
    """x W^T + b, with a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _product(hidden, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _product(grad, ctx.weight.t(), None), None, None


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
    return out
