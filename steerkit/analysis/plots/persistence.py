"""Figures of ``persistence``."""

from __future__ import annotations

import math

from steerkit.analysis.plots.default import axis_labels, rows_table
from steerkit.analysis.plots.panels import Heatmap, Panel
from steerkit.analysis.result import AnalysisResult


def panels(result: AnalysisResult) -> list[Panel]:
    """Each map beside its control's, and the rows."""
    found: list[Panel] = []
    for name, array in result.arrays.items():
        for number, words in ((0, ""), (3, ", random vectors")):
            table = [[None if math.isnan(v) else v for v in line] for line in array.values[number].tolist()]
            if any(value is not None for line in table for value in line):
                found.append(
                    Heatmap(
                        f"{name}{words}", table, axis_labels(array, 1), axis_labels(array, 2), "steered layer", "layer",
                        "mean cosine", diverging=True, limits=(-1.0, 1.0),
                    )
                )  # fmt: skip
    return [*found, rows_table("Rows", result.rows)]
