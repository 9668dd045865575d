"""Two effects whose truth is known, made of random numbers and judged as the claims are: one is there, one is not.

Each runs through both ways to a verdict: samples (a share of a gain) and rows of an analysis. The false one's row lies
far above its threshold, but its control does as much: only the control can tell.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from steerkit.analysis.statistics import row
from steerkit.study.claims.estimates import Outcome
from steerkit.study.claims.evidence import Analysed, Evidence, Samples
from steerkit.study.claims.rules import Rule, Test

BASE, FULL = 0.3, 0.9
"""True accuracies of base and reference."""
SHARES = {"planted_true": 0.9, "planted_false": 0.1}
"""True share of the reference's gain; the threshold is half of it."""
ROWS = {"planted_true": (0.8, 0.3), "planted_false": (0.8, 0.95)}
"""True value and true control of the row; the threshold is 0.5."""


def planted(n: int, seeds: int, seed: int) -> list[tuple[Rule, Evidence, Outcome]]:
    """The rules, evidence of the study's size, and what must come out.

    Args:
        n: problems.
        seeds: training seeds.
        seed: of the random numbers.
    """
    return [
        (_rule("planted_true", "an effect that is there"), _evidence("planted_true", n, seeds, seed), "reproduced"),
        (_rule("planted_false", "an effect that is not there"), _evidence("planted_false", n, seeds, seed + 1),
         "not reproduced"),
    ]  # fmt: skip


def _rule(name: str, title: str) -> Rule:
    share = Test(
        "share_of_gain", "share of the reference's gain (drawn at random)", "at_least", 0.5, "share",
        {"arm": "planted", "reference": "full", "temperature": 1.0, "controls": ["random_vector"]},
    )  # fmt: skip
    mean = Test(
        "analysis", "mean of the row (drawn at random)", "at_least", 0.5, "",
        {"analyzer": "planted", "arm": "planted", "metric": "planted", "controls": {"random": "own"}},
    )  # fmt: skip
    told = f"True share {SHARES[name]:g}; true row {ROWS[name][0]:g}, true control {ROWS[name][1]:g}."
    return Rule(name, title, (share, mean), 1, told)


class _Planted(Evidence):
    """Evidence without files."""

    def __init__(self, samples: Samples, analyses: list[Analysed]) -> None:
        super().__init__({}, ".")
        self.__dict__ |= {"samples": samples, "analyses": analyses}  # in the place of what would be read


def _evidence(name: str, n: int, seeds: int, seed: int) -> Evidence:
    generator = np.random.default_rng(seed)
    accuracies = {
        "base": BASE, "full": FULL, "random_vector": BASE, "planted": BASE + SHARES[name] * (FULL - BASE),
    }  # fmt: skip
    rows = [
        {"arm": arm, "seed": of_seed, "temperature": 1.0, "id": str(problem), "correct": bool(right),
         "first_token": None}
        for arm, accuracy in accuracies.items()
        for of_seed in range(seeds)
        for problem in range(n)
        for right in generator.random(2) < accuracy
    ]  # fmt: skip
    value, control = ROWS[name]
    made = [
        row("planted", generator.normal(value, 0.2, n), generator.normal(control, 0.2, n), of_seed,
            vector=f"seed {of_seed}")
        for of_seed in range(seeds)
    ]  # fmt: skip
    result: Any = SimpleNamespace(analyzer="planted", rows=made, settings={}, vectors={}, model={})
    whose = {f"seed {of_seed}": ("planted", of_seed) for of_seed in range(seeds)}
    return _Planted(Samples(rows, "random numbers"), [Analysed("random numbers", result, whose)])
