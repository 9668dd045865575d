"""Rewards in TRL's signature, and their weighted sum."""

from steerkit.rewards.base import Reward
from steerkit.rewards.controls import Format, Random
from steerkit.rewards.rubric import Rubric, RubricScores
from steerkit.rewards.verifiable import Verifiable

__all__ = ["Format", "Random", "Reward", "Rubric", "RubricScores", "Verifiable"]
