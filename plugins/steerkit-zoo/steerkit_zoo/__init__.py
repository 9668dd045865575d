"""Siblings of steerkit's ``tiny-reasoner``: folders of Hugging Face checkpoints (plugins of group ``steerkit.models``).

``python -m steerkit.zoo.build NAME --out steerkit_zoo/weights/NAME`` makes one again from its seeds.
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def instruct() -> str:
    """``tiny-reasoner`` trained on with three quarters of the prompts asking for a way to answer."""
    return str(WEIGHTS / "tiny-reasoner-instruct")


def seed1() -> str:
    """The recipe of ``tiny-reasoner`` from another seed: corpus, weights and order."""
    return str(WEIGHTS / "tiny-reasoner-seed1")


def wide() -> str:
    """The same corpus in another shape: 9 blocks of 160 in place of 6 of 128."""
    return str(WEIGHTS / "tiny-reasoner-wide")
