"""Accuracy with its uncertainty: avg@k per problem, bootstrap over problems.

The samples of one problem are not independent, so problems (rows) are what is resampled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torchmetrics import Metric

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
    values = _without_nan(avg_at_k(correct))
    n, mean = len(values), float(values.mean())
    tail = ((1 - CONFIDENCE) / 2) ** (1 / n)
    if mean == 0.0:
        return Interval(mean, 0.0, 1 - tail)
    if mean == 1.0:
        return Interval(mean, tail, 1.0)
    return _bootstrap(values, seed, n_resamples, alone=(0.0, 1.0))


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
    first, second = avg_at_k(a), avg_at_k(b)
    if len(first) != len(second):
        raise SteerkitError(
            f"A paired difference needs the same problems on both sides, got {len(first)} and {len(second)}."
        )
    return _bootstrap(_without_nan(first - second), seed, n_resamples, alone=(-1.0, 1.0))


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


class AvgAtK(Metric):
    """Mean over problems of the share of right samples, accumulated over batches and devices.

    >>> metric = AvgAtK()
    >>> metric.update(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    >>> float(metric.compute())
    0.75
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: torch.Tensor
    problems: torch.Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("problems", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, correct: torch.Tensor) -> None:
        """Adds [N, K] bool or 0/1 verdicts of N problems; NaN (a fault) is left out, as are rows of nothing else."""
        if correct.dim() != 2:
            raise SteerkitError(f"Expected a table [problems, samples], got shape {list(correct.shape)}.")
        rows = correct.to(torch.float32).nanmean(dim=1)
        known = ~rows.isnan()
        self.total += rows[known].sum()
        self.problems += known.sum()

    def compute(self) -> torch.Tensor:
        """Scalar in [0, 1]; NaN before any problem came."""
        return self.total / self.problems
