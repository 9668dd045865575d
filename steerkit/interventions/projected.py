"""A vector from very few numbers, through a fixed random projection (TinyLoRA's idea, arXiv 2602.04118)."""

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
class Projected(Intervention):
    """s_l = P_l v: v has ``rank`` trainable numbers, shared by all hook points unless ``shared`` is False.

    P_l [D, rank] has independent normal entries of variance 1 / D (columns of length about 1), made from (seed, hook
    point) and not saved.
    """

    reads = "nothing"
    constant = True
    scale_by = ("code",)

    def __init__(
        self, d_model: int, rank: int = 13, shared: bool = True, seed: int = 0, place: str = "layers.0.output"
    ) -> None:
        """
        Args:
            rank: length of v.
            shared: one v for all hook points.
            seed: of the projections.
            place: the hook point whose projection this is; ``build`` sets it.
        """
        super().__init__(d_model, rank=rank, shared=shared, seed=seed)
        if rank < 1:
            raise VectorError(f"rank must be at least 1, got {rank}.")
        point = HookPoint.parse(place)
        # RandomState is numpy's frozen generator: the same projection with every later version.
        noise = np.random.RandomState([seed, point.layer, *point.site.encode()]).standard_normal((d_model, rank))
        self.register_buffer("projection", torch.from_numpy(noise / d_model**0.5).float(), persistent=False)
        """[D, rank] fp32, fixed."""
        self.code = nn.Parameter(torch.zeros(rank, dtype=torch.float32))
        """[rank] fp32, v."""

    @classmethod
    def build(cls, points: Sequence[HookPoint], d_model: int, **settings: object) -> dict[HookPoint, Intervention]:
        """One projection a point; one v for all of them if ``shared``."""
        built = {point: cls(d_model, place=str(point), **settings) for point in points}  # type: ignore[arg-type]
        first = built[points[0]]
        for item in built.values():
            if first.settings["shared"]:
                item.code = first.code
        return dict(built)

    def delta(self, hidden: Tensor) -> Tensor:
        projection: Tensor = self.projection  # type: ignore[assignment]
        return projection @ self.code
