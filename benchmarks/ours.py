"""One RL step of ours, from the parts that ``steerkit.training.SteeringModule`` makes it of."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from workload import Workload

from steerkit import registry
from steerkit.objectives import RLOO
from steerkit.rewards import Rubric
from steerkit.rollouts import SamplingParams
from steerkit.training import memory
from steerkit.training.members import Sweep, build_members, optimizer_groups, together, trained
from steerkit.training.step import clip_gradients
from steerkit.types import RolloutGroup

SETTINGS: dict[str, Any] = {
    "intervention": "static",
    "layers": "all",
    "site": None,
    "token_mask": "all",
    "vector": None,
}


def mixed_rewards(groups: int, k: int) -> torch.Tensor:
    """[G, K]: every other sample is right, so that every group has an advantage and no row is free."""
    return (torch.arange(k) % 2).float().expand(groups, k).clone()


@dataclass(frozen=True)
class Timed:
    """A step: what was sampled, and seconds."""

    groups: list[RolloutGroup]
    sampling: float
    update: float
    """From the rewards to the changed vector."""

    @property
    def step(self) -> float:
        return self.sampling + self.update


class OurStep:
    """Sampling, rewards, advantages, gradients in micro-batches, clipping and AdamW, under ``steerkit fit``'s defaults.

    The learning rate is so small that the samples of the next step come from the same distribution, here and there.

    Args:
        layers: of one static vector.
        sweep: instead, a vector a policy, all of them in one batch; each has the workload's prompts.
    """

    def __init__(self, work: Workload, layers: Any = "all", sweep: Sweep | None = None) -> None:
        self.work = work
        _, self.members = build_members(work.loaded, sweep or Sweep(), SETTINGS | {"layers": layers}, 0, 1e-6)
        self.policy = together(self.members)
        self.prompts = [
            replace(prompt, policy=number) for number in range(len(self.members)) for prompt in work.prompts
        ]
        self.sampler = registry.build("samplers", "fast")
        self.objective = RLOO()
        self.budget = memory.Budget()
        self.parameters = [p for member in self.members for p in trained(member.policy)]
        self.optimizer = torch.optim.AdamW(list(optimizer_groups(self.members)), weight_decay=0.0)

    def run(self, seed: int, rewards: Rubric | None = None) -> Timed:
        """One step.

        Args:
            rewards: what scores the rollouts (its time counts to the update); default: ``mixed_rewards``.
        """
        form, tokenizer = self.work.form, self.work.loaded.tokenizer
        began = time.perf_counter()
        params = self.budget.keeping(self.policy, self.prompts, form.k, SamplingParams(1.0, form.tokens))
        prompts = [replace(prompt, seed=seed) for prompt in self.prompts]
        groups = memory.sample(self.sampler, self.policy, tokenizer, prompts, form.k, params, seed)
        sampled = time.perf_counter()
        self.update(groups, mixed_rewards(len(groups), form.k) if rewards is None else rewards.score(groups).total)
        return Timed(groups, sampled - began, time.perf_counter() - sampled)

    def update(self, groups: list[RolloutGroup], rewards: torch.Tensor, most: int = 16384) -> None:
        """What follows the rewards; ``most``: padded tokens of a micro-batch, which the memory budget may lower."""
        pad = self.work.loaded.tokenizer.pad_token_id
        self.optimizer.zero_grad()
        advantages = self.objective.advantages(rewards, torch.ones_like(rewards, dtype=torch.bool))
        tokens = self.budget.micro_batch_tokens(self.policy, self.prompts, self.work.form.tokens, pad, most)
        made = [0] * len(self.members)
        for group in groups:
            made[group.policy] += sum(len(rollout.token_ids) for rollout in group.rollouts)
        memory.add_gradients(
            self.policy, self.objective, groups, advantages, made, pad, 1.0, tokens, torch.Tensor.backward
        )
        for member in self.members:
            clip_gradients(trained(member.policy), 2.0)
        self.optimizer.step()
