"""A reward that penalises repeated n-grams, as a steerkit plugin (``steerkit.rewards``: ``repetition``).

The measure is seq-rep-n of Welleck et al., "Neural Text Generation with Unlikelihood Training", arXiv 1908.04319: the
share of a text's n-grams that have occurred before in it. A penalty on repeated n-grams in RL on reasoning: Yeo et al.,
arXiv 2502.03373, appendix C.2; TRL's ``get_repetition_penalty_reward`` is this measure too.
"""

from __future__ import annotations

from typing import Any

from steerkit.errors import SteerkitError
from steerkit.rewards import Reward


def repeated_share(tokens: list[int], n: int) -> float:
    """1 - (distinct n-grams) / (n-grams), in [0, 1); 0 for a text without an n-gram.

    Args:
        tokens: [T] token ids.
        n: length of the n-grams in tokens.
    """
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


class Repetition(Reward):
    """Minus the share of repeated n-grams: 0 where nothing repeats, near -1 where a text goes round in a circle.

    Args:
        n: length of the n-grams in tokens; 4 as in arXiv 1908.04319.
    """

    def __init__(self, n: int = 4) -> None:
        if n < 1:
            raise SteerkitError(f"repetition: n must be at least 1, got {n}.")
        self.n = n

    def __call__(
        self, prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        return [-repeated_share(ids, self.n) for ids in completion_ids]
