"""The intervention contract: the base class owns the plumbing, a subclass writes only ``delta``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeVar

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
    - parameters are fp32 and stay so, whatever the base model's dtype (see ``_apply``);
    - buffers that can be made again from the settings are not persistent: a vector file holds what was trained.
    """

    sites: ClassVar[tuple[str, ...]] = ("output", "attn_output", "mlp_output")
    """Where it may stand (``hookpoints.SITES``); the first is the default."""
    reads: ClassVar[Literal["nothing", "residual", "module_input"]] = "residual"
    """What ``delta`` is given: the residual stream at the site; the input of the site's module; for ``nothing``, any
    tensor with the stream's batch and length."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Settings that come from the base model: ``d_inner`` (width of the down-projection's input)."""
    constant: ClassVar[bool] = False
    """The same delta at every position: such an intervention equals ``static``."""
    scale_by: ClassVar[tuple[str, ...]] = ()
    """Parameters in which delta is linear, all of them together: c times these gives c times delta."""

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
            hidden: what the class ``reads``, in the base model's dtype: [B, T, D], or [B, T, d_inner] for
                ``module_input``.

        Returns:
            A tensor that broadcasts to [B, T, D], fp32 (or the parameters' dtype).
        """

    def forward(
        self, hidden: Tensor, positions: Tensor | None = None, read: Tensor | None = None, gain: float = 1.0
    ) -> Tensor:
        """Apply ``delta``.

        Args:
            hidden: [B, T, D], what the site's module puts out.
            positions: [B, T] bool, True where the stream is steered; None steers every position.
            read: what ``delta`` reads, where that is not ``hidden``.
            gain: 1 / m in families that multiply what a module adds to the stream by m (granite).

        Returns:
            [B, T, D] in the dtype and on the device of ``hidden``; bit-identical where ``positions`` is False.
        """
        delta = self.delta(hidden if read is None else read)
        if gain != 1.0:
            delta = delta * gain
        steered = hidden + delta.to(device=hidden.device, dtype=hidden.dtype)
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
