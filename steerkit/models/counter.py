"""Proof that steering was applied."""

from __future__ import annotations

from torch import Tensor


class SteeringCounter:
    """Counts what the hooks saw: ``total == tokens * layers``, in training and in cached decoding alike.

    ``forward_calls`` and ``tokens`` are counted at the door of the module that owns the blocks, ``total`` in the hooks
    of the sites.
    """

    def __init__(self, layers: int) -> None:
        """
        Args:
            layers: number of steered hook points.
        """
        self.layers = layers
        self.reset()

    def reset(self) -> None:
        self.forward_calls = 0
        """Forward passes in a steered scope; each cached decoding step is one."""
        self._tokens: int | Tensor = 0
        self._total: int | Tensor = 0

    # Counts of masked positions stay on the device until they are read: to wait for it in each hook would cost.

    @property
    def tokens(self) -> int:
        """Positions fed to those passes (padding included), or those that a mask selects."""
        return int(self._tokens)

    @property
    def total(self) -> int:
        """Positions steered, summed over the hook points."""
        return int(self._total)

    @property
    def complete(self) -> bool:
        """Every (selected) position of every pass was steered at every hook point."""
        return self.total == self.tokens * self.layers

    def called(self, positions: int | bool | Tensor) -> None:
        """A forward pass begins, in which this many (or these) positions are to be steered."""
        self.forward_calls += 1
        self._tokens = self._tokens + _count(positions)

    def steered(self, positions: int | Tensor) -> None:
        """One hook point was steered at this many (or these) positions."""
        self._total = self._total + _count(positions)

    def __repr__(self) -> str:
        return (
            f"SteeringCounter(layers={self.layers}, forward_calls={self.forward_calls}, tokens={self.tokens}, "
            f"total={self.total})"
        )


def _count(positions: int | bool | Tensor) -> int | Tensor:
    return positions.sum() if isinstance(positions, Tensor) else int(positions)
