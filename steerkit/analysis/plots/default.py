"""What is drawn of a result whose analyzer says nothing: its rows, and its one- and two-dimensional arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steerkit.analysis.plots.panels import Bars, Heatmap, Lines, Panel, Series, Table
from steerkit.analysis.plots.series import with_controls
from steerkit.analysis.result import AnalysisResult, Array
from steerkit.analysis.statistics import ROW_KEYS


def panels(result: AnalysisResult) -> list[Panel]:
    """Bars of each metric, the arrays, and the rows as a table."""
    found: list[Panel] = [
        bars_of(metric, result.find(metric=metric)) for metric in dict.fromkeys(row["metric"] for row in result.rows)
    ]
    for name, array in result.arrays.items():
        about = array.about or name
        if array.values.dim() == 2 and max(array.values.shape) <= 200:
            rows, columns = array.axes
            labels = axis_labels(array, 0), axis_labels(array, 1)
            found.append(Heatmap(about, array.values.tolist(), *labels, row_axis=rows, column_axis=columns, unit=name))
        elif array.values.dim() == 1:
            found.append(Lines(about, axis_labels(array, 0), [Series(name, array.values.tolist())], array.axes[0]))
    return [*found, rows_table("Rows", result.rows)]


def bars_of(title: str, rows: Sequence[Mapping[str, Any]], limit: int = 60) -> Bars:
    """One bar a row, and its control beside it in grey."""
    shown = rows[:limit]
    metrics = {str(row["metric"]) for row in shown}
    unit = metrics.pop() if len(metrics) == 1 else ""
    return Bars(title, [of_what(row) for row in shown], with_controls(shown, "steered", "control"), unit)


def of_what(row: Mapping[str, Any]) -> str:
    """The keys of a row that say of what it is, as one text."""
    return " ".join(_cell(value) for key, value in row.items() if key not in ROW_KEYS and value is not None)


def axis_labels(array: Array, dimension: int) -> list[str]:
    """The names of an axis's steps, else their numbers."""
    return list(array.labels.get(array.axes[dimension], map(str, range(array.values.shape[dimension]))))


def rows_table(title: str, rows: Sequence[Mapping[str, Any]], limit: int = 200) -> Table:
    """A result's rows: keys, value, interval, n and control."""
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in ROW_KEYS))
    columns = [*keys, "metric", "value", "95 % interval", "n", "control", "its interval"]
    cells = [
        [
            *(_cell(row.get(key)) for key in keys),
            str(row["metric"]),
            _cell(row["value"]),
            _interval(row["ci95"]),
            str(row["n"]),
            _cell(row["control"]),
            _interval(row["control_ci95"]),
        ]
        for row in rows[:limit]
    ]
    note = f"{len(rows) - limit} more rows in analysis.json." if len(rows) > limit else ""
    return Table(title, columns, cells, note, page_only=True)


def compact_rows(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str, str]]:
    """(of what, metric, value with its interval, n, control with its interval) of each row, for a screen."""
    found = []
    for row in rows:
        value, control = (
            f"{_cell(row[key])} ({_interval(row[ends])})" if row[ends] is not None else _cell(row[key])
            for key, ends in (("value", "ci95"), ("control", "control_ci95"))
        )
        found.append((of_what(row), str(row["metric"]), value, str(row["n"]), control))
    return found


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.4g} to {ends[1]:.4g}"
