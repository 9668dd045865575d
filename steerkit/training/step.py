"""One policy-gradient step: rewards in, gradients on the interventions out. No Lightning here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steerkit.errors import SteerkitError, TrainingError
from steerkit.rollouts import completion_log_probs, micro_batches
from steerkit.types import RolloutGroup

if TYPE_CHECKING:
    from steerkit.models import SteeredModel
    from steerkit.objectives import Objective


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """What one update did."""

    loss: float
    """Sum over the micro-batches; its gradient is the policy gradient, its value means nothing by itself."""
    trained_rows: int
    """Rollouts that had an advantage; the others need no forward pass."""
    logprob_gap: float
    """Largest |trainer's - sampler's| log-probability of a token (nats): sampler and trainer must agree."""


def accumulate_gradients(
    model: SteeredModel,
    objective: Objective,
    groups: Sequence[RolloutGroup],
    advantages: Tensor,
    n_tokens: int,
    pad_id: int,
    temperature: float,
    micro_batch_tokens: int,
    backward: Callable[[Tensor], None] | None = None,
) -> UpdateStats:
    """Add the gradient of the objective over all groups to the interventions' ``.grad``, micro-batch by micro-batch.

    Args:
        advantages: [G, K].
        n_tokens: generated tokens of the global batch, those without an advantage too.
        temperature: the sampling temperature, by which the logits are divided.
        micro_batch_tokens: padded tokens in one forward and backward pass; bounds the memory.
        backward: Lightning's ``manual_backward``; default ``loss.backward()``.

    Raises:
        TrainingError: if the loss is not finite; the parameters are untouched.
        SteerkitError: if the objective asks for what this trainer doesn't compute.
    """
    if objective.needs_entropy:
        raise SteerkitError(f"{type(objective).__name__} needs token entropies, which this trainer doesn't compute.")
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rows = [(group.prompt_ids, rollout.token_ids) for group in groups for rollout in group.rollouts]
    flat = advantages.flatten()
    # A group of equal rewards has no advantage and hence no gradient, unless a KL term pulls on every token.
    chosen = list(range(len(rows))) if objective.needs_reference else flat.nonzero().squeeze(-1).tolist()
    total, gap = 0.0, 0.0
    for batch in micro_batches([rows[i] for i in chosen], micro_batch_tokens):
        indices = [chosen[i] for i in batch]
        batch_rows = [rows[i] for i in indices]
        log_probs = completion_log_probs(model, batch_rows, pad_id, temperature)
        reference = None
        if objective.needs_reference:
            with torch.no_grad(), model.disabled():
                reference = completion_log_probs(model, batch_rows, pad_id, temperature)
        lengths = torch.tensor([len(row[1]) for row in batch_rows])
        per_token = flat[indices].repeat_interleave(lengths).to(log_probs.device)
        loss = objective.loss(log_probs, per_token, n_tokens, ref_logprobs=reference)
        value = float(loss.detach())
        if not torch.isfinite(loss.detach()):
            raise TrainingError(
                f"The loss is {value}: training stopped; the last good vector is kept. Try a smaller lr."
            )
        (backward or torch.Tensor.backward)(loss)
        total += value
        sampled = torch.tensor([x for i in indices for x in rollouts[i].logprobs], device=log_probs.device)
        gap = max(gap, float((log_probs.detach() - sampled).abs().max()))
    return UpdateStats(total, len(chosen), gap)


def clip_gradients(parameters: Sequence[torch.nn.Parameter], max_norm: float) -> float:
    """Clip the global norm in place and return it (before clipping); missing gradients become zeros.

    Raises:
        TrainingError: if the norm is not finite.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else float("inf")))
    if norm != norm or norm == float("inf"):
        raise TrainingError(f"The gradient's norm is {norm}: training stopped; the last good vector is kept.")
    return norm
