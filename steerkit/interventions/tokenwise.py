"""The token-wise scaled vector: a direction whose length is read from the token (arXiv 2509.06608, section 10)."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from steerkit.interventions.base import Intervention


@final
class Tokenwise(Intervention):
    """dh = b (a . x), x the input of the MLP's down-projection: LoRA on that map with alpha = r = 1.

    D + d_inner numbers a layer. ``a`` starts as PEFT starts lora_A (uniform in +-1/sqrt(d_inner)), ``b`` at zero.
    """

    sites = ("down_proj",)
    reads = "module_input"
    needs = ("d_inner",)
    scale_by = ("b",)

    def __init__(self, d_model: int, d_inner: int, seed: int = 0) -> None:
        """
        Args:
            d_inner: width of the down-projection's input.
            seed: of the start of ``a``.
        """
        super().__init__(d_model, d_inner=d_inner, seed=seed)
        bound = d_inner**-0.5
        start = np.random.RandomState(seed).uniform(-bound, bound, d_inner)
        self.a = nn.Parameter(torch.from_numpy(start).float())
        """[d_inner] fp32, what is read."""
        self.b = nn.Parameter(torch.zeros(d_model, dtype=torch.float32))
        """[D] fp32, the direction."""

    def scale(self, inner: Tensor) -> Tensor:
        """[B, T, d_inner] -> [B, T], the length of the change in units of b: a . x."""
        return inner.to(self.a.dtype) @ self.a

    def delta(self, hidden: Tensor) -> Tensor:
        return self.scale(hidden).unsqueeze(-1) * self.b
