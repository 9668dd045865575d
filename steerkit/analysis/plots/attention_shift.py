"""Figures of ``attention_shift``."""

from __future__ import annotations

from steerkit.analysis.plots.default import axis_labels, rows_table
from steerkit.analysis.plots.panels import Heatmap, Lines, Panel
from steerkit.analysis.plots.series import with_controls
from steerkit.analysis.result import AnalysisResult


def panels(result: AnalysisResult) -> list[Panel]:
    """Of each vector the curve over layers with its control, and the heads' maps on one scale; the rows."""
    found: list[Panel] = []
    for name, array in result.arrays.items():
        rows = result.find(vector=name)
        series = with_controls(rows, name, "random vectors")
        title = f"{name}: how far attention moves"
        found.append(Lines(title, [row["layer"] for row in rows], series, "layer", "total variation", line_at=0.0))
        top = max(float(array.values[[0, 3]].nan_to_num().max()), 1e-6)
        for number, words in ((0, ""), (3, ", random vectors")):
            found.append(
                Heatmap(
                    f"{name}: attention moved{words}", array.values[number].tolist(), axis_labels(array, 1),
                    axis_labels(array, 2), "layer", "head", "total variation", limits=(0.0, top),
                )
            )  # fmt: skip
    return [*found, rows_table("Rows", result.rows)]
