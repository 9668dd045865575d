"""Base models: where they come from, where each family keeps its blocks, and the steered model."""

from steerkit.models.layout import Layout, find_layout
from steerkit.models.load import LoadedModel, fingerprint, load_model
from steerkit.models.logprobs import token_log_probs, token_log_probs_and_entropies
from steerkit.models.steered import SteeredModel, SteeringCounter

__all__ = [
    "Layout",
    "LoadedModel",
    "SteeredModel",
    "SteeringCounter",
    "find_layout",
    "fingerprint",
    "load_model",
    "token_log_probs",
    "token_log_probs_and_entropies",
]
