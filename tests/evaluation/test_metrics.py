import math

import numpy as np
import pytest
import torch

from steerkit.errors import SteerkitError
from steerkit.evaluation.metrics import AvgAtK, accuracy_interval, avg_at_k, paired_difference_interval

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
