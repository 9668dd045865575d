"""Directional ablation with a trainable direction and strength (plugin ``ablation`` of ``steerkit.interventions``).

Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction", arXiv 2406.11717, section 2.4, remove a
direction that they found by a difference in means: h <- h - u (u . h). Here RL finds the direction, and how much of it
to remove.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steerkit.interventions import Intervention


@final
class Ablation(Intervention):
    """dh = -alpha (u . h) u with u = direction / |direction|; D + 1 numbers a layer.

    alpha = 1 removes the direction from the stream, 0 < alpha < 1 a part of it, alpha = 2 reflects the stream at the
    hyperplane, and alpha < 0 amplifies. It starts at 0, the identity: the first step moves alpha alone, for a direction
    that is not removed has no gradient. A step of alpha counts in parts of the stream, not in its units: try smaller
    learning rates than for a static vector.

    Args:
        seed: of the direction that training starts from (there is no neutral one).
    """

    scale_by = ("alpha",)

    def __init__(self, d_model: int, seed: int = 0) -> None:
        super().__init__(d_model, seed=seed)
        start = torch.randn(d_model, generator=torch.Generator().manual_seed(seed))
        self.direction = nn.Parameter(F.normalize(start, dim=0))
        """[D] fp32; its length does not matter, and starts at 1."""
        self.alpha = nn.Parameter(torch.zeros(1))
        """[1] fp32, the share of the stream's component along the direction that is taken away."""

    def delta(self, hidden: Tensor) -> Tensor:
        unit = F.normalize(self.direction, dim=0)
        component = hidden.to(unit.dtype) @ unit
        return -self.alpha * component.unsqueeze(-1) * unit
