"""Figures of ``first_token``."""

from __future__ import annotations

import math

from steerkit.analysis.plots.default import rows_table
from steerkit.analysis.plots.panels import Bars, Lines, Panel, Series, Table
from steerkit.analysis.result import AnalysisResult


def panels(result: AnalysisResult) -> list[Panel]:
    """Of each vector the change by position, first-token distributions, substitutions, accuracies; the rows."""
    found: list[Panel] = []
    for name, array in result.arrays.items():
        curves = [[None if math.isnan(v) else v for v in line] for line in array.values.tolist()]
        series = [Series(name, curves[0]), Series("random vectors", curves[1], control=True)]
        title = f"{name}: change of the next token along steered completions"
        found.append(Lines(title, list(range(1, len(curves[0]) + 1)), series, "generated token", "total variation"))
        openings = [row for row in result.tables["first"] if row["vector"] == name]
        found.append(
            Bars(
                f"{name}: the first generated token",
                [row["token"] for row in openings],
                [Series(run, [row[f"{run} probability"] for row in openings]) for run in ("base", "steered")],
                "mean probability",
            )
        )
        pairs = [row for row in result.tables["pairs"] if row["vector"] == name]
        columns = ["position", "would be", "boosted", "count", "positions"]
        cells = [[str(row[column]) for column in columns] for row in pairs]
        if cells:
            found.append(Table(f"{name}: substitutions", columns, cells))
        for temperature in dict.fromkeys(row.get("temperature") for row in result.find(metric="accuracy")):
            rows = result.find(metric="accuracy", vector=name, temperature=temperature)
            both = []
            for label, value, ends in (("accuracy", "value", "ci95"), ("control", "control", "control_ci95")):
                low, high = ([row[ends][side] if row[ends] else None for row in rows] for side in (0, 1))
                both.append(Series(label, [row[value] for row in rows], low, high, control=value == "control"))
            title = f"{name}: accuracy at temperature {temperature:g}"
            found.append(Bars(title, [row["arm"] for row in rows], both, "accuracy"))
    return [*found, rows_table("Rows", result.rows)]
