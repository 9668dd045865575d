"""An estimate with its interval, and what it says of a threshold and of controls: pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from steerkit.evaluation.metrics import CONFIDENCE, Interval

Outcome = Literal["reproduced", "not reproduced", "inconclusive"]
Bound = Literal["at_least", "at_most"]
POWER = 0.8


@dataclass(frozen=True, slots=True)
class Estimate:
    """One measured number: of one training seed, one recipient... or of all seeds together."""

    interval: Interval
    n: int
    """Problems."""
    of: str
    """Which part of the evidence, in words: ``seed 0``."""
    seeds: tuple[int, ...] = (0,)
    controls: Mapping[str, Interval] = field(default_factory=dict)
    """Control -> its value on the same problems."""
    sources: tuple[str, ...] = ()


def decide(
    interval: Interval, bound: Bound, threshold: float | None, controls: Mapping[str, Interval]
) -> tuple[Outcome, str]:
    """What one estimate says, and why.

    *reproduced*: the whole interval is on the threshold's right side (its end may touch it) and beyond each control's
    interval. *not reproduced*: it is wholly on the wrong side, or not beyond the near end of some control's interval.
    Else *inconclusive*.

    Args:
        bound: whether the claim says that the number is large or small.
        threshold: None: the controls alone decide.
    """
    sign = 1.0 if bound == "at_least" else -1.0
    low, high = _ends(interval, sign)
    if math.isnan(low) or math.isnan(high):
        return "inconclusive", "there is no interval"
    wrong, unclear = [], []
    if threshold is not None:
        if high < sign * threshold:
            wrong.append(f"the interval lies {'below' if sign > 0 else 'above'} {threshold:g}")
        elif low < sign * threshold:
            unclear.append(f"the interval holds {threshold:g}")
    for name, control in controls.items():
        near, far = _ends(control, sign)
        if math.isnan(near) or math.isnan(far):
            unclear.append(f"{name} has no interval")
        elif high <= near:
            wrong.append(f"{name} does as much or more ({control.mean:.3g})")
        elif low <= far:
            unclear.append(f"{name} is not told apart ({control.mean:.3g})")
    if wrong:
        return "not reproduced", "; ".join(wrong)
    if unclear:
        return "inconclusive", "; ".join(unclear)
    return "reproduced", "the whole interval is beyond " + " and ".join(
        ([f"{threshold:g}"] if threshold is not None else []) + list(controls)
    )


def unanimous(outcomes: Sequence[Outcome]) -> Outcome:
    """What all parts say (the seeds of one test, the recipients); *inconclusive* where they differ."""
    first = outcomes[0] if outcomes else "inconclusive"
    return first if all(outcome == first for outcome in outcomes) else "inconclusive"


def all_of(outcomes: Sequence[Outcome]) -> Outcome:
    """A claim of several tests: reproduced if all are, not reproduced if one is not, else inconclusive."""
    if "not reproduced" in outcomes:
        return "not reproduced"
    return "reproduced" if outcomes and all(outcome == "reproduced" for outcome in outcomes) else "inconclusive"


def detectable(interval: Interval) -> float | None:
    """How far from a threshold a value must be for its interval to exclude it in 80 % of studies of this size.

    (1.96 + 0.84) standard errors, the standard error being the interval's width / 3.92. None where the sample has no
    spread to judge by.
    """
    width = interval.high - interval.low
    if not width > 0 or not math.isfinite(width):
        return None
    normal = NormalDist()
    z = normal.inv_cdf(0.5 + CONFIDENCE / 2)
    return (z + normal.inv_cdf(POWER)) * width / (2 * z)


def _ends(interval: Interval, sign: float) -> tuple[float, float]:
    """(low, high) as if large were claimed."""
    return (interval.low, interval.high) if sign > 0 else (-interval.high, -interval.low)


# -- shares of a gain, by bootstrap over problems and seeds


@dataclass(frozen=True, slots=True)
class Resampling:
    """How the bootstrap is drawn."""

    resamples: int = 4000
    seed: int = 0


Arm = NDArray[np.float64]
"""[seeds, problems] share of right samples; the problems are the same, in the same order, in all arms."""


def gain_share(arm: Arm, reference: Arm, base: Arm, draws: Resampling = Resampling()) -> Interval | None:
    """(arm - base) / (reference - base) of the mean accuracies, with a 95 % bootstrap interval.

    Each resample draws the problems once for all arms (pairs are kept), and the training seeds of each arm anew.
    Three seeds are few: their spread enters about a fifth too small. None where the reference's own gain may be 0:
    where it is 0, or more than 2.5 % of the resamples give it another sign.
    """
    means = [float(of_arm.mean()) for of_arm in (arm, reference, base)]
    gain = means[1] - means[2]
    if abs(gain) < 1e-12:
        return None
    generator = np.random.default_rng(draws.seed)
    weights = _weights(generator, arm.shape[1], draws.resamples)
    drawn = [_resampled(of_arm, weights, generator) for of_arm in (arm, reference, base)]
    gains = drawn[1] - drawn[2]
    same = np.sign(gains) == np.sign(gain)
    if (~same).mean() > (1 - CONFIDENCE) / 2:
        return None
    low, high = np.quantile((drawn[0] - drawn[2])[same] / gains[same], _tails())
    return Interval((means[0] - means[2]) / gain, float(low), float(high))


def difference(arm: Arm, other: Arm, draws: Resampling = Resampling()) -> Interval:
    """Mean of arm - other, resampled as in ``gain_share``."""
    generator = np.random.default_rng(draws.seed)
    weights = _weights(generator, arm.shape[1], draws.resamples)
    drawn = _resampled(arm, weights, generator) - _resampled(other, weights, generator)
    low, high = np.quantile(drawn, _tails())
    return Interval(float(arm.mean() - other.mean()), float(low), float(high))


def _tails() -> list[float]:
    return [(1 - CONFIDENCE) / 2, 1 - (1 - CONFIDENCE) / 2]


def _weights(generator: np.random.Generator, n: int, resamples: int) -> NDArray[np.float64]:
    """[resamples, n] how often each is drawn, / n."""
    found: NDArray[np.float64] = generator.multinomial(n, np.full(n, 1 / n), size=resamples) / n
    return found


def _resampled(of_arm: Arm, weights: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """[resamples] means."""
    by_seed = weights @ of_arm.T  # [resamples, seeds]
    means: NDArray[np.float64] = (by_seed * _weights(generator, len(of_arm), len(weights))).sum(axis=1)
    return means
