"""steerkit: train, measure and understand reinforcement-learned steering vectors on frozen language models.

The names below are loaded on first use (PEP 562): ``import steerkit`` itself loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerkit.errors import SteerkitError
    from steerkit.evaluation import evaluate
    from steerkit.hookpoints import HookPoint
    from steerkit.interventions import Intervention, Static
    from steerkit.models import LoadedModel, SteeredModel, load_model
    from steerkit.types import Example, Rollout, RolloutGroup, Verdict
    from steerkit.vectors import SteeringVector

    __version__: str

__all__ = [
    "Example",
    "HookPoint",
    "Intervention",
    "LoadedModel",
    "Rollout",
    "RolloutGroup",
    "Static",
    "SteeredModel",
    "SteeringVector",
    "SteerkitError",
    "Verdict",
    "__version__",
    "evaluate",
    "load_model",
]

_HOME = {
    "Example": "steerkit.types",
    "HookPoint": "steerkit.hookpoints",
    "Intervention": "steerkit.interventions",
    "LoadedModel": "steerkit.models",
    "Rollout": "steerkit.types",
    "RolloutGroup": "steerkit.types",
    "Static": "steerkit.interventions",
    "SteeredModel": "steerkit.models",
    "SteeringVector": "steerkit.vectors",
    "SteerkitError": "steerkit.errors",
    "Verdict": "steerkit.types",
    "evaluate": "steerkit.evaluation",
    "load_model": "steerkit.models",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # Asked for lazily: importlib.metadata alone takes longer to import than the rest of this file.
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: Any = version("steerkit")
        except PackageNotFoundError:
            value = "0+uninstalled"  # a checkout that was never `pip install`ed
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'steerkit' has no attribute {name!r}")
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
