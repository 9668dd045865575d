"""Interventions: what is added to the residual stream at a hook point."""

from steerkit.interventions.base import Intervention
from steerkit.interventions.static import Static

__all__ = ["Intervention", "Static"]
