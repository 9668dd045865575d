"""Accuracy with its uncertainty: metrics, arms compared on the same problems, suites, result files."""

from steerkit.evaluation.arms import Arm, Evaluation, Protocol, evaluate
from steerkit.evaluation.at_k import maj_at_k, pass_at_k
from steerkit.evaluation.metrics import Interval, accuracy_interval, avg_at_k, paired_difference_interval
from steerkit.evaluation.modules import AvgAtK, FirstTokens, MajAtK, MeanLength, PassAtK, Rate

__all__ = [
    "Arm",
    "AvgAtK",
    "Evaluation",
    "FirstTokens",
    "Interval",
    "MajAtK",
    "MeanLength",
    "PassAtK",
    "Protocol",
    "Rate",
    "accuracy_interval",
    "avg_at_k",
    "evaluate",
    "maj_at_k",
    "paired_difference_interval",
    "pass_at_k",
]
