"""The numbers of one training step, under TRL's names where TRL has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steerkit.types import RolloutGroup

if TYPE_CHECKING:
    from steerkit.models import SteeredModel
    from steerkit.rewards import RubricScores


def step_metrics(
    groups: Sequence[RolloutGroup], scores: RubricScores, advantages: Tensor, model: SteeredModel
) -> dict[str, float]:
    """Reward, accuracy, lengths and vector norms; a mean over nothing (all faults) is NaN."""
    valid = scores.total[scores.valid]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = torch.tensor([len(rollout.token_ids) for rollout in rollouts], dtype=torch.float32)
    log_probs = torch.tensor([x for rollout in rollouts for x in rollout.logprobs])
    spread = torch.where(scores.valid, scores.total, torch.nan)
    deviation = (spread - spread.nanmean(dim=1, keepdim=True)).square().nanmean(dim=1).sqrt()
    metrics = {
        "reward": float(valid.mean()),
        "reward_std": float(deviation.nanmean()),
        "frac_reward_zero_std": float((advantages == 0).all(dim=1).float().mean()),
        # Minus the mean log-probability of what was sampled is an unbiased estimate of the entropy a token.
        "entropy": float(-log_probs.mean()),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": sum(r.finish_reason == "length" for r in rollouts) / len(rollouts),
        "accuracy": float("nan"),
        "verifier/faults": 0.0,
    }
    if scores.verdicts is not None:
        flat = [verdict for row in scores.verdicts for verdict in row]
        faults = sum(verdict.status == "fault" for verdict in flat)
        metrics["verifier/faults"] = float(faults)
        metrics["accuracy"] = sum(v.correct for v in flat) / max(1, len(flat) - faults)
    for name, values in scores.breakdown.items():
        metrics[f"rewards/{name}/mean"] = float(values.nanmean())
    for point, intervention in model.interventions.items():
        squares = sum(float(p.detach().square().sum()) for p in intervention.parameters())
        metrics[f"vector/norm/{point}"] = squares**0.5
    return metrics
