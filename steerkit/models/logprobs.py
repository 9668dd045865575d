"""Token log-probabilities and entropies without a [B, T, V] tensor, in either direction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from steerkit.errors import SteerkitError
from steerkit.models.layout import text_config
from steerkit.models.steered import SteeredModel


def chunk_rows(model: SteeredModel) -> int:
    """Rows whose logits are alive at a time: 32 MB of them on a CPU, 256 MB on an accelerator, but 64 to 512 rows."""
    room = 2**23 if model.device.type == "cpu" else 2**26
    return min(512, max(64, room // int(text_config(model.base).vocab_size)))


def token_log_probs(
    model: SteeredModel, hidden: Tensor, targets: Tensor, temperature: float = 1.0, chunk_size: int | None = None
) -> Tensor:
    """log pi(target | hidden) under softmax(logits / temperature).

    At most [chunk_size, V] logits are alive at a time, in the forward and in the backward.

    Args:
        hidden: [N, D] final-normed states of the positions that predict ``targets``.
        targets: [N] token ids.
        temperature: the sampling temperature, > 0.
        chunk_size: rows a chunk; default: ``chunk_rows``.

    Returns:
        [N] nats, fp32 (fp64 if the model is); differentiable in ``hidden`` (and in the unembedding, where that is
        trainable).

    Raises:
        SteerkitError: for a temperature or chunk size that is not positive, or shapes that do not match.
    """
    return _chunked(model, hidden, targets, temperature, chunk_size, entropies=False)[0]


def token_log_probs_and_entropies(
    model: SteeredModel, hidden: Tensor, targets: Tensor, temperature: float = 1.0, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """``token_log_probs``, and the entropy of the distribution that each target was drawn from.

    A third product with the unembedding a chunk; no more logits are alive than without the entropies.

    Returns:
        ([N] nats, [N] nats), both differentiable as ``token_log_probs`` is.
    """
    both = _chunked(model, hidden, targets, temperature, chunk_size, entropies=True)
    return both[0], both[1]


def _chunked(
    model: SteeredModel, hidden: Tensor, targets: Tensor, temperature: float, chunk_size: int | None, entropies: bool
) -> Tensor:
    """[1, N] log-probabilities, or [2, N] with the entropies."""
    if chunk_size is None:
        chunk_size = chunk_rows(model)
    if temperature <= 0 or chunk_size < 1:
        raise SteerkitError(
            f"Expected temperature > 0 and chunk_size >= 1, got {temperature} and {chunk_size}: "
            "greedy decoding (temperature 0) has no log-probabilities."
        )
    if hidden.dim() != 2 or targets.shape != hidden.shape[:1]:
        raise SteerkitError(f"Expected hidden [N, D], targets [N]; got {list(hidden.shape)}, {list(targets.shape)}.")
    if not len(targets):
        return hidden.sum(-1).float().expand(1 + entropies, 0)  # no token, on the graph
    with model.scope():  # full fine-tuning: the weights that are trained stand in a scope only
        trained = any(p.requires_grad for p in model.base.get_submodule(model.layout.unembedding).parameters())
    if not torch.is_grad_enabled() or not trained:
        return _FrozenUnembedding.apply(hidden, targets, model, temperature, chunk_size, entropies)
    pieces = [
        checkpoint(_of_chunk, h, t, model, temperature, entropies, use_reentrant=False)
        for h, t in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    ]
    return torch.cat(pieces, dim=1)


def _of_chunk(hidden: Tensor, targets: Tensor, model: SteeredModel, temperature: float, entropies: bool) -> Tensor:
    """One chunk: [C, D], [C] -> [1, C] log-probabilities, or [2, C] with the entropies; fp32 or more."""
    logits = model.logits(hidden)
    if logits.dtype != torch.float64:
        logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    every = logits.log_softmax(-1)  # with gather fewer passes over [C, V] than logsumexp, forward and backward
    log_probs = every.gather(-1, targets[:, None]).squeeze(-1)
    if not entropies:
        return log_probs[None]
    return torch.stack([log_probs, -(every.exp() * every).sum(-1)])


class _FrozenUnembedding(torch.autograd.Function):
    """Rows are independent and each has one or two scalar outputs, so an output's derivative in ``hidden`` is [N, D]
    and can be taken while the chunk's logits are still there: one product with the unembedding for the logits and one
    for each output, where recomputation needs another for the logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        model: SteeredModel,
        temperature: float,
        size: int,
        entropies: bool,
    ) -> Any:
        # Filled in place: a small tensor kept from each chunk would be cut out of the block that the chunk's logits
        # had, and the next chunk's, of the same size, would need new memory (1.4 GB of a last-layer update on SmolLM2).
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        values = hidden.new_empty(1 + entropies, len(hidden), dtype=dtype)
        slopes = hidden.new_empty(1 + entropies, *hidden.shape) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            with torch.set_grad_enabled(slopes is not None):
                h = hidden[chunk].detach().requires_grad_(slopes is not None)
                value = _of_chunk(h, targets[chunk], model, temperature, entropies)
                values[:, chunk] = value.detach()
                if slopes is not None:
                    for k in range(len(value)):
                        (slopes[k, chunk],) = torch.autograd.grad(value[k].sum(), h, retain_graph=k < len(value) - 1)
            del h, value
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (slopes,) = ctx.saved_tensors  # [1 or 2, N, D]
        return (grad[..., None].to(slopes.dtype) * slopes).sum(0), None, None, None, None, None
