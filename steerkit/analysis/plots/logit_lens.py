"""Figures of ``logit_lens``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from steerkit.analysis.plots.default import rows_table
from steerkit.analysis.plots.panels import Heatmap, Lines, Panel, Table
from steerkit.analysis.plots.series import with_controls
from steerkit.analysis.result import AnalysisResult

SHOWN = 8
"""Tokens a row of a figure."""
STEPS = 24
"""Generated tokens that a figure of the stream shows."""


def panels(result: AnalysisResult) -> list[Panel]:
    """Of each vector: the direct lens, the induced lens, the effect by layer, the stream; then the rows."""
    found: list[Panel] = []
    for name in result.vectors:
        found += _direct(result, name)
        found += _induced(result, name)
        found.append(_gain(result, name))
        found += _stream(result, name)
    return [*found, rows_table("Rows", result.rows)]


def _direct(result: AnalysisResult, name: str) -> list[Panel]:
    rows = [row for row in result.tables["direct"] if row["vector"] == name]
    found: list[Panel] = []
    for side in ("top", "bottom"):
        through = [row for row in rows if row["side"] == side and row["lens"] == "norm"]
        places = list(dict.fromkeys(row["point"] for row in through))
        if places:
            by_place = [[row for row in through if row["point"] == place] for place in places]
            title = f"{name}: {side} tokens of the vector itself"
            found.append(_token_map(title, places, by_place))
    columns = ["point", "lens", "side", "rank", "token", "score", "cosine", "random score", "random share beyond"]
    keys = ["point", "lens", "side", "rank", "token", "score", "cosine", "random_score", "random_share_beyond"]
    cells = [[f"{row[key]:.3g}" if isinstance(row[key], float) else str(row[key]) for key in keys] for row in rows]
    return [*found, Table(f"{name}: the vector itself, all scores", columns, cells, page_only=True)]


def _token_map(title: str, places: Sequence[str], by_place: Sequence[Sequence[Mapping[str, Any]]]) -> Heatmap:
    shown = [of_one[:SHOWN] for of_one in by_place]
    return Heatmap(
        title,
        [[row["cosine"] for row in of_one] for of_one in shown],
        list(places),
        [str(rank + 1) for rank in range(len(shown[0]))],
        column_axis="rank by score",
        unit="cosine",
        diverging=True,
        texts=[[row["token"][:10] for row in of_one] for of_one in shown],
    )


def _induced(result: AnalysisResult, name: str) -> list[Panel]:
    found: list[Panel] = []
    for side in ("top", "bottom"):
        rows = [row for row in result.tables["induced"] if row["vector"] == name and row["side"] == side]
        layers = list(dict.fromkeys(row["layer"] for row in rows))
        if not layers:
            continue
        by_layer = [[row for row in rows if row["layer"] == layer] for layer in layers]
        title = f"{name}: {side} tokens of the induced difference"
        found.append(_token_map(title, [f"layer {layer}" for layer in layers], by_layer))
    return found


def _gain(result: AnalysisResult, name: str) -> Lines:
    metric = "lens log-probability of the generated token, steered - base (nats)"
    rows = result.find(metric=metric, vector=name)
    series = with_controls(rows, name, "random vectors")
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
