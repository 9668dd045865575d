"""The static steering vector: h_l <- h_l + s_l at every steered position (arXiv 2505.18706, 2509.06608)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from steerkit.interventions.base import Intervention


@final
class Static(Intervention):
    """One trainable vector s_l, the same for all tokens; D numbers a layer."""

    sites = ("output", "attn_output", "mlp_output", "down_proj")
    reads = "nothing"
    constant = True
    scale_by = ("vector",)

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.vector = nn.Parameter(torch.zeros(d_model, dtype=torch.float32))
        """[D] fp32, in the units of the residual stream."""

    def delta(self, hidden: Tensor) -> Tensor:
        return self.vector
