import math

import numpy as np
import pytest
import torch

from steerkit.errors import SteerkitError
from steerkit.evaluation.metrics import (
    accuracy_interval,
    avg_at_k,
    mean_over_sets,
    paired_difference_interval,
    paired_mean_over_sets,
)
from steerkit.evaluation.modules import AvgAtK

NAN = math.nan


def test_avg_at_k_leaves_faults_out() -> None:
    table = [[1, 0, NAN, 1], [0, 0, 0, 0], [NAN] * 4]
    np.testing.assert_allclose(avg_at_k(table), [2 / 3, 0, NAN])
    with pytest.raises(SteerkitError, match="problems, samples"):
        avg_at_k([1, 0])


def test_interval_is_seeded_and_ordered() -> None:
    correct = np.random.default_rng(0).random((80, 4)) < 0.6
    first = accuracy_interval(correct, seed=1)
    assert first == accuracy_interval(correct, seed=1) != accuracy_interval(correct, seed=2)
    assert first.low < first.mean < first.high
    assert first.mean == pytest.approx(correct.mean())


def test_width_matches_the_normal_approximation() -> None:
    correct = (np.arange(400) % 4 == 0)[:, None]
    mean, low, high = accuracy_interval(correct)
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert mean == 0.25
    assert high - low == pytest.approx(2 * half, rel=0.1)


def test_samples_of_one_problem_are_no_independent_evidence() -> None:
    once = (np.arange(50) % 2 == 0)[:, None]
    assert accuracy_interval(np.repeat(once, 32, axis=1), seed=3) == accuracy_interval(once, seed=3)


def test_about_95_percent_of_the_intervals_cover() -> None:
    rng = np.random.default_rng(4)
    truth, trials, covered = 0.4, 300, 0
    for trial in range(trials):
        ability = rng.beta(2, 3, size=(100, 1))  # mean 0.4; problems differ
        _, low, high = accuracy_interval(rng.random((100, 4)) < ability, seed=trial, n_resamples=1000)
        covered += low <= truth <= high
    assert 0.92 <= covered / trials <= 0.98


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (np.zeros((1, 4)), (0.0, 0.0, 0.975)),
        (np.ones((1, 4)), (1.0, 0.025, 1.0)),
        ([[1, 0]], (0.5, 0.0, 1.0)),
        (np.ones((500, 1)), (1.0, 0.025 ** (1 / 500), 1.0)),
        (np.zeros((10, 1)), (0.0, 0.0, 0.3085)),  # Clopper-Pearson, 0 of 10
        ([[1, 0], [0, 1]], (0.5, 0.5, 0.5)),
    ],
)
def test_edges(table: object, expected: tuple[float, float, float]) -> None:
    assert accuracy_interval(table) == pytest.approx(expected, abs=1e-4)  # type: ignore[arg-type]


def test_nothing_to_average() -> None:
    with pytest.raises(SteerkitError, match="every sample is a fault"):
        accuracy_interval([[NAN, NAN]])
    with pytest.raises(SteerkitError, match="every sample is a fault"):
        accuracy_interval(np.zeros((0, 4)))


def test_paired_difference_is_tighter_than_two_intervals() -> None:
    rng = np.random.default_rng(5)
    ability = rng.random((200, 1))
    a, b = rng.random((200, 8)) < ability, rng.random((200, 8)) < ability - 0.1
    mean, low, high = paired_difference_interval(a, b)
    assert mean == pytest.approx(a.mean() - b.mean())
    assert 0 < low < mean < high
    unpaired = sum(interval.high - interval.low for interval in map(accuracy_interval, (a, b)))
    assert high - low < unpaired / 2


def test_paired_edges() -> None:
    same = np.random.default_rng(6).random((20, 4)) < 0.5
    assert paired_difference_interval(same, same) == (0, 0, 0)
    assert paired_difference_interval([[1]], [[0]]) == (1, -1, 1)
    assert paired_difference_interval([[1, 1], [NAN, NAN]], [[0], [1]]).mean == 1
    with pytest.raises(SteerkitError, match="same problems"):
        paired_difference_interval([[1], [0]], [[1]])


def test_metric_accumulates_and_merges() -> None:
    batches = [torch.tensor([[1.0, 0.0], [NAN, 1.0]]), torch.tensor([[0.0, 0.0], [NAN, NAN]])]
    metric = AvgAtK()
    for batch in batches:
        metric.update(batch)
    assert metric.compute().item() == pytest.approx((0.5 + 1 + 0) / 3)
    halves = [AvgAtK(), AvgAtK()]
    for half, batch in zip(halves, batches, strict=True):
        half.update(batch)
    halves[0].merge_state(halves[1])
    assert halves[0].compute().item() == pytest.approx(0.5)
    metric.reset()
    metric.update(torch.tensor([[True, True, False, False]]))
    assert metric.compute().item() == 0.5
    with pytest.raises(SteerkitError, match="problems, samples"):
        metric.update(torch.tensor([1.0]))


def test_mean_over_sets_weighs_sets_not_problems() -> None:
    small, large = np.ones(10), np.tile([1.0, 0, 0, 0], 100)
    mean, low, high = mean_over_sets([small, large])
    assert mean == pytest.approx((1 + 0.25) / 2)
    assert low < mean < high
    with pytest.raises(SteerkitError, match="at least one set"):
        mean_over_sets([])


def test_mean_over_sets_has_the_width_of_the_sum_of_variances() -> None:
    rng = np.random.default_rng(7)
    sets = [(rng.random(400) < p).astype(float) for p in (0.2, 0.5, 0.7)]
    mean, low, high = mean_over_sets(sets, n_resamples=20000)
    deviation = math.sqrt(sum(values.var() / len(values) for values in sets)) / 3
    assert mean == pytest.approx(np.mean([values.mean() for values in sets]))
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.04)


def test_about_95_percent_of_the_intervals_over_sets_cover() -> None:
    rng = np.random.default_rng(8)
    truths, sizes, trials, covered = (0.02, 0.4, 0.8), (30, 60, 100), 300, 0
    for trial in range(trials):
        sets = [(rng.random(n) < p).astype(float) for n, p in zip(sizes, truths, strict=True)]
        _, low, high = mean_over_sets(sets, seed=trial, n_resamples=1000)
        covered += low <= np.mean(truths) <= high
    assert covered / trials >= 0.92


@pytest.mark.parametrize(("value", "ends"), [(0.0, "low"), (1.0, "high")])
def test_sets_all_wrong_or_all_right_still_have_a_width(value: float, ends: str) -> None:
    interval = mean_over_sets([np.full(30, value)] * 3)
    assert interval.mean == value == getattr(interval, ends)
    assert 0.005 < interval.high - interval.low < 0.08
    one = mean_over_sets([[value]])
    assert one.high - one.low > 0.5


def test_paired_mean_over_sets() -> None:
    rng = np.random.default_rng(9)
    pairs = []
    for _ in range(3):
        ability = rng.random((150, 1))
        pairs.append((rng.random((150, 4)) < ability, rng.random((150, 4)) < ability - 0.2))
    mean, low, high = paired_mean_over_sets(pairs)
    assert mean == pytest.approx(np.mean([a.mean() - b.mean() for a, b in pairs]))
    assert 0 < low < mean < high
    alone = paired_difference_interval(*pairs[0])
    assert high - low < alone.high - alone.low
    assert paired_mean_over_sets([(pairs[0][0], pairs[0][0])]) == (0, 0, 0)
