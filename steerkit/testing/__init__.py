"""Contracts of the plugin kinds, for the core's own tests and for plugin authors.

    from steerkit.testing import check_intervention, check_reward
    def test_mine(): check_intervention(MyIntervention, rank=2)
    def test_mine_too(): check_reward(my_reward)

Each ``check_*`` raises AssertionError with what it expected and what it got; ``steerkit plugins check NAME`` runs the
same checks from the shell. Names load on first use: the checks of a verifier need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerkit.testing.analyzers import check_analyzer
    from steerkit.testing.datasets import check_dataset
    from steerkit.testing.exporters import check_exporter
    from steerkit.testing.objectives import check_objective
    from steerkit.testing.rewards import check_reward
    from steerkit.testing.samplers import check_sampler, tiny_tokenizer
    from steerkit.testing.steering import (
        FAMILIES,
        TOLERANCE,
        check_intervention,
        check_model_contract,
        randomize,
        tiny_model,
    )
    from steerkit.testing.verifiers import check_verifier

__all__ = [
    "FAMILIES",
    "TOLERANCE",
    "check_analyzer",
    "check_dataset",
    "check_exporter",
    "check_intervention",
    "check_model_contract",
    "check_objective",
    "check_reward",
    "check_sampler",
    "check_verifier",
    "randomize",
    "tiny_model",
    "tiny_tokenizer",
]

_HOME = {
    "check_analyzer": "steerkit.testing.analyzers",
    "check_dataset": "steerkit.testing.datasets",
    "check_exporter": "steerkit.testing.exporters",
    "check_objective": "steerkit.testing.objectives",
    "check_reward": "steerkit.testing.rewards",
    "check_sampler": "steerkit.testing.samplers",
    "check_verifier": "steerkit.testing.verifiers",
    "tiny_tokenizer": "steerkit.testing.samplers",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'steerkit.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME.get(name, "steerkit.testing.steering")), name)
    globals()[name] = value  # the next use does not come here
    return value
