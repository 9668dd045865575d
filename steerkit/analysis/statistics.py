"""Rows of results: a mean over problems with its interval, and the controls' value beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steerkit.evaluation.metrics import value_interval

ROW_KEYS = ("metric", "value", "n", "ci95", "control", "control_ci95")
"""What every row has; other keys say of what it is (vector, layer, token...)."""


def row(
    metric: str,
    values: ArrayLike | float,
    control: ArrayLike | float | None = None,
    seed: int = 0,
    **keys: Any,
) -> dict[str, Any]:
    """One row: the mean of ``values`` over problems (NaN left out), its 95 % bootstrap interval, and the controls'.

    Args:
        metric: what the number is, with its unit where it has one.
        values: [N] one number a problem; a single number is exact (a norm), with n = 1 and no interval.
        control: the same for the control (random vectors); None: there is none, say why in the result's notes.
        keys: of what it is: ``vector=``, ``layer=``...
    """
    value, interval, n = _summary(values, seed)
    control_value, control_interval, _ = _summary(control, seed)
    return {
        **keys, "metric": metric, "value": value, "n": n, "ci95": interval,
        "control": control_value, "control_ci95": control_interval,
    }  # fmt: skip


def _summary(values: ArrayLike | float | None, seed: int) -> tuple[float | None, list[float] | None, int]:
    if values is None:
        return None, None, 0
    table = np.asarray(values, dtype=np.float64)
    if table.ndim == 0:
        return (float(table) if math.isfinite(float(table)) else None), None, 1
    known = table[~np.isnan(table)]
    if not len(known):
        return None, None, 0
    mean, low, high = value_interval(known, seed)
    return mean, (None if math.isnan(low) else [low, high]), len(known)


def by_problem(values: Sequence[float], ids: Sequence[str]) -> NDArray[np.float64]:
    """[N] the mean of each problem's values (NaN left out), in the order in which the problems first come."""
    found: dict[str, list[float]] = {}
    for value, name in zip(values, ids, strict=True):
        found.setdefault(name, []).append(value)
    kept = [[v for v in of_one if not math.isnan(v)] for of_one in found.values()]
    return np.array([float(np.mean(v)) if v else math.nan for v in kept])


def array_intervals(
    values: ArrayLike, seed: int = 0, n_resamples: int = 1000
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(mean, low, high), each [...]: the 95 % bootstrap interval of the mean over the first axis, for a whole array.

    Problems are resampled together, so the cells of one resample belong together. With one problem the ends are NaN.

    Args:
        values: [N, ...], finite.
    """
    table = np.asarray(values, dtype=np.float64)
    n, flat = len(table), table.reshape(len(table), -1)
    mean = flat.mean(axis=0)
    if n < 2:
        low = high = np.full_like(mean, np.nan)
    else:
        weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples) / n
        low, high = np.quantile(weights @ flat, [0.025, 0.975], axis=0)
    shape = table.shape[1:]
    return mean.reshape(shape), low.reshape(shape), high.reshape(shape)


def without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become None, at any depth."""
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Mapping):
        return {str(key): without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    return value
