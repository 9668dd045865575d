"""Figures of ``composition``."""

from __future__ import annotations

import math

from steerkit.analysis.plots.default import axis_labels, bars_of, rows_table
from steerkit.analysis.plots.panels import Heatmap, Panel
from steerkit.analysis.result import AnalysisResult


def panels(result: AnalysisResult) -> list[Panel]:
    """At each scale the pairs' accuracy, gain and normalised gain; accuracies alone and together; the rows."""
    array = result.arrays["pairs"]
    names = axis_labels(array, 2)
    found: list[Panel] = []
    for s, scale in enumerate(axis_labels(array, 0)):
        for number, title in enumerate(axis_labels(array, 1)):
            table = [[None if math.isnan(v) else v for v in line] for line in array.values[s, number].tolist()]
            if any(value is not None for line in table for value in line):
                limits = (0.0, 1.0) if number == 0 else None
                found.append(
                    Heatmap(f"Pairs at scale {scale}: {title}", table, names, names, unit=title, diverging=number > 0,
                            limits=limits)
                )  # fmt: skip
    single = [row for row in result.rows if row["metric"] == "accuracy" and " + " not in row["vectors"]]
    return [*found, bars_of("Accuracy alone and all together", single), rows_table("Rows", result.rows)]
