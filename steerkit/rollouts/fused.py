"""Norms and rotary embeddings in fewer passes over memory than the models' own code makes, on a CPU in fp32.

What a family's module computes is found out by a probe; what differs stays as it is.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_ROTARY = "apply_rotary_pos_emb"
"""What transformers' modelling files call it."""
_FOUND: weakref.WeakKeyDictionary[nn.Module, tuple[list[tuple[nn.Module, bool]], list[ModuleType]]] = (
    weakref.WeakKeyDictionary()
)


@contextmanager
def fused(base: nn.Module) -> Iterator[None]:
    """Inside the block the base's RMS norms and rotary embeddings run as below, where that gives the same."""
    weight = next(base.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        yield
        return
    if base not in _FOUND:
        _FOUND[base] = _norms(base), _rotary_modules(base)
    norms, files = _FOUND[base]
    with ExitStack() as stack:
        for norm, offset in norms:
            stack.enter_context(_attribute(norm, "forward", _NormForward(norm, offset)))
        for file in files:
            stack.enter_context(_attribute(file, _ROTARY, _RotaryForward(getattr(file, _ROTARY))))
        yield


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    # An outer block may have put one there.
    before = owner.__dict__.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


# -- root mean square norms


class _NormForward:
    def __init__(self, norm: nn.Module, offset: bool) -> None:
        self.norm, self.eps, self.offset = norm, _eps(norm), offset

    def __call__(self, hidden: Tensor) -> Tensor:
        weight: Tensor = self.norm.weight  # type: ignore[assignment]
        if hidden.dtype != torch.float32 or weight.requires_grad:  # full fine-tuning trains it
            out: Tensor = type(self.norm).forward(self.norm, hidden)
            return out
        scale = 1.0 + weight if self.offset else weight
        if torch.is_grad_enabled() and hidden.requires_grad:
            out = _RmsNorm.apply(hidden, scale, self.eps)
            return out
        return hidden.mul(_inverse_rms(hidden, self.eps)).mul_(scale)


class _RmsNorm(torch.autograd.Function):
    """x / rms(x) * scale, with a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, scale: Tensor, eps: Tensor) -> Tensor:
        inverse = _inverse_rms(hidden, eps)
        ctx.save_for_backward(hidden, inverse)
        ctx.scale = scale
        return hidden.mul(inverse).mul_(scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        hidden, inverse = ctx.saved_tensors
        scaled = grad * ctx.scale
        along = (scaled * hidden).sum(-1, keepdim=True)
        along.mul_(inverse.pow(3)).div_(-hidden.shape[-1])
        return scaled.mul_(inverse).addcmul_(hidden, along), None, None


def _inverse_rms(hidden: Tensor, eps: Tensor) -> Tensor:
    """[..., 1]"""
    norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
    return torch.addcmul(eps, norm, norm, value=1 / hidden.shape[-1]).rsqrt_()


def _eps(norm: nn.Module) -> Tensor:
    return torch.tensor(float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0))))


def _norms(base: nn.Module) -> list[tuple[nn.Module, bool]]:
    """(norm, whether its scale is 1 + weight)."""
    found: list[tuple[nn.Module, bool]] = []
    offsets: dict[type[nn.Module], bool | None] = {}
    for module in base.modules():
        kind = type(module)
        weight = getattr(module, "weight", None)
        if not kind.__name__.endswith("RMSNorm") or not isinstance(weight, Tensor) or weight.dim() != 1:
            continue
        if "forward" in module.__dict__ or hasattr(weight, "device_mesh"):
            continue
        if kind not in offsets:
            offsets[kind] = _offset(module, weight)
        offset = offsets[kind]
        if offset is not None:
            found.append((module, offset))
    return found


@torch.no_grad()
def _offset(norm: nn.Module, weight: Tensor) -> bool | None:
    """Whether the scale is 1 + weight; None if it is neither."""
    hidden = 3 * torch.sin(torch.arange(2 * len(weight)).float() + 1).view(2, -1)
    truth = type(norm).forward(norm, hidden)
    for offset in (False, True):
        found = hidden * _inverse_rms(hidden, _eps(norm)) * (1.0 + weight if offset else weight)
        if found.shape == truth.shape and torch.allclose(found, truth, rtol=1e-5, atol=1e-6):
            return offset
    return None


# -- rotary embeddings


class _RotaryForward:
    def __init__(self, own: Callable[..., Any]) -> None:
        self.own = own

    def __call__(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Any:
        whole = cos.shape[-1] == q.shape[-1] == k.shape[-1]  # else a part of each head alone is turned
        if args or kwargs or not whole or q.dtype != torch.float32 or cos.requires_grad:
            return self.own(q, k, cos, sin, *args, **kwargs)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return tuple(
            _Rotary.apply(x, cos, sin) if x.requires_grad and torch.is_grad_enabled() else turned(x, cos, sin, 1.0)
            for x in (q, k)
        )


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.cos, ctx.sin = cos, sin
        return turned(x, cos, sin, 1.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return turned(grad, ctx.cos, ctx.sin, -1.0), None, None


def turned(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), or back with sign -1; the two halves of cos and sin are alike."""
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out


def signed(sin: Tensor) -> Tensor:
    """``sin`` for ``rolled``: its first half is negated."""
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)


def rolled(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """``turned`` in three calls: faster where x is small."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), signed_sin)


def _rotary_modules(base: nn.Module) -> list[ModuleType]:
    """The modelling files of the base whose rotary function does what ``turned`` does."""
    names = dict.fromkeys(type(module).__module__ for module in base.modules())
    files = [sys.modules[name] for name in names if name in sys.modules]
    return [file for file in files if callable(getattr(file, _ROTARY, None)) and _same(getattr(file, _ROTARY))]


@torch.no_grad()
def _same(own: Callable[..., Any]) -> bool:
    wave = torch.sin(torch.arange(2 * 2 * 3 * 8).float()).view(2, 2, 3, 8)
    angle = torch.arange(3 * 4).float().view(1, 3, 4).repeat(2, 1, 2)
    given: Sequence[Tensor] = (wave, wave[:, :1] + 1, angle.cos(), angle.sin())
    try:
        truth = own(*given)
        return all(
            torch.allclose(turned(x, given[2].unsqueeze(1), given[3].unsqueeze(1), 1.0), y, atol=1e-6)
            for x, y in zip(given[:2], truth, strict=True)
        )
    except Exception:  # it takes something else
        return False
