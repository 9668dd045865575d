"""Baselines that change weights instead of the residual stream, trained by the same module."""

from steerkit.baselines.base import WeightAdapter
from steerkit.baselines.full import Full
from steerkit.baselines.lora import Lora

__all__ = ["Full", "Lora", "WeightAdapter"]
