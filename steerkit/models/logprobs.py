"""Token log-probabilities without a [B, T, V] tensor, in either direction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from steerkit.errors import SteerkitError
from steerkit.models.steered import SteeredModel


def token_log_probs(
    model: SteeredModel, hidden: Tensor, targets: Tensor, temperature: float = 1.0, chunk_size: int = 512
) -> Tensor:
    """log pi(target | hidden) under softmax(logits / temperature).

    At most [chunk_size, V] logits are alive at a time, in the forward and in the backward.

    Args:
        hidden: [N, D] final-normed states of the positions that predict ``targets``.
        targets: [N] token ids.
        temperature: the sampling temperature, > 0.
        chunk_size: rows a chunk.

    Returns:
        [N] nats, fp32; differentiable in ``hidden`` (and in the unembedding, where that is trainable).

    Raises:
        SteerkitError: for a temperature or chunk size that is not positive, or shapes that do not match.
    """
    if temperature <= 0 or chunk_size < 1:
        raise SteerkitError(
            f"Expected temperature > 0 and chunk_size >= 1, got {temperature} and {chunk_size}: "
            "greedy decoding (temperature 0) has no log-probabilities."
        )
    if hidden.dim() != 2 or targets.shape != hidden.shape[:1]:
        raise SteerkitError(f"Expected hidden [N, D], targets [N]; got {list(hidden.shape)}, {list(targets.shape)}.")
    if not len(targets):
        return hidden.sum(-1).float()  # [0], on the graph
    unembedding = model.base.get_submodule(model.layout.unembedding)
    if not torch.is_grad_enabled() or not any(p.requires_grad for p in unembedding.parameters()):
        return _FrozenUnembedding.apply(hidden, targets, model, temperature, chunk_size)
    pieces = [
        checkpoint(_log_probs, h, t, model, temperature, use_reentrant=False)
        for h, t in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    ]
    return torch.cat(pieces)


def _log_probs(hidden: Tensor, targets: Tensor, model: SteeredModel, temperature: float) -> Tensor:
    """One chunk: [C, D], [C] -> [C] fp32."""
    logits = model.logits(hidden).float() / temperature
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)


class _FrozenUnembedding(torch.autograd.Function):
    """Rows are independent and each has one scalar output, so d log pi / d hidden is [N, D] and can be taken while the
    chunk's logits are still there: two products with the unembedding in all, where recomputation needs three.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, model: SteeredModel, temperature: float, size: int) -> Any:
        values, slopes = [], []
        for h, t in zip(hidden.split(size), targets.split(size), strict=True):
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                h = h.detach().requires_grad_(ctx.needs_input_grad[0])
                value = _log_probs(h, t, model, temperature)
                if ctx.needs_input_grad[0]:
                    slopes.append(torch.autograd.grad(value.sum(), h)[0])
            values.append(value.detach())
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return grad[:, None].to(slope.dtype) * slope, None, None, None, None
