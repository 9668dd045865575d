"""What a run goes on from, beside the weights, the optimiser and Lightning's counters."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor, nn

from steerkit.errors import NotFinite, SteerkitError
from steerkit.rewards import Rubric
from steerkit.rollouts.footprint import Saved
from steerkit.training.checkpoints import loops_at_step_end, random_states, set_random_states
from steerkit.training.distributed import Processes
from steerkit.training.memory import Budget

KEY = "steerkit"
"""Its place in a checkpoint."""
MOST_KEPT = 2**24
"""Numbers of which a copy is kept: all vectors have fewer, a model that is trained whole has more."""


class RunState:
    """Counters, and the state that only plugins change: global random numbers and the rewards' own.

    Which problems a step takes and what is sampled are functions of the step's number, so neither needs a state.

    Args:
        rubric: the rewards.
        micro_batch_tokens: as configured; it is halved when the device is out of memory.
        budget: what decides, with it, how a step is split: the order of sums is part of the result.
    """

    def __init__(self, rubric: Rubric, micro_batch_tokens: int, budget: Budget) -> None:
        self.rubric, self.budget = rubric, budget
        self.micro_batch_tokens = micro_batch_tokens
        self.step = 0
        """Optimiser steps made."""
        self.generated_tokens = 0
        self.seconds_per_step: list[float] = []
        self.updating = False
        """Between two steps: what is in memory is neither the state before nor the one after."""
        self.failed: dict[int, str] = {}
        """Policies of a sweep that broke -> why; they stay as they were then (``training.failed``)."""
        self._before: list[tuple[nn.Parameter, Tensor]] = []  # what is trained, as it was before the latest step
        self._step_start: dict[str, Any] | None = None
        self._outside: dict[str, Any] | None = None
        self._restored: list[dict[str, Any]] = []
        self._checked = False

    # -- steps and validations

    def begin_step(self) -> None:
        """Note what the step may change before it ends; a checkpoint of a broken step holds this."""
        self._step_start = self._own()

    def begin_update(self, parameters: Sequence[nn.Parameter]) -> None:
        """Before the optimiser changes ``parameters``."""
        self.updating = True
        few = sum(parameter.numel() for parameter in parameters) <= MOST_KEPT
        self._before = [(parameter, parameter.detach().clone()) for parameter in parameters] if few else []

    def check_samples(self, log_probs: Tensor, policy: str = "") -> None:
        """See that the model still gives probabilities. A loss of NaN would not tell: where every sample is as wrong
        as the others there is no loss at all.

        Args:
            log_probs: of what was sampled, in the global batch.
            policy: the name of a sweep's.

        Raises:
            NotFinite: in all processes.
        """
        if bool(log_probs.isfinite().all()):
            return
        self.updating = True  # no checkpoint of this
        if self.step == 0:
            raise NotFinite("The model's log-probabilities are not finite before any step: try another dtype.")
        raise NotFinite(
            f"After step {self.step} the model's log-probabilities are not finite{f' ({policy})' if policy else ''}: "
            f"training stopped; the last good vector is kept. Try a smaller lr, from an earlier checkpoint or the "
            f"beginning."
        )

    def undo_step(self, parameters: Sequence[nn.Parameter] | None = None) -> bool:
        """Put what is trained back to where it was before the latest step; False where that is not known (no step in
        this process, or too many numbers).

        Args:
            parameters: of one policy; default: all.
        """
        chosen = None if parameters is None else {id(parameter) for parameter in parameters}
        before = [(p, value) for p, value in self._before if chosen is None or id(p) in chosen]
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)
        return bool(before)

    def end_step(self, step: int, n_tokens: int, seconds: float) -> None:
        self.step = step
        self.generated_tokens += n_tokens
        self.seconds_per_step.append(seconds)
        self._step_start, self.updating = None, False

    def begin_validation(self) -> None:
        """A validation must not change what is trained after it."""
        self._outside = random_states()

    def end_validation(self) -> None:
        if self._outside is not None:
            set_random_states(self._outside)

    def _own(self) -> dict[str, Any]:
        saved = None if self.budget.saved is None else list(astuple(self.budget.saved))
        return {"random": random_states(), "rewards": copy.deepcopy(self.rubric.state_dict()), "footprint": saved}

    # -- checkpoints

    def save(self, checkpoint: dict[str, Any], processes: Processes, epoch_length: float, validation_due: bool) -> None:
        """Add it to a checkpoint; called in all processes.

        Args:
            epoch_length: batches of an epoch.
            validation_due: a validation follows the latest step, and has not been finished.

        Raises:
            SteerkitError: if a reward's state can't be read back.
        """
        own = self._step_start or self._own()
        if not self._checked:
            _check_readable(own["rewards"])
            self._checked = True
        checkpoint[KEY] = {
            "step": self.step,
            "validation_due": validation_due,
            "generated_tokens": self.generated_tokens,
            "micro_batch_tokens": self.micro_batch_tokens,
            "seconds_per_step": self.seconds_per_step[-1000:],
            "failed": dict(self.failed),
            "ranks": processes.objects(own),
        }
        loops_at_step_end(checkpoint["loops"], self.step, epoch_length, validation_due)

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the counters over; what plugins may change waits for ``restore``.

        Raises:
            SteerkitError: if the checkpoint's entries are not what ``save`` writes.
        """
        saved = checkpoint.get(KEY)
        if saved is None:  # a checkpoint of version 0.1
            self.step = int(checkpoint.get("global_step", 0))
            return
        try:
            self.step = int(saved["step"])
            self.generated_tokens = int(saved["generated_tokens"])
            self.micro_batch_tokens = min(self.micro_batch_tokens, int(saved["micro_batch_tokens"]))
            self.seconds_per_step = [float(seconds) for seconds in saved["seconds_per_step"]]
            self._restored = list(saved["ranks"])
            self.failed = {int(number): str(reason) for number, reason in saved.get("failed", {}).items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SteerkitError(f"The checkpoint's entry {KEY!r} is not what steerkit writes ({error!r}).") from None

    def restore(self, rank: int) -> None:
        """Put random numbers and rewards back: the last thing before the first step."""
        if rank < len(self._restored):  # a run may go on with more processes than it had
            set_random_states(self._restored[rank]["random"])
            self.rubric.load_state_dict(self._restored[rank]["rewards"])
            saved = self._restored[rank].get("footprint")
            self.budget.saved = None if saved is None else Saved(*saved)
        self._restored = []


def _check_readable(rewards: Mapping[str, Any]) -> None:
    """Checkpoints are read without running code, so not every object comes back."""
    for name, state in rewards.items():
        buffer = io.BytesIO()
        try:
            torch.save(state, buffer)
            buffer.seek(0)
            torch.load(buffer, weights_only=True)
        except Exception as error:  # pickling and unpickling raise many kinds
            reason = " ".join(str(error).split())[:120]
            raise SteerkitError(
                f"The state of reward {name!r} can't stand in a checkpoint: use numbers, texts, lists, dicts and "
                f"tensors ({reason})."
            ) from None
