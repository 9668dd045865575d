"""A static direction behind a gate that reads the residual stream (our bounded form of the token-wise vector)."""

from __future__ import annotations

from typing import Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steerkit.errors import VectorError
from steerkit.interventions.base import Intervention

Gate = Literal["sigmoid", "softplus"]


@final
class Gated(Intervention):
    """dh = g(w . h/|h| + c) s, g sigmoid (between 0 and 1) or softplus (above 0); 2 D + 1 numbers a layer.

    h is the residual stream at the site, scaled to length 1: its length grows tenfold through the layers and is set
    by a few huge coordinates, so a gate on h itself would need a learning rate of its own at each layer. The trainer
    gives the gate the same learning rate as the direction.
    """

    scale_by = ("vector",)

    def __init__(self, d_model: int, gate: Gate = "sigmoid") -> None:
        super().__init__(d_model, gate=gate)
        if gate not in get_args(Gate):
            raise VectorError(f"gate must be 'sigmoid' or 'softplus', got {gate!r}.")
        self.gate = gate
        self.vector = nn.Parameter(torch.zeros(d_model, dtype=torch.float32))
        """[D] fp32, the direction; zero at the start, with the gate half open."""
        self.weight = nn.Parameter(torch.zeros(d_model, dtype=torch.float32))
        """[D] fp32, w."""
        self.offset = nn.Parameter(torch.zeros(1, dtype=torch.float32))
        """[1] fp32, c."""

    def scale(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> [B, T], how far the gate is open."""
        score = F.normalize(hidden.to(self.weight.dtype), dim=-1) @ self.weight + self.offset
        return torch.sigmoid(score) if self.gate == "sigmoid" else F.softplus(score)

    def delta(self, hidden: Tensor) -> Tensor:
        return self.scale(hidden).unsqueeze(-1) * self.vector
