"""From a step's samples to the changed vector: one optimiser update, or several, each of a part of the samples."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steerkit.errors import SteerkitError
from steerkit.training import memory
from steerkit.training.members import trained
from steerkit.training.recovery import stops
from steerkit.training.schedule import set_rates
from steerkit.training.state import MOST_KEPT
from steerkit.training.step import Importance
from steerkit.types import RolloutGroup

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer

    from steerkit.training.module import SteeringModule

IMPORTANCE_CAP = 2.0
"""Largest importance weight of a token that the policy did not sample itself (verl's default for truncated importance
sampling)."""


@dataclass(frozen=True, slots=True)
class Updated:
    """What the updates of a step did; means over them."""

    loss: float
    logprob_gap: float
    """Of the first update: the later ones are another policy's."""
    importance: Importance
    """Of the tokens that were weighed."""
    grad_norm: list[float]
    """Of each policy, NaN for those that are frozen."""


def check_minibatches(minibatches: int, prompts: int) -> None:
    """Refuse more updates a step than it has problems.

    Raises:
        SteerkitError: unless each update has one.
    """
    if not 1 <= minibatches <= prompts:
        raise SteerkitError(
            f"model.minibatches must lie between 1 and the problems of a step (data.prompts_per_step, {prompts}), "
            f"got {minibatches}."
        )


def minibatches_of(owners: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """The numbers of each update's groups: a part of every policy's. Neighbours stay together, and they are dealt to
    different processes: so each process has its share of every update, and the updates don't depend on their number.

    Args:
        owners: the groups of each policy, of all processes.
    """
    parts: list[list[int]] = [[] for _ in range(count)]
    for own in owners:
        for place, group in enumerate(own):
            parts[place * count // len(own)].append(group)
    return [sorted(part) for part in parts]


def update(
    module: SteeringModule,
    optimizer: LightningOptimizer,
    groups: Sequence[RolloutGroup],
    owners: Sequence[Sequence[int]],
    lengths: Tensor,
    advantages: Tensor,
    tokens: int,
) -> Updated:
    """Change what is trained: ``minibatches`` times, by the groups dealt to each. From the second on a token is weighed
    by how likely it is now, over how likely it was when it was sampled (at most ``IMPORTANCE_CAP``).

    Args:
        groups: of this process.
        owners: [policies] the numbers of each policy's groups among all processes'.
        lengths: [G] generated tokens of each group, of all processes.
        advantages: [G, K] of all processes.
        tokens: padded tokens of a micro-batch.

    Raises:
        TrainingError: if a loss or a gradient is not finite; what is trained is as it was before the step.
        SteerkitError: for several updates of too many numbers to take back, or of fewer problems than updates.
    """
    processes, state, settings = module.processes, module.run_state, module.settings
    check_minibatches(settings.minibatches, max(map(len, owners)))
    parts = minibatches_of(owners, settings.minibatches)
    mine = processes.deal(range(len(advantages)))
    retry, pad_id = not processes.mirrored, module.loaded.tokenizer.pad_token_id  # type: ignore[union-attr]
    parameters = [p for p in module.policy.parameters() if p.requires_grad]
    if len(parts) > 1 and sum(p.numel() for p in parameters) > MOST_KEPT:
        raise SteerkitError(
            f"model.minibatches {len(parts)} needs a copy of what is trained, which is kept up to {MOST_KEPT:,} "
            "numbers: set it to 1."
        )
    done: list[Updated] = []
    failed = set(state.failed)
    with _all_or_nothing(module, optimizer) if len(parts) > 1 else nullcontext():
        for number, part in enumerate(parts):
            optimizer.zero_grad()
            inside = set(part)
            here = [i for i, g in enumerate(mine) if g in inside]
            n_tokens = [int(lengths[[g for g in own if g in inside]].sum()) for own in owners]
            cap = None if module.sampler.exact and number == 0 else IMPORTANCE_CAP

            def gradients(
                chosen: list[RolloutGroup], rows: Tensor, n_tokens: Any = n_tokens, cap: Any = cap, most: int = tokens
            ) -> Any:
                return memory.add_gradients(
                    module.policy, module.objective, chosen, rows, n_tokens, pad_id, module.params.temperature,
                    most, module.manual_backward, retry, cap,
                )  # fmt: skip

            # Under DDP each backward would average over the processes: the sum is made once, by hand.
            with processes.phase(), getattr(module.trainer.strategy, "block_backward_sync", nullcontext)():
                stats, fitted = module.failed.without_broken(
                    [groups[i] for i in here], advantages[[mine[i] for i in here]], gradients
                )
            if fitted < tokens:
                state.micro_batch_tokens = tokens = fitted
            processes.add_gradients(parameters)
            loss, *weighed = processes.total(stats.loss, *astuple(stats.importance))
            (gap,) = processes.largest(stats.logprob_gap)
            with processes.phase():  # the same numbers in each of them: one says it for all
                norms = module.failed.clip(settings.grad_clip)
            if done:  # a policy of a sweep that broke now is frozen where the step began
                for policy in set(state.failed) - failed:
                    state.undo_step(trained(module.members[policy].policy))
            failed = set(state.failed)
            set_rates(optimizer.param_groups, module.global_step, module.trainer, settings)
            if number == 0:
                stops.hold()  # until the step's metrics are on disk
                state.begin_update(parameters)
            if number == len(parts) - 1:
                optimizer.step()
            else:
                optimizer.optimizer.step()  # Lightning counts a step a batch
            done.append(Updated(loss, gap, Importance(*weighed), norms))
    return _mean(done)


@contextmanager
def _all_or_nothing(module: SteeringModule, optimizer: LightningOptimizer) -> Iterator[None]:
    """Where an update fails after another was made, all are taken back: the checkpoint of a broken run is that of its
    latest whole step.
    """
    state = module.run_state
    before = copy.deepcopy(optimizer.optimizer.state_dict())
    try:
        yield
    except BaseException:
        if state.updating and state.undo_step():
            optimizer.optimizer.load_state_dict(before)
            state.updating = False
        raise


def _mean(done: Sequence[Updated]) -> Updated:
    importance = sum((one.importance for one in done), Importance())
    norms = torch.tensor([one.grad_norm for one in done]).mean(dim=0).tolist()
    return Updated(sum(one.loss for one in done) / len(done), done[0].logprob_gap, importance, norms)
