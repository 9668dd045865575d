"""Figures of ``path_patching``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steerkit.analysis.plots.default import rows_table
from steerkit.analysis.plots.panels import Bars, Panel, Table
from steerkit.analysis.plots.series import with_controls
from steerkit.analysis.result import AnalysisResult

SHOWN = 5
"""Tokens a cell of the table."""


def panels(result: AnalysisResult) -> list[Panel]:
    """Of each vector and metric a bar a variant, with its control; the tokens that each variant moves; the rows."""
    found: list[Panel] = []
    for name in result.vectors:
        for metric in dict.fromkeys(row["metric"] for row in result.rows):
            rows = result.find(vector=name, metric=metric)
            found.append(_bars(f"{name}: {metric}", metric, rows))
        found.append(_tokens(result, name))
    return [*found, rows_table("Rows", result.rows)]


def _bars(title: str, metric: str, rows: Sequence[Mapping[str, Any]]) -> Bars:
    shown = with_controls(rows, "vector", "random vector")
    return Bars(title, [row["variant"] for row in rows], shown, metric.split(",")[0].split(" (")[0])


def _tokens(result: AnalysisResult, name: str) -> Table:
    rows = [row for row in result.tables["tokens"] if row["vector"] == name]
    cells = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        sides = [
            ", ".join(
                f"{row['token']} {row['probability, variant - vanilla']:+.3f}"
                for row in rows
                if row["variant"] == variant and row["side"] == side and row["rank"] <= SHOWN
            )
            for side in ("risen", "fallen")
        ]
        cells.append([variant, *sides])
    title = f"{name}: tokens whose probability a variant changes, against vanilla"
    return Table(title, ["variant", "risen", "fallen"], cells, page_only=True)
