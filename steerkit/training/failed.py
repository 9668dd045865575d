"""Policies of a sweep that break: each is frozen at its last good vector, and the others go on as if it had never been
there. A run of one policy ends with the error instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from steerkit.errors import BrokenPolicy, NotFinite, TrainingError
from steerkit.training.members import Member, trained
from steerkit.training.state import RunState
from steerkit.training.step import clip_gradients
from steerkit.types import RolloutGroup

log = logging.getLogger(__name__)
T = TypeVar("T")


class FailedMembers:
    """Which of a run's policies are frozen, and why (``RunState.failed``).

    Args:
        members: all policies of the run.
    """

    def __init__(self, members: Sequence[Member], state: RunState) -> None:
        self.members, self.state = members, state

    @property
    def live(self) -> list[int]:
        """The numbers of those that go on."""
        return [number for number in range(len(self.members)) if number not in self.state.failed]

    def check_samples(self, log_probs: Sequence[Tensor]) -> None:
        """Take the latest step of a policy back whose samples' log-probabilities are not finite, and freeze it.

        Args:
            log_probs: of each policy.

        Raises:
            NotFinite: if it is the run's only one, or the base's own are not finite.
        """
        for number in self.live:
            try:
                self.state.check_samples(log_probs[number], self.members[number].name)
            except NotFinite as error:
                alone = len(self.members) == 1 or self.state.step == 0
                if alone or not self.state.undo_step(trained(self.members[number].policy)):
                    raise
                self.state.updating = False
                self._freeze(number, self.state.step - 1, error)

    def without_broken(
        self, groups: Sequence[RolloutGroup], advantages: Tensor, update: Callable[[list[RolloutGroup], Tensor], T]
    ) -> T:
        """``update(groups, advantages)`` of those that go on, and again without a policy whose loss is not finite;
        gradients that it left are dropped.

        Args:
            advantages: [G, K].

        Raises:
            TrainingError: if it is the run's only policy, or no other is left.
        """
        while True:
            chosen = [g for g, group in enumerate(groups) if group.policy not in self.state.failed]
            try:
                return update([groups[g] for g in chosen], advantages[chosen])
            except BrokenPolicy as error:
                if len(self.members) == 1:
                    raise
                self._freeze(error.policy, self.state.step, error)
                for member in self.members:
                    _drop_gradients(member)

    def clip(self, max_norm: float) -> list[float]:
        """Clip each policy's gradient; [members] norms before it, NaN for those that are frozen.

        Raises:
            TrainingError: if the run's only policy has one that is not finite.
        """
        norms = [float("nan")] * len(self.members)
        for number in self.state.failed:
            # Not zeros either: the optimiser's momentum would go on moving what is frozen.
            _drop_gradients(self.members[number])
        for number in self.live:
            try:
                norms[number] = clip_gradients(trained(self.members[number].policy), max_norm)
            except TrainingError as error:
                if len(self.members) == 1:
                    raise
                self._freeze(number, self.state.step, error)
                _drop_gradients(self.members[number])
        return norms

    def summary(self) -> str:
        """One line on those that are frozen; empty if none is."""
        if not self.state.failed:
            return ""
        names = [f"{self.members[number].name} ({reason})" for number, reason in self.state.failed.items()]
        return f"{len(names)} of {len(self.members)} policies broke and were frozen: {'; '.join(names)}."

    def _freeze(self, number: int, step: int, error: TrainingError) -> None:
        what = str(error).partition(":")[0].rstrip(".")
        self.state.failed[number] = f"frozen at step {step}: {what}"
        log.warning("%s: %s; the other policies go on.", self.members[number].name, self.state.failed[number])
        if not self.live:
            raise TrainingError(f"No policy of the sweep is left. {self.summary()} Try a smaller lr.")


def _drop_gradients(member: Member) -> None:
    for parameter in trained(member.policy):
        parameter.grad = None
