"""The intervention contract: the base class owns the plumbing, a subclass writes only ``delta``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from steerkit.errors import VectorError
from steerkit.hookpoints import HookPoint

Self = TypeVar("Self", bound="Intervention")


class Intervention(nn.Module, ABC):
    """The change that one hook point makes to the residual stream: ``hidden + delta(hidden)``.

    Rules for a subclass (``steerkit.testing.check_intervention`` tests them):

    - its parameters start so that ``delta`` is zero: an untrained intervention is the identity;
    - ``delta`` at position t of row b depends on ``hidden[b, t]`` alone, else cached decoding differs from a full pass;
    - parameters are fp32 and stay so, whatever the base model's dtype (see ``_apply``).
    """

    def __init__(self, d_model: int, **settings: Any) -> None:
        """
        Args:
            d_model: D, the width of the residual stream.
            settings: what a subclass needs to be built again; kept in ``self.settings`` and saved beside its tensors.

        Raises:
            VectorError: if ``d_model`` is not positive.
        """
        if d_model < 1:
            raise VectorError(f"Expected a positive d_model, got {d_model}: pass the base model's hidden size.")
        super().__init__()
        self.d_model = d_model
        self.settings = settings

    @classmethod
    def build(
        cls: type[Self], points: Sequence[HookPoint], d_model: int, **settings: Any
    ) -> dict[HookPoint, Intervention]:
        """One instance a hook point; override it to share parameters between points (one vector for many layers)."""
        return {point: cls(d_model, **settings) for point in points}

    @abstractmethod
    def delta(self, hidden: Tensor) -> Tensor:
        """What to add to the residual stream.

        Args:
            hidden: [B, T, D], the block's output in the base model's dtype.

        Returns:
            A tensor that broadcasts to [B, T, D], fp32 (or the parameters' dtype).
        """

    def forward(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """Apply ``delta``.

        Args:
            hidden: [B, T, D].
            positions: [B, T] bool, True where the stream is steered; None steers every position.

        Returns:
            [B, T, D] in the dtype and on the device of ``hidden``; bit-identical where ``positions`` is False.
        """
        steered = hidden + self.delta(hidden).to(device=hidden.device, dtype=hidden.dtype)
        if positions is None:
            return steered
        # where, not a product with the mask: 0 * delta would turn -0.0 into 0.0 and spread a non-finite delta.
        return torch.where(positions.to(hidden.device).unsqueeze(-1), steered, hidden)

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # .to(bfloat16) on a whole Lightning module reaches us too. A learning rate of 1e-3 is lost in bf16's 8 bits,
        # so moves are followed and casts are not (a round trip through bf16 would already have lost the bits).
        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move_only, recurse)
        return self
