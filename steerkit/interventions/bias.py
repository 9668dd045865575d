"""The bias-only baseline: a trainable bias on the MLP's last linear map ("Steering LLM Reasoning Through Bias-Only
Adaptation", arXiv 2505.18706)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from steerkit.interventions.base import Intervention


@final
class Bias(Intervention):
    """``down_proj(x) + b``: where nothing stands between the down-projection and the residual stream (Llama, Qwen2)
    this is ``static`` at every layer; behind a post-norm (gemma 2) it is not. A bias that the base has is added to.
    """

    sites = ("down_proj",)
    reads = "nothing"
    constant = True
    scale_by = ("bias",)

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.bias = nn.Parameter(torch.zeros(d_model, dtype=torch.float32))
        """[D] fp32."""

    def delta(self, hidden: Tensor) -> Tensor:
        return self.bias
