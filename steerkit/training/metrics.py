"""The numbers of one training step, under TRL's names where TRL has one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steerkit.types import RolloutGroup, Verdict
from steerkit.verifiers import FAULT_CAUSES, fault_cause

if TYPE_CHECKING:
    from steerkit.models import SteeredModel
    from steerkit.rewards import RubricScores

_VERDICTS = {"correct": 1.0, "wrong": 0.0, "fault": -1.0}


@dataclass(frozen=True)
class StepTable:
    """What a step's metrics are made of, a number a rollout: small enough to be told to every process."""

    names: tuple[str, ...]
    """Columns; those of rewards are ``rewards/NAME``."""
    values: Tensor
    """[C, G, K] float64, NaN where a reward or a verdict is missing."""

    @classmethod
    def of(cls, groups: Sequence[RolloutGroup], scores: RubricScores) -> StepTable:
        """The table of one process's groups."""
        rollouts = [list(group.rollouts) for group in groups]
        verdicts: list[list[Any]] = scores.verdicts or [[None] * len(row) for row in rollouts]
        columns = {
            "total": scores.total.double(),
            "valid": scores.valid.double(),
            "length": _table(len(rollout.token_ids) for row in rollouts for rollout in row),
            "log_prob": _table(sum(rollout.logprobs) for row in rollouts for rollout in row),
            "cut": _table(rollout.finish_reason == "length" for row in rollouts for rollout in row),
            "verdict": _table(_VERDICTS[v.status] if v else torch.nan for row in verdicts for v in row),
            "cause": _table(_cause(v) for row in verdicts for v in row),
            **{f"rewards/{name}": values.double() for name, values in scores.breakdown.items()},
        }
        shape = scores.total.shape
        return cls(tuple(columns), torch.stack([column.reshape(shape) for column in columns.values()]))

    def pick(self, groups: Sequence[int]) -> StepTable:
        """The table of some of the groups."""
        return StepTable(self.names, self.values[:, list(groups)])

    def __getitem__(self, name: str) -> Tensor:
        """[G, K] float64."""
        return self.values[self.names.index(name)]

    @property
    def rewards(self) -> Tensor:
        """[G, K] float32, as the rubric gave them."""
        return self["total"].float()

    @property
    def valid(self) -> Tensor:
        """[G, K] bool."""
        return self["valid"] > 0

    @property
    def n_tokens(self) -> int:
        """Generated tokens of the global batch."""
        return int(self["length"].sum())


def _table(values: Iterable[float]) -> Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def _cause(verdict: Verdict | None) -> float:
    """Index into ``FAULT_CAUSES``; NaN where the verifier did not fail."""
    faulty = verdict is not None and verdict.status == "fault"
    return FAULT_CAUSES.index(fault_cause(verdict.reason)) if verdict is not None and faulty else torch.nan


def step_metrics(table: StepTable, advantages: Tensor, model: SteeredModel) -> dict[str, float]:
    """Reward, accuracy, lengths and vector norms; a mean over nothing (all faults) is NaN.

    Args:
        table: of the global batch.
        advantages: [G, K] of the same.
    """
    rewards, lengths, verdicts = table["total"], table["length"], table["verdict"]
    spread = torch.where(table.valid, rewards, torch.nan)
    deviation = (spread - spread.nanmean(dim=1, keepdim=True)).square().nanmean(dim=1).sqrt()
    judged = int((verdicts >= 0).sum())
    metrics = {
        "reward": float(rewards[table.valid].mean()),
        "reward_std": float(deviation.nanmean()),
        "frac_reward_zero_std": float((advantages == 0).all(dim=1).float().mean()),
        # Minus the mean log-probability of what was sampled is an unbiased estimate of the entropy a token.
        "entropy": float(-table["log_prob"].sum() / lengths.sum()),
        "length": float(lengths.mean()),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(table["cut"].mean()),
        "accuracy": float((verdicts == 1).sum()) / max(1, judged) if not verdicts.isnan().all() else float("nan"),
        "verifier/faults": float((verdicts == _VERDICTS["fault"]).sum()),
    }
    for number, cause in enumerate(FAULT_CAUSES):
        metrics[f"verifier/faults/{cause}"] = float((table["cause"] == number).sum())
    for name in table.names:
        if name.startswith("rewards/"):
            metrics[f"{name}/mean"] = float(table[name].nanmean())
    for point, intervention in model.interventions.items():
        squares = sum(float(p.detach().square().sum()) for p in intervention.parameters())
        metrics[f"vector/norm/{point}"] = squares**0.5
    return metrics


def mean_metrics(members: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the policies of a sweep, of what all of them have (each has its own file for the rest)."""
    if len(members) == 1:
        return members[0]
    shared = [name for name in members[0] if all(name in other for other in members)]
    return {
        name: sum(member[name] for member in members) / len(members)
        for name in shared
        if not name.startswith("vector/")
    }
