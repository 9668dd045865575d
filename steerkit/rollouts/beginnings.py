"""What prompts begin with in common (a system text, worked examples), so that it is run once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from steerkit.rollouts.shared_attention import slides

if TYPE_CHECKING:
    from steerkit.models import SteeredModel

WORTH_SHARING = 32
"""Tokens in common, times the prompts that are spared them, above which a call of its own pays."""


def shared_tokens(
    model: SteeredModel,
    prompts: Sequence[Sequence[int]],
    policies: Sequence[int],
    steered: Tensor | None,
    columns: int,
) -> int:
    """How many tokens to run once for all prompts; 0 where it doesn't pay, or would not be the same.

    Args:
        prompts: [G][P] token ids.
        policies: [G] whose they are.
        steered: [G, P] bool, the steered positions of the left-padded prompts; None: all.
        columns: of the longest attention that follows. A sliding window counts columns, and between the two parts
            stands padding.
    """
    common = common_prefix(prompts)
    if common * (len(prompts) - 1) <= WORTH_SHARING or len(set(policies)) > 1:
        return 0
    # Families without position ids count columns too.
    if not model.takes_positions or slides(model, columns):
        return 0
    if steered is not None:
        of_prompts = [steered[k, steered.shape[1] - len(prompt) :][:common] for k, prompt in enumerate(prompts)]
        if any(not bool((row == of_prompts[0]).all()) for row in of_prompts):
            return 0
    return common


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with; at least one of each row is left."""
    shortest = min(map(len, rows)) - 1
    first = rows[0]
    return next((t for t in range(shortest) if any(row[t] != first[t] for row in rows)), shortest)


def steered_at(model: SteeredModel, positions: Tensor) -> AbstractContextManager[Any]:
    """A scope for a call that is a part of prompts.

    Args:
        positions: [B, T] bool, what the token mask selects of it.
    """
    # Inside disabled() nothing is to be steered: the scope that is open stays.
    return model.applied(positions=positions) if model.steers else model.scope()
