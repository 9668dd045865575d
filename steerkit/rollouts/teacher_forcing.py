"""Log-probabilities, with gradient, of completions that were sampled before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from steerkit.models import token_log_probs
from steerkit.rollouts.prompt_pass import Branches, PromptPass

if TYPE_CHECKING:
    from steerkit.models import SteeredModel


def completion_log_probs(
    model: SteeredModel, groups: Sequence[Branches], pad_id: int, temperature: float = 1.0
) -> Tensor:
    """[N] log-probabilities (nats) of all completion tokens, completion after completion.

    They are those of softmax(logits / temperature), and the gradient is that of separate rows.
    """
    return token_log_probs(model, *predicting_states(model, groups, pad_id), temperature)


def predicting_states(model: SteeredModel, groups: Sequence[Branches], pad_id: int) -> tuple[Tensor, Tensor]:
    """([N, D] final-normed states, [N] ids) of all completion tokens: each state is that of the position before."""
    return PromptPass(model, groups, pad_id).states()
