"""Accuracy with its uncertainty: avg@k per problem, bootstrap over problems.

The samples of one problem are not independent, so problems (rows) are what is resampled. pass@k and maj@k are in
``at_k``, the torchmetrics modules of all of them in ``modules``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steerkit.errors import SteerkitError

CONFIDENCE = 0.95
_BATCH_ELEMENTS = 2_000_000  # resampled numbers held at once: 16 MB


class Interval(NamedTuple):
    """An estimate and its 95 % confidence interval, all as fractions."""

    mean: float
    low: float
    high: float


def avg_at_k(correct: ArrayLike) -> NDArray[np.float64]:
    """[N] share of right samples per problem, from [N, K] booleans or numbers (NaN: a fault, left out).

    A problem whose samples are all faults is NaN.
    """
    table = np.asarray(correct, dtype=np.float64)
    if table.ndim != 2:
        raise SteerkitError(f"Expected a table [problems, samples], got shape {list(table.shape)}.")
    known = ~np.isnan(table)
    count = known.sum(axis=1)
    total = np.where(known, table, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def accuracy_interval(correct: ArrayLike, seed: int = 0, n_resamples: int = 2000) -> Interval:
    """Mean avg@k over the problems with a 95 % percentile bootstrap interval over problems.

    Where all problems are right, or all wrong, resampling would give an interval of width 0; the exact binomial
    (Clopper-Pearson) bound takes its place. One problem alone, neither right nor wrong, tells nothing: (0, 1).

    Args:
        correct: [N, K] bool or 0/1; NaN marks a fault, which counts neither as right nor as wrong.
        seed: of the resampling.
        n_resamples: number of bootstrap samples.

    Raises:
        SteerkitError: not a single sample is left.
    """
    return mean_interval(avg_at_k(correct), seed, n_resamples)


def mean_interval(values: ArrayLike, seed: int = 0, n_resamples: int = 2000) -> Interval:
    """Mean of one number a problem (a share in [0, 1]) with its interval, as ``accuracy_interval`` has it.

    Args:
        values: [N], for example pass@k of each problem; NaN (nothing known of the problem) is left out.
        seed: of the resampling.
        n_resamples: number of bootstrap samples.

    Raises:
        SteerkitError: no problem is left.
    """
    values = _without_nan(np.asarray(values, dtype=np.float64))
    n, mean = len(values), float(values.mean())
    tail = ((1 - CONFIDENCE) / 2) ** (1 / n)
    if mean == 0.0:
        return Interval(mean, 0.0, 1 - tail)
    if mean == 1.0:
        return Interval(mean, tail, 1.0)
    return _bootstrap(values, seed, n_resamples, alone=(0.0, 1.0))


def value_interval(values: ArrayLike, seed: int = 0, n_resamples: int = 2000) -> Interval:
    """Mean of one number a problem, of any range, with a 95 % percentile bootstrap interval over problems.

    One problem alone tells nothing of the spread: its interval is (NaN, NaN).

    Args:
        values: [N]; NaN (nothing known of the problem) is left out.
        seed: of the resampling.
        n_resamples: number of bootstrap samples.

    Raises:
        SteerkitError: no problem is left.
    """
    kept = _without_nan(np.asarray(values, dtype=np.float64))
    return _bootstrap(kept, seed, n_resamples, alone=(float("nan"), float("nan")))


def paired_difference_interval(a: ArrayLike, b: ArrayLike, seed: int = 0, n_resamples: int = 2000) -> Interval:
    """Mean of avg@k(a) - avg@k(b) with a 95 % bootstrap interval over problems, the pairs kept together.

    Args:
        a: [N, Ka] as in ``accuracy_interval``.
        b: [N, Kb] of the same problems in the same order; Kb may differ from Ka.
        seed: of the resampling.
        n_resamples: number of bootstrap samples.

    Raises:
        SteerkitError: the tables differ in N, or no problem has a sample in both.
    """
    return _bootstrap(_without_nan(_paired(a, b)), seed, n_resamples, alone=(-1.0, 1.0))


def _paired(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    first, second = avg_at_k(a), avg_at_k(b)
    if len(first) != len(second):
        raise SteerkitError(
            f"A paired difference needs the same problems on both sides, got {len(first)} and {len(second)}."
        )
    return first - second


def mean_over_sets(sets: Sequence[ArrayLike], seed: int = 0, n_resamples: int = 2000) -> Interval:
    """Unweighted mean over sets of each set's mean, with a 95 % bootstrap interval over the problems within each set.

    The sets are fixed, their problems are resampled: the interval says nothing of sets that are not here. Where a set
    is all wrong, resampling would add no width; for the upper end its share is drawn from the Jeffreys posterior
    Beta(1/2, n + 1/2) instead, and the same for the lower end of a set that is all right. One problem alone is drawn
    from its posterior for both ends. Many such sets make the interval wide rather than narrow.

    Args:
        sets: for each set [N_s] numbers in [0, 1], one a problem; NaN is left out.
        seed: of the resampling.
        n_resamples: number of bootstrap samples.

    Raises:
        SteerkitError: no set, or a set without a known problem.
    """
    known = [_without_nan(np.asarray(values, dtype=np.float64)) for values in sets]
    mean = _mean_of_means(known)
    generator = np.random.default_rng(seed)
    low, high = np.zeros(n_resamples), np.zeros(n_resamples)
    for values in known:
        n, right = len(values), float(values.sum())
        drawn = _resampled_means(values, generator, n_resamples)
        posterior = generator.beta(right + 0.5, n - right + 0.5, size=n_resamples)
        low += posterior if n == 1 or right == n else drawn
        high += posterior if n == 1 or right == 0 else drawn
    return Interval(mean, min(_tail(low / len(known), low=True), mean), max(_tail(high / len(known), low=False), mean))


def paired_mean_over_sets(
    pairs: Sequence[tuple[ArrayLike, ArrayLike]], seed: int = 0, n_resamples: int = 2000
) -> Interval:
    """Unweighted mean over sets of ``paired_difference_interval``'s mean; the pairs are kept together.

    A set whose differences are all equal (one problem, say) adds no width.

    Args:
        pairs: for each set the tables [N_s, Ka] and [N_s, Kb] of the same problems in the same order.
    """
    known = [_without_nan(_paired(a, b)) for a, b in pairs]
    mean = _mean_of_means(known)
    generator = np.random.default_rng(seed)
    total = sum((_resampled_means(values, generator, n_resamples) for values in known), np.zeros(n_resamples))
    means = total / len(known)
    return Interval(mean, _tail(means, low=True), _tail(means, low=False))


def _mean_of_means(sets: Sequence[NDArray[np.float64]]) -> float:
    if not sets:
        raise SteerkitError("A mean over sets needs at least one set.")
    return float(np.mean([values.mean() for values in sets]))


def _resampled_means(
    values: NDArray[np.float64], generator: np.random.Generator, n_resamples: int
) -> NDArray[np.float64]:
    """[n_resamples] means of as many values drawn with return."""
    n = len(values)
    step = max(1, _BATCH_ELEMENTS // n)
    parts = [
        values[generator.integers(0, n, size=(min(step, n_resamples - start), n))].mean(axis=1)
        for start in range(0, n_resamples, step)
    ]
    return np.concatenate(parts)


def _tail(means: NDArray[np.float64], low: bool) -> float:
    share = (1 - CONFIDENCE) / 2
    return float(np.quantile(means, share if low else 1 - share))


def _without_nan(values: NDArray[np.float64]) -> NDArray[np.float64]:
    values = values[~np.isnan(values)]
    if len(values) == 0:
        raise SteerkitError("No problem with a verdict is left to average: every sample is a fault, or none was given.")
    return values


def _bootstrap(values: NDArray[np.float64], seed: int, n_resamples: int, alone: tuple[float, float]) -> Interval:
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, *alone)
    if np.ptp(values) == 0.0:  # every resample is the sample itself
        return Interval(mean, mean, mean)
    from scipy import stats  # half a second to import, and training never needs it

    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=n_resamples,
        batch=max(1, _BATCH_ELEMENTS // len(values)),
        vectorized=True,
        axis=-1,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(seed),  # named rng since scipy 1.15, which takes both names
    )
    interval = result.confidence_interval
    return Interval(mean, float(interval.low), float(interval.high))
