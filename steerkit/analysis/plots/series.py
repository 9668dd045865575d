"""Rows of a result as series of a panel: the values with their intervals, and their controls in grey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steerkit.analysis.plots.panels import Series


def series(label: str, rows: Sequence[Mapping[str, Any]], control: bool = False) -> Series:
    """The rows' values, or their controls, each with its interval where it has one."""
    value, ends = ("control", "control_ci95") if control else ("value", "ci95")
    low, high = ([row[ends][side] if row[ends] else None for row in rows] for side in (0, 1))
    return Series(label, [row[value] for row in rows], low, high, control)


def with_controls(rows: Sequence[Mapping[str, Any]], label: str, control: str) -> list[Series]:
    """Values and controls under these two names; no controls where no row has one."""
    own, other = series(label, rows), series(control, rows, control=True)
    return [own, other] if any(y is not None for y in other.y) else [own]
