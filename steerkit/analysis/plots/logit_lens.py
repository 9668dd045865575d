"""Figures of ``logit_lens``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from steerkit.analysis.plots.default import rows_table
from steerkit.analysis.plots.panels import Heatmap, Lines, Panel, Series, Table
from steerkit.analysis.result import AnalysisResult

SHOWN = 8
"""Tokens a row of a figure."""
STEPS = 24
"""Generated tokens that a figure of the stream shows."""


def panels(result: AnalysisResult) -> list[Panel]:
    """Of each vector: the direct lens, the induced lens, the effect by layer, the stream; then the rows."""
    found: list[Panel] = []
    for name in result.vectors:
        found.append(_direct(result, name))
        found += _induced(result, name)
        found.append(_gain(result, name))
        found += _stream(result, name)
    return [*found, rows_table("Rows", result.rows)]


def _direct(result: AnalysisResult, name: str) -> Table:
    rows = [row for row in result.tables["direct"] if row["vector"] == name]
    places = list(dict.fromkeys((row["point"], row["lens"]) for row in rows))
    cells = []
    for point, lens in places:
        of_one = [row for row in rows if (row["point"], row["lens"]) == (point, lens)]
        top, bottom = ([row for row in of_one if row["side"] == side] for side in ("top", "bottom"))
        cells.append([point, lens, _listing(top), f"{top[0]['random_score']:.3g}", _listing(bottom)])
    title = f"{name}: tokens that the vector itself points at"
    return Table(title, ["point", "lens", "top (score)", "random top", "bottom (score)"], cells)


def _listing(rows: Sequence[Mapping[str, Any]], most: int = 5) -> str:
    return ", ".join(f"{row['token']} {row['score']:.3g}" for row in rows[:most])


def _induced(result: AnalysisResult, name: str) -> list[Panel]:
    found: list[Panel] = []
    for side in ("top", "bottom"):
        rows = [row for row in result.tables["induced"] if row["vector"] == name and row["side"] == side]
        layers = list(dict.fromkeys(row["layer"] for row in rows))
        if not layers:
            continue
        by_layer = [[row for row in rows if row["layer"] == layer][:SHOWN] for layer in layers]
        found.append(
            Heatmap(
                f"{name}: {side} tokens of the induced difference",
                [[row["cosine"] for row in of_one] for of_one in by_layer],
                [f"layer {layer}" for layer in layers],
                [str(rank + 1) for rank in range(len(by_layer[0]))],
                column_axis="rank",
                unit="cosine",
                diverging=True,
                texts=[[row["token"] for row in of_one] for of_one in by_layer],
            )
        )
    return found


def _gain(result: AnalysisResult, name: str) -> Lines:
    metric = "lens log-probability of the generated token, steered - base (nats)"
    rows = result.find(metric=metric, vector=name)
    series = [
        Series(
            label,
            [row[value] for row in rows],
            [row[ends][0] if row[ends] else None for row in rows],
            [row[ends][1] if row[ends] else None for row in rows],
            control=value == "control",
        )
        for label, value, ends in ((name, "value", "ci95"), ("random vectors", "control", "control_ci95"))
    ]
    title = f"{name}: what the lens gains on the generated tokens"
    return Lines(title, [row["layer"] for row in rows], series, "layer", "nats, steered - base", line_at=0.0)


def _stream(result: AnalysisResult, name: str) -> list[Panel]:
    rows = [row for row in result.tables["stream"] if row["vector"] == name]
    if not rows:
        return []
    text = rows[0]["text"]
    rows = [row for row in rows if row["text"] == text and row["step"] < STEPS]
    layers = sorted({row["layer"] for row in rows}, reverse=True)
    steps = sorted({row["step"] for row in rows})
    at = {(row["layer"], row["step"]): row for row in rows}
    names = [at[layers[0], step]["generated"] for step in steps]
    found: list[Panel] = []
    for run in ("base", "steered"):
        found.append(
            Heatmap(
                f"{name}: the stream along a steered completion, {run}",
                [[_known(at[layer, step][f"{run}_probability"]) for step in steps] for layer in layers],
                [f"layer {layer}" for layer in layers],
                names,
                column_axis="generated token (in the cells: what the lens says)",
                unit="probability",
                limits=(0.0, 1.0),
                texts=[[at[layer, step][run][:8] for step in steps] for layer in layers],
            )
        )
    return found


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
