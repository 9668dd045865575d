"""Figures of ``geometry``."""

from __future__ import annotations

from steerkit.analysis.plots.default import axis_labels, rows_table
from steerkit.analysis.plots.panels import Bars, Heatmap, Panel, Series
from steerkit.analysis.result import AnalysisResult


def panels(result: AnalysisResult) -> list[Panel]:
    """Cosines of all directions with all, sizes against the stream, and the rows."""
    cosines = result.arrays["cosines"]
    table = [[None if value != value else value for value in line] for line in cosines.values.tolist()]
    found: list[Panel] = [
        Heatmap("Cosines between directions", table, axis_labels(cosines, 0), axis_labels(cosines, 1), unit="cosine",
                diverging=True, limits=(-1.0, 1.0)),
        _sizes(result),
    ]  # fmt: skip
    return [*found, rows_table("Rows", result.rows)]


def _sizes(result: AnalysisResult) -> Bars:
    rows = result.find(metric="norm / residual norm")
    layers = list(dict.fromkeys(row["point"] for row in rows))
    series = []
    for name in result.vectors:
        of_one = {row["point"]: row for row in rows if row["vector"] == name}
        picked = [of_one.get(layer) for layer in layers]
        ends = [row["ci95"] if row and row["ci95"] else None for row in picked]
        series.append(
            Series(
                name,
                [row["value"] if row else None for row in picked],
                [end[0] if end else None for end in ends],
                [end[1] if end else None for end in ends],
            )
        )
    return Bars("Norm of what is added / norm of the residual stream", layers, series, "ratio (95 % over prompts)")
