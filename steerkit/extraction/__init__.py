"""Vectors without training: the contrastive mean difference."""

from steerkit.extraction.contrast import (
    Branch,
    Contrast,
    TextPairs,
    load_pairs,
    requested_contrast,
    sampled_contrast,
    written_contrast,
)
from steerkit.extraction.mean_difference import MeanDifference, Positions, mean_difference

__all__ = [
    "Branch",
    "Contrast",
    "MeanDifference",
    "Positions",
    "TextPairs",
    "load_pairs",
    "mean_difference",
    "requested_contrast",
    "sampled_contrast",
    "written_contrast",
]
