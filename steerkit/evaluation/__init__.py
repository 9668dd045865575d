"""Accuracy with its uncertainty: metrics, arms compared on the same problems, result files."""

from steerkit.evaluation.arms import Arm, Evaluation, Protocol, evaluate
from steerkit.evaluation.metrics import AvgAtK, Interval, accuracy_interval, avg_at_k, paired_difference_interval

__all__ = [
    "Arm",
    "AvgAtK",
    "Evaluation",
    "Interval",
    "Protocol",
    "accuracy_interval",
    "avg_at_k",
    "evaluate",
    "paired_difference_interval",
]
