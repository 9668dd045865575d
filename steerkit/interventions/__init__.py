"""Interventions: what is added to the residual stream at a hook point."""

from steerkit.interventions.base import Intervention
from steerkit.interventions.bias import Bias
from steerkit.interventions.gated import Gated
from steerkit.interventions.lowrank import LowRank
from steerkit.interventions.projected import Projected
from steerkit.interventions.static import Static
from steerkit.interventions.tokenwise import Tokenwise

__all__ = ["Bias", "Gated", "Intervention", "LowRank", "Projected", "Static", "Tokenwise"]
