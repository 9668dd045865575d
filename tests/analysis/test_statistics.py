"""Rows and intervals, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steerkit.analysis.statistics import array_intervals, by_problem, row, without_nan
from steerkit.errors import SteerkitError
from steerkit.evaluation.metrics import value_interval


def test_a_row_of_problems():
    found = row("m", [1.0, 3.0, math.nan], [2.0, 2.0], seed=0, vector="v")
    assert list(found) == ["vector", "metric", "value", "n", "ci95", "control", "control_ci95"]
    assert found["value"] == 2.0 and found["n"] == 2 and found["control"] == 2.0
    assert found["ci95"] == [1.0, 3.0]  # of two problems, each is drawn twice in a quarter of the resamples
    assert found["control_ci95"] == [2.0, 2.0]


def test_exact_and_unknown_numbers():
    assert row("m", 4.0) == {"metric": "m", "value": 4.0, "n": 1, "ci95": None, "control": None, "control_ci95": None}
    assert row("m", math.nan)["value"] is None
    assert row("m", [math.nan])["n"] == 0
    alone = row("m", [5.0])
    assert alone["value"] == 5.0 and alone["n"] == 1 and alone["ci95"] is None


def test_samples_of_one_problem_are_averaged_first():
    got = by_problem([1.0, 3.0, 10.0, math.nan], ["a", "a", "b", "c"])
    assert got[:2].tolist() == [2.0, 10.0] and math.isnan(got[2])


def test_array_intervals_agree_with_the_scalar_ones():
    values = np.random.default_rng(1).normal(size=(40, 2, 3)) * 5
    mean, low, high = array_intervals(values, n_resamples=4000)
    assert mean.shape == (2, 3)
    np.testing.assert_allclose(mean, values.mean(0))
    for i, j in ((0, 0), (1, 2)):
        of_one = value_interval(values[:, i, j], n_resamples=4000)
        assert low[i, j] == pytest.approx(of_one.low, abs=0.12) and high[i, j] == pytest.approx(of_one.high, abs=0.12)
    assert np.isnan(array_intervals(values[:1])[1]).all()


def test_values_outside_shares_have_intervals():
    """mean_interval would take a mean of exactly 0 or 1 for a share, and widen it by the binomial bound."""
    assert value_interval([-2.0, 2.0, -2.0, 2.0]).mean == 0.0
    low, high = value_interval([-2.0, 2.0, -2.0, 2.0])[1:]
    assert low < 0 < high
    assert math.isnan(value_interval([3.0]).low)
    with pytest.raises(SteerkitError):
        value_interval([math.nan])


def test_json_has_no_nan():
    nested = {"a": [math.nan, np.float32(1.5), (np.int64(2), math.inf)], 3: np.bool_(True)}
    assert without_nan(nested) == {"a": [None, 1.5, [2, None]], "3": True}
