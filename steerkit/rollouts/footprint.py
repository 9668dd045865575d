"""What an update keeps in memory for its backward pass: measured on a few tokens, extrapolated to a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steerkit.models.caching import has_running_state
from steerkit.rollouts.prompt_pass import Branches
from steerkit.rollouts.teacher_forcing import predicting_states

if TYPE_CHECKING:
    from steerkit.models import SteeredModel

PROBES = (16, 48)
"""Tokens of the two measured passes."""


@dataclass(frozen=True, slots=True)
class Saved:
    """Bytes that autograd keeps, as a T + b T^2 a row."""

    per_token: float
    per_square: float
    per_shared: float
    """For each completion and each token of its prompt, where the prompt is run once for all of them."""

    def row(self, tokens: int, attended: int | None = None) -> float:
        """Of a row of so many tokens, which attend to as many (or to so many)."""
        return self.per_token * tokens + self.per_square * tokens * (attended or tokens)


def saved_for_backward(model: SteeredModel, ids: Tensor, pad_id: int) -> Saved:
    """Measure two forward passes with gradients (and one with a shared prompt).

    What lies below the lowest steered layer needs no gradient and keeps nothing: so the figures are this policy's.

    Args:
        ids: [n] some token ids, repeated as needed.
    """
    lowest = {p: model.points_of(p) for p in range(model.policies)}
    # Of several policies the one whose gradient reaches lowest: it keeps most.
    policy = min(lowest, key=lambda p: lowest[p][0].layer if lowest[p] else model.n_layers)
    rows = [ids.repeat(1 + length // len(ids))[:length][None] for length in PROBES]
    saved = [_saved_bytes(model, partial(_whole_pass, model, row, policy)) for row in rows]
    short, long = PROBES
    square = max(0.0, (saved[1] / long - saved[0] / short) / (long - short))
    own = saved[1] / long - square * long
    shared = 0.0
    if not has_running_state(model.base):
        tokens = rows[1][0].tolist()
        segments = (model.token_mask.segment or "",) * (long - short)
        group = Branches(tokens[:-short], [tokens[-short - 1 :], tokens[-short - 1 :]], segments, policy=policy)
        prompt = long - short
        both = _saved_bytes(model, lambda: predicting_states(model, [group], pad_id))
        expected = own * (prompt + 2 * short) + square * (prompt**2 + 2 * short * long)
        shared = max(0.0, (both - expected) / (2 * prompt))
    return Saved(own, square, shared)


def _whole_pass(model: SteeredModel, row: Tensor, policy: int) -> Tensor:
    with model.applied(positions=torch.ones_like(row, dtype=torch.bool)), model.rows([policy]):
        return model.hidden_states(row, torch.ones_like(row))


def tokens_within(saved: Saved, n_bytes: float, longest: int) -> int:
    """Padded tokens of a micro-batch whose saved activations take at most about ``n_bytes``; at least 1.

    Args:
        longest: tokens of the longest row.
    """
    return max(1, int(n_bytes / max(1.0, saved.row(longest) / longest)))


def _saved_bytes(model: SteeredModel, run: Callable[[], Any]) -> int:
    """What autograd keeps for the backward pass of ``run()``, each storage once; weights are there anyway."""
    # A weight that is spread over processes has no storage here; what is gathered of it is freed after each block.
    own = [t for t in [*model.parameters(), *model.buffers()] if not hasattr(t, "device_mesh")]
    weights = {t.untyped_storage().data_ptr() for t in own}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # held, so that no address is given out twice
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = run()
    del made
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept if t.untyped_storage().nbytes()}
    return sum(n for pointer, n in sizes.items() if pointer not in weights)
