"""Means over seeds with intervals over problems; and what the seconds depend on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.evaluation.metrics import Interval, mean_interval, value_interval

SEED = 0
"""Of the bootstraps."""


def intervals(rows: Sequence[Mapping[str, Any]], column: str, scale: float) -> dict[str, dict[str, Any]]:
    """Temperature -> mean over seeds with a 95 % interval, by bootstrap over problems of the seeds' mean."""
    found = {}
    for temperature in sorted({row["temperature"] for row in rows}):
        part = [row for row in rows if row["temperature"] == temperature]
        seeds = list(dict.fromkeys(row["seed"] for row in part))
        table = np.array([_by_problem([row for row in part if row["seed"] == seed], column) for seed in seeds])
        known = ~np.isnan(table).all(axis=0)
        if not known.any():
            continue
        table = table[:, known]
        means: NDArray[np.float64] = np.nanmean(table, axis=0)
        interval: Interval = value_interval(means, SEED) if column == "tokens" else mean_interval(means, SEED)
        values = [None if np.isnan(v) else round(scale * float(v), 4) for v in interval]
        by_seed = [None if np.isnan(row).all() else round(scale * float(np.nanmean(row)), 4) for row in table]
        found[f"{temperature:g}"] = {"value": values[0], "low": values[1], "high": values[2], "n": int(known.sum()),
                                     "by_seed": by_seed}  # fmt: skip
    return found


def _by_problem(rows: Sequence[Mapping[str, Any]], column: str) -> list[float]:
    """Mean of each problem's samples, in the order of the problems' names; NaN where nothing is known."""
    found: dict[str, list[float]] = {}
    for row in rows:
        values = found.setdefault(row["id"], [])
        if row[column] is not None:
            values.append(float(row[column]))
    return [float(np.mean(found[name])) if found[name] else float("nan") for name in sorted(found)]


def machine() -> dict[str, Any]:
    """What the seconds depend on."""
    name = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    except OSError:  # not Linux
        pass
    try:
        memory: float | None = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (AttributeError, ValueError, OSError):  # Windows
        memory = None
    return {"processor": name, "cores": os.cpu_count(), "memory_gb": memory and round(memory, 1)}
