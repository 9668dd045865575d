"""Figures of ``first_token``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from steerkit.analysis.plots.default import rows_table
from steerkit.analysis.plots.panels import Bars, Lines, Panel, Series, Table
from steerkit.analysis.plots.series import with_controls
from steerkit.analysis.result import AnalysisResult

OPENING = "probability of the first generated token"


def panels(result: AnalysisResult) -> list[Panel]:
    """The base's first tokens; of each vector the change by position, first tokens, pairs, accuracies; the rows."""
    base = result.find(metric=OPENING, vector="base")
    found: list[Panel] = [_openings("base", base)]
    for name, array in result.arrays.items():
        value, low, high, control, _ = ([None if math.isnan(v) else v for v in line] for line in array.values.tolist())
        series = [Series(name, value, low, high), Series("random vectors", control, control=True)]
        title = f"{name}: change of the next token along steered completions"
        found.append(Lines(title, list(range(1, len(value) + 1)), series, "generated token", "total variation"))
        found.append(_openings(name, result.find(metric=OPENING, vector=name), base))
        columns = ["position", "would be", "boosted", "count", "positions"]
        cells = [[str(row[column]) for column in columns] for row in result.tables["pairs"] if row["vector"] == name]
        if cells:
            found.append(Table(f"{name}: substitutions", columns, cells))
        for temperature in dict.fromkeys(row["temperature"] for row in result.find(metric="accuracy")):
            rows = result.find(metric="accuracy", vector=name, temperature=temperature)
            title = f"{name}: accuracy at temperature {temperature:g}"
            found.append(_bars(title, [row["arm"] for row in rows], rows, "accuracy"))
    return [*found, rows_table("Rows", result.rows)]


def _openings(name: str, rows: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]] = ()) -> Bars:
    """A vector's first tokens, its controls', and the base's where they are among its likeliest."""
    bars = _bars(f"{name}: the first generated token", [row["token"] for row in rows], rows, "mean probability")
    known = {row["token_id"]: row["value"] for row in base}
    before = [Series("base", [known.get(row["token_id"]) for row in rows])] if base else []
    return replace(bars, series=[*bars.series, *before])


def _bars(title: str, labels: Sequence[str], rows: Sequence[Mapping[str, Any]], unit: str) -> Bars:
    return Bars(title, labels, with_controls(rows, "measured", "control"), unit)
