"""A study of a tiny random model: two steps, a handful of problems, a reward that can be learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from helpers import checkpoint

from steerkit.cli import main

REWARDS = '''
def vowels(completions, **columns):
    """Share of vowels and spaces: a random model can learn this in a few steps."""
    return [sum(c in "aeiou " for c in text) / max(1, len(text)) for text in completions]
'''


def settings(**changes: Any) -> dict[str, Any]:
    """The values of a study's config; ``arms`` and the like replace the default's."""
    return {
        "name": "little",
        "base": "model",
        "seeds": [0],
        "fit": {
            "samples_every": 0,
            "vector_every": 1,
            "model": {"rewards": ["rewards.py:vowels"], "samples_per_prompt": 3, "max_tokens": 4, "warmup_steps": 0},
            "data": {
                "dataset": {"name": "arithmetic", "n": 16, "n_eval": 6},
                "prompts_per_step": 2,
                "n_validation": 3,
                "n_test": 4,
            },
            "trainer": {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False},
            "report": {"k": 1},
        },
        "analyze": {"engine": "batched", "limit": 2, "figures": False},
        "arms": {
            "base": {"row": "base", "of": "all", "role": "base"},
            "all": {"label": "static, all layers", "grid": [0.1, 0.2], "last": 3.0},
            "random_vector": {"row": "random", "of": "all", "role": "control"},
            "layers": {"each_layer": [0, -1], "label": "static, layer {layer}", "grid": [0.1, 0.3]},
        },
        "analyses": {"geometry": {"arms": ["all", "static_last"], "together": True, "options": {"controls": 2}}},
        **changes,
    }


def write(folder: Path, **changes: Any) -> Path:
    """``study.yaml`` in ``folder``, beside its model and rewards."""
    folder.mkdir(exist_ok=True)
    if not (folder / "model").is_dir():
        checkpoint(folder / "model")
        (folder / "rewards.py").write_text(REWARDS)
    (folder / "study.yaml").write_text(yaml.safe_dump(settings(**changes), sort_keys=False))
    return folder


def study(*more: str) -> int:
    return main(["study", "--config", "study.yaml", "--out", "out", "--workers", "1", "--allow_code", *more])
