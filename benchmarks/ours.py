"""One RL step of ours, from the parts that ``steerkit.training.SteeringModule`` makes it of."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from workload import Workload

from steerkit import registry
from steerkit.objectives import RLOO
from steerkit.rewards import Rubric
from steerkit.rollouts import SamplingParams
from steerkit.training import memory
from steerkit.training.step import clip_gradients
from steerkit.types import RolloutGroup


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
    """Sampling, rewards, advantages, gradients in micro-batches, clipping and AdamW of a static vector.

    The learning rate is so small that the samples of the next step come from the same distribution, here and there.
    """

    def __init__(self, work: Workload, layers: str | int = "all", micro_batch_tokens: int = 16384) -> None:
        self.work, self.policy = work, work.policy(layers)
        self.micro_batch_tokens = micro_batch_tokens
        self.sampler = registry.build("samplers", "fast")
        self.objective = RLOO()
        self.budget = memory.Budget()
        self.parameters = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-6, weight_decay=0.0)

    def run(self, seed: int, rewards: torch.Tensor | Rubric | None = None) -> Timed:
        """One step.

        Args:
            rewards: [G, K], or what scores the rollouts (its time counts to the update); default: ``mixed_rewards``.
        """
        work, form = self.work, self.work.form
        began = time.perf_counter()
        params = self.budget.keeping(self.policy, work.prompts, form.k, SamplingParams(1.0, form.tokens))
        groups = memory.sample(
            self.sampler, self.policy, work.loaded.tokenizer, work.prompts, form.k, params, seed, retry=True
        )
        sampled = time.perf_counter()
        if rewards is None:
            rewards = mixed_rewards(len(groups), form.k)
        elif isinstance(rewards, Rubric):
            rewards = rewards.score(groups).total
        self.update(groups, rewards)
        return Timed(groups, sampled - began, time.perf_counter() - sampled)

    def update(self, groups: list[RolloutGroup], rewards: torch.Tensor) -> None:
        work = self.work
        self.optimizer.zero_grad()
        advantages = self.objective.advantages(rewards, torch.ones_like(rewards, dtype=torch.bool))
        pad = work.loaded.tokenizer.pad_token_id
        tokens = self.budget.micro_batch_tokens(
            self.policy, work.prompts, work.form.tokens, pad, self.micro_batch_tokens
        )
        made = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
        memory.add_gradients(
            self.policy, self.objective, groups, advantages, made, pad, 1.0, tokens, torch.Tensor.backward
        )
        clip_gradients(self.parameters, 2.0)
        self.optimizer.step()
