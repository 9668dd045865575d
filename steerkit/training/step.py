"""One policy-gradient step: rewards in, gradients on the interventions out. No Lightning here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steerkit.errors import BrokenPolicy, TrainingError
from steerkit.models import token_log_probs, token_log_probs_and_entropies
from steerkit.models.caching import has_running_state
from steerkit.rollouts import Branches, completion_log_probs, micro_batches
from steerkit.rollouts.acceleration import accelerated_update
from steerkit.rollouts.packing import Pieces, prompt_batches
from steerkit.rollouts.prompt_pass import PromptPass, can_stand_apart
from steerkit.types import RolloutGroup

if TYPE_CHECKING:
    from steerkit.models import SteeredModel
    from steerkit.objectives import Objective


@dataclass(frozen=True, slots=True)
class Importance:
    """Sums over importance weights: those of parts add up."""

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    cut: float = 0.0
    """Weights that were cut."""

    def __add__(self, other: Importance) -> Importance:
        return Importance(*(x + y for x, y in zip(astuple(self), astuple(other), strict=True)))

    def metrics(self) -> dict[str, float]:
        """Mean weight, effective share of the tokens, share that was cut; empty where nothing was weighed."""
        if not self.count:
            return {}
        return {
            "importance/mean": self.total / self.count,
            "importance/effective": self.total**2 / (self.squares * self.count) if self.squares else 0.0,
            "importance/cut": self.cut / self.count,
        }


def importance_weights(log_ratio: Tensor, cap: float) -> tuple[Tensor, Importance]:
    """[N] weights of tokens with log pi_trainer - log pi_sampler, at most ``cap``; and their sums."""
    ratio = log_ratio.exp()
    weight = ratio.clamp(max=cap)
    cut = float((ratio > cap).sum())
    return weight, Importance(len(ratio), float(weight.sum()), float(weight.square().sum()), cut)


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """What one update did."""

    loss: float
    """Sum over the micro-batches; its gradient is the policy gradient, its value means nothing by itself."""
    trained_rows: int
    """Rollouts that had an advantage; the others need no forward pass."""
    logprob_gap: float
    """Largest |trainer's - sampler's| log-probability of a token (nats): sampler and trainer must agree."""
    importance: Importance
    """Of the tokens that were weighed."""


def accumulate_gradients(
    model: SteeredModel,
    objective: Objective,
    groups: Sequence[RolloutGroup],
    advantages: Tensor,
    n_tokens: int | Sequence[int],
    pad_id: int,
    temperature: float,
    micro_batch_tokens: int,
    backward: Callable[[Tensor], None] | None = None,
    importance_cap: float | None = None,
) -> UpdateStats:
    """Add the gradient of the objective over all groups to the interventions' ``.grad``, micro-batch by micro-batch.

    Args:
        advantages: [G, K].
        n_tokens: generated tokens of the global batch, those without an advantage too; of each policy, where several
            share the batch.
        temperature: the sampling temperature, by which the logits are divided.
        micro_batch_tokens: padded tokens in one forward and backward pass; bounds the memory.
        importance_cap: weigh each token by min(pi_trainer / pi_sampler, cap): for rollouts of an approximate sampler
            (truncated importance sampling). None: the rollouts are the policy's own.
        backward: Lightning's ``manual_backward``; default ``loss.backward()``.

    Raises:
        BrokenPolicy: if a policy's loss is not finite; the parameters are untouched.
    """
    # A group of equal rewards has no advantage and hence no gradient, unless a KL or an entropy term pulls on every
    # token.
    all_rows = objective.needs_reference or objective.needs_entropy
    chosen = [
        [k for k in range(len(group.rollouts)) if all_rows or advantages[g, k] != 0] for g, group in enumerate(groups)
    ]
    total, gap, importance = 0.0, 0.0, Importance()
    with accelerated_update(model):
        for batch, part, prompts, is_last in _micro_batches(model, groups, chosen, micro_batch_tokens, pad_id):
            entropies = reference = None
            states = prompts.states(part)
            if objective.needs_entropy:
                log_probs, entropies = token_log_probs_and_entropies(model, *states, temperature)
            else:
                log_probs = token_log_probs(model, *states, temperature)
            if objective.needs_reference:
                with torch.no_grad(), model.disabled():
                    reference = completion_log_probs(
                        model, [Branches.of(groups[g], picks) for g, picks in batch], pad_id, temperature
                    )
            picked = [(g, k) for g, picks in batch for k in picks]
            rollouts = [groups[g].rollouts[k] for g, k in picked]
            lengths = torch.tensor([len(rollout.token_ids) for rollout in rollouts])
            weights = torch.stack([advantages[g, k] for g, k in picked])
            per_token = weights.repeat_interleave(lengths).to(log_probs.device)
            sampled = torch.tensor([x for rollout in rollouts for x in rollout.logprobs], device=log_probs.device)
            gap = max(gap, float((log_probs.detach() - sampled).abs().max()))
            if importance_cap is not None:
                ratios, sums = importance_weights(log_probs.detach() - sampled, importance_cap)
                per_token, importance = per_token * ratios, importance + sums
            policies = torch.tensor([groups[g].policy for g, _ in picked])
            loss = log_probs.new_zeros(())
            for policy in sorted(set(policies.tolist())):
                own = _Tokens(policies == policy, lengths, log_probs.device)
                of_policy = objective.loss(
                    own.of(log_probs),
                    own.of(per_token),
                    n_tokens if isinstance(n_tokens, int) else n_tokens[policy],
                    ref_logprobs=None if reference is None else own.of(reference),
                    entropies=None if entropies is None else own.of(entropies),
                )
                value = float(of_policy.detach())
                if not math.isfinite(value):
                    raise BrokenPolicy(
                        f"The loss is {value}: training stopped; the last good vector is kept. Try a smaller lr.",
                        policy,
                    )
                loss, total = loss + of_policy, total + value
            (backward or torch.Tensor.backward)(loss)
            if is_last:
                prompts.backward()
    return UpdateStats(total, sum(map(len, chosen)), gap, importance)


def _micro_batches(
    model: SteeredModel, groups: Sequence[RolloutGroup], chosen: Sequence[Sequence[int]], tokens: int, pad_id: int
) -> Iterator[tuple[Pieces, Pieces, PromptPass, bool]]:
    """(groups with some of their rollouts, the same in the numbers of the prompt pass, the prompt pass, whether this is
    its last micro-batch): those together that start from the same block.

    Where one micro-batch can't hold all, the prompts run once for several micro-batches.
    """
    by_layer: dict[int | None, list[int]] = {}
    for g, picks in enumerate(chosen):
        if picks:
            by_layer.setdefault(groups[g].stream_layer, []).append(g)
    shared, apart = not has_running_state(model.base), can_stand_apart(model)
    for members in by_layer.values():
        branches = [Branches.of(groups[g], chosen[g]) for g in members]
        batches = list(micro_batches(branches, tokens, shared))
        if len(batches) == 1 or not apart:
            for batch in batches:
                picked = [(members[i], [chosen[members[i]][k] for k in picks]) for i, picks in batch]
                here = [Branches.of(groups[g], picks) for g, picks in picked]
                alone = [(i, list(range(len(picks)))) for i, (_, picks) in enumerate(picked)]
                yield picked, alone, PromptPass(model, here, pad_id), True
            continue
        for some, left in prompt_batches(branches, tokens):
            own = [branches[i] for i in some]
            prompts = PromptPass(model, own, pad_id, apart=True)
            batches = list(micro_batches(own, left, apart=True))
            for number, batch in enumerate(batches, 1):
                picked = [(members[some[i]], [chosen[members[some[i]]][k] for k in picks]) for i, picks in batch]
                yield picked, batch, prompts, number == len(batches)


class _Tokens:
    """The tokens of one policy among those of a micro-batch; all of them where there is one policy."""

    def __init__(self, rows: Tensor, lengths: Tensor, device: torch.device) -> None:
        self.mask = None if bool(rows.all()) else rows.repeat_interleave(lengths).to(device)

    def of(self, values: Tensor) -> Tensor:
        return values if self.mask is None else values[self.mask]


def clip_gradients(parameters: Sequence[torch.nn.Parameter], max_norm: float) -> float:
    """Clip the global norm in place and return it (before clipping); missing gradients become zeros.

    Raises:
        TrainingError: if the norm is not finite.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else float("inf")))
    if not math.isfinite(norm):
        raise TrainingError(f"The gradient's norm is {norm}: training stopped; the last good vector is kept.")
    return norm
