"""Decisions and shares of a gain, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steerkit.evaluation.metrics import Interval
from steerkit.study.claims.estimates import Resampling, all_of, decide, detectable, difference, gain_share, unanimous

FEW = Resampling(2000, 0)


@pytest.mark.parametrize(
    ("interval", "bound", "threshold", "controls", "outcome", "why"),
    [
        ((0.9, 0.8, 1.0), "at_least", 0.75, {}, "reproduced", "beyond 0.75"),
        ((0.9, 0.75, 1.0), "at_least", 0.75, {}, "reproduced", "beyond 0.75"),  # its end may touch the threshold
        ((0.9, 0.7, 1.0), "at_least", 0.75, {}, "inconclusive", "holds 0.75"),
        ((0.6, 0.5, 0.7), "at_least", 0.75, {}, "not reproduced", "lies below 0.75"),
        ((0.6, 0.5, 0.7), "at_most", 0.75, {}, "reproduced", "beyond 0.75"),
        ((0.9, 0.8, 1.0), "at_most", 0.75, {}, "not reproduced", "lies above 0.75"),
        ((0.8, 0.7, 0.9), "at_most", 0.75, {}, "inconclusive", "holds 0.75"),
        # controls: beaten, not told apart, doing as much
        ((0.9, 0.8, 1.0), "at_least", 0.75, {"c": (0.5, 0.4, 0.6)}, "reproduced", "0.75 and c"),
        ((0.9, 0.8, 1.0), "at_least", 0.75, {"c": (0.7, 0.6, 0.85)}, "inconclusive", "c is not told apart"),
        ((0.9, 0.8, 1.0), "at_least", 0.75, {"c": (1.2, 1.1, 1.3)}, "not reproduced", "c does as much"),
        ((0.866, 0.863, 0.870), "at_least", 0.5, {"c": (0.876, 0.872, 0.880)}, "not reproduced", "c does as much"),
        ((0.3, 0.2, 0.4), "at_most", None, {"c": (0.6, 0.5, 0.7)}, "reproduced", "beyond c"),
        ((0.3, 0.2, 0.4), "at_most", None, {"c": (0.1, 0.05, 0.15)}, "not reproduced", "c does as much"),
        ((0.3, 0.2, 0.4), "at_most", None, {"c": (0.4, 0.3, 0.5)}, "inconclusive", "not told apart"),
        # of two controls one alone decides
        ((0.9, 0.8, 1.0), "at_least", 0.75, {"a": (0, 0, 0), "b": (1.2, 1.1, 1.3)}, "not reproduced", "b does"),
        # an effect of nothing, like the control's, is no effect
        ((0.0, 0.0, 0.0), "at_least", 0.0, {"c": (0.0, 0.0, 0.0)}, "not reproduced", "c does as much"),
        ((0.9, math.nan, math.nan), "at_least", 0.75, {}, "inconclusive", "no interval"),
    ],
)  # fmt: skip
def test_one_estimate(interval, bound, threshold, controls, outcome, why):
    found, reason = decide(Interval(*interval), bound, threshold, {k: Interval(*v) for k, v in controls.items()})
    assert found == outcome and why in reason


def test_parts_together():
    yes, no, open_ = "reproduced", "not reproduced", "inconclusive"
    assert unanimous([yes, yes]) == yes and unanimous([no, no]) == no
    assert unanimous([yes, no]) == open_ and unanimous([yes, open_]) == open_ and unanimous([]) == open_
    assert all_of([yes, yes]) == yes and all_of([yes, no]) == no and all_of([open_, no]) == no
    assert all_of([yes, open_]) == open_ and all_of([]) == open_


def test_a_share_by_hand():
    base = np.array([[0.0, 0.0, 1.0, 0.0]])
    full = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])  # mean 7/8
    arm = np.array([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]])  # mean 5/8
    many = [np.tile(table, 30) for table in (arm, full, base)]
    found = gain_share(*many, FEW)
    assert found.mean == pytest.approx((5 / 8 - 1 / 4) / (7 / 8 - 1 / 4))  # 0.6
    assert found.low < 0.6 < found.high


def test_pairs_are_kept():
    """An arm that is right where the reference is has the share 1 exactly, however few there are; unpaired not."""
    generator = np.random.default_rng(0)
    full = (generator.random((1, 60)) < 0.7).astype(float)
    base = full * (generator.random((1, 60)) < 0.3)
    assert gain_share(full.copy(), full, base, FEW) == Interval(1.0, 1.0, 1.0)
    shuffled = full[:, generator.permutation(60)]
    found = gain_share(shuffled, full, base, FEW)
    assert found.mean == pytest.approx(1.0) and found.low < 0.85 and found.high > 1.15


def test_no_share_of_a_gain_that_may_be_0():
    same = np.tile([1.0, 0.0], (1, 40))
    assert gain_share(same, same, same, FEW) is None
    noise = np.random.default_rng(1).random((3, 80)) < 0.5
    a, b, c = (row[None].astype(float) for row in noise)
    assert gain_share(a, b, c, FEW) is None


def test_seeds_widen_the_interval():
    problems = np.tile([1.0, 0.0], 100)[None]
    base, steady = np.zeros((1, 200)), np.repeat(problems, 3, axis=0)
    torn = np.concatenate([problems, np.ones((1, 200)), np.zeros((1, 200))])  # the same mean, other seeds
    narrow, wide = difference(steady, base, FEW), difference(torn, base, FEW)
    assert narrow.mean == wide.mean == pytest.approx(0.5)
    assert wide.high - wide.low > 4 * (narrow.high - narrow.low)


def test_the_interval_is_that_of_the_theory():
    """200 Bernoulli problems, one seed: 1.96 standard errors on either side."""
    arm = np.tile([1.0, 0.0, 0.0, 0.0], 50)[None]
    found = difference(arm, np.zeros((1, 200)), Resampling(8000, 0))
    half = 1.96 * math.sqrt(0.25 * 0.75 / 200)
    assert found.low == pytest.approx(0.25 - half, abs=0.01) and found.high == pytest.approx(0.25 + half, abs=0.01)


def test_it_covers():
    """Of 100 samples of the same truth the 95 % interval holds it in about 95 %."""
    generator = np.random.default_rng(2)
    held = 0
    for trial in range(100):
        arm = (generator.random((1, 150)) < 0.6).astype(float)
        base = (generator.random((1, 150)) < 0.3).astype(float)
        found = difference(arm, base, Resampling(400, trial))
        held += found.low <= 0.3 <= found.high
    assert 89 <= held <= 99


def test_the_power_is_what_it_says():
    """A value that far from the threshold is told from it in 80 % of the samples."""
    assert detectable(Interval(0.5, 0.5, 0.5)) is None
    assert detectable(Interval(0.0, -1.959964, 1.959964)) == pytest.approx(1.959964 + 0.841621, abs=1e-4)
    generator = np.random.default_rng(3)
    error = 0.03
    apart = detectable(Interval(0, -1.96 * error, 1.96 * error))
    values = 0.5 + apart + error * generator.standard_normal(4000)
    told = np.mean([decide(Interval(v, v - 1.96 * error, v + 1.96 * error), "at_least", 0.5, {})[0] == "reproduced"
                    for v in values])  # fmt: skip
    assert told == pytest.approx(0.8, abs=0.03)
