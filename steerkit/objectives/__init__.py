"""How rewards become a loss."""

from steerkit.objectives.base import Objective
from steerkit.objectives.entropy import Entropy
from steerkit.objectives.rloo import RLOO, kl_penalty, leave_one_out_advantages, policy_gradient_loss

__all__ = ["RLOO", "Entropy", "Objective", "kl_penalty", "leave_one_out_advantages", "policy_gradient_loss"]
