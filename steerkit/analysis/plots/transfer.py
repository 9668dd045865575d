"""Figures of ``transfer``."""

from __future__ import annotations

from steerkit.analysis.plots.default import rows_table
from steerkit.analysis.plots.panels import Bars, Panel, Series
from steerkit.analysis.result import AnalysisResult


def panels(result: AnalysisResult) -> list[Panel]:
    """Accuracy of each arm and its share of the own vector's gain; the rows."""
    found: list[Panel] = []
    for metric, title in (("accuracy", "Accuracy on the recipient"), ("normalised gain", "Share of the own gain")):
        rows = [row for row in result.rows if row["metric"] == metric and row["value"] is not None]
        if not rows:
            continue
        low, high = ([row["ci95"][s] if row["ci95"] else None for row in rows] for s in (0, 1))
        series = [Series(metric, [row["value"] for row in rows], low, high)]
        at = rows[0]["value"] if metric == "accuracy" else 1.0
        found.append(Bars(title, [row["arm"] for row in rows], series, metric, line_at=at))
    return [*found, rows_table("Rows", result.rows)]
