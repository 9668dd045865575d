"""Vectors of all layers from a shared basis: S = A B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from steerkit.errors import VectorError
from steerkit.hookpoints import HookPoint
from steerkit.interventions.base import Intervention


@final
class LowRank(Intervention):
    """s_l = A_l B with B [rank, D] shared by all hook points; rank (L + D) numbers for L points.

    As in LoRA one factor starts at zero (B) and the other random (A, normal with variance 1 / rank).
    """

    reads = "nothing"
    constant = True
    scale_by = ("basis",)

    def __init__(self, d_model: int, rank: int = 2, seed: int = 0, place: str = "layers.0.output") -> None:
        """
        Args:
            rank: number of basis vectors.
            seed: of the start of A.
            place: the hook point whose row of A this is; ``build`` sets it.
        """
        super().__init__(d_model, rank=rank, seed=seed)
        if rank < 1:
            raise VectorError(f"rank must be at least 1, got {rank}.")
        point = HookPoint.parse(place)
        start = np.random.RandomState([seed, point.layer, *point.site.encode()]).standard_normal(rank) / rank**0.5
        self.mix = nn.Parameter(torch.from_numpy(start).float())
        """[rank] fp32, the row A_l."""
        self.basis = nn.Parameter(torch.zeros(rank, d_model, dtype=torch.float32))
        """[rank, D] fp32, B."""

    @classmethod
    def build(cls, points: Sequence[HookPoint], d_model: int, **settings: object) -> dict[HookPoint, Intervention]:
        """A row of A each, one B for all."""
        built = {point: cls(d_model, place=str(point), **settings) for point in points}  # type: ignore[arg-type]
        for item in built.values():
            item.basis = built[points[0]].basis
        return dict(built)

    def delta(self, hidden: Tensor) -> Tensor:
        return self.mix @ self.basis
