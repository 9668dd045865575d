"""Prompt data sets: problems with gold answers, their splits, and the template that turns one into a prompt."""

from __future__ import annotations

from steerkit.datasets.base import SPLITS, PromptDataset, Split
from steerkit.datasets.open import dataset_name, open_dataset
from steerkit.datasets.prompts import BOXED, PromptTemplate, fit_to_context
from steerkit.datasets.records import Records
from steerkit.datasets.segments import prompt_segments
from steerkit.datasets.splits import assign_split, deduplicate, normalised_key, subset

__all__ = [
    "BOXED",
    "SPLITS",
    "PromptDataset",
    "PromptTemplate",
    "Records",
    "Split",
    "assign_split",
    "dataset_name",
    "deduplicate",
    "fit_to_context",
    "normalised_key",
    "open_dataset",
    "prompt_segments",
    "subset",
]
