"""A whole study as a work list of commands: arms, controls, analyses, verdicts and a report."""

from __future__ import annotations

from steerkit.study.config import AnalysisConfig, ArmConfig, ChoiceConfig, RecipientConfig, StudyConfig
from steerkit.study.items import Item, WorkList
from steerkit.study.plan import Plan, Planner

__all__ = [
    "AnalysisConfig",
    "ArmConfig",
    "ChoiceConfig",
    "Item",
    "Plan",
    "Planner",
    "RecipientConfig",
    "StudyConfig",
    "WorkList",
]
