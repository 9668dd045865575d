"""Figures of ``token_scale``."""

from __future__ import annotations

import math

from steerkit.analysis.plots.default import axis_labels, rows_table
from steerkit.analysis.plots.panels import Bars, Heatmap, Panel, Table, Tokens
from steerkit.analysis.plots.series import series
from steerkit.analysis.result import AnalysisResult

_LIMIT = 8.0
"""The heat map's colours end at 8 times a segment's length, and 1/8."""


def panels(result: AnalysisResult) -> list[Panel]:
    """Of each vector: coloured text, shares of mass against length, the tokens with most; then the rows."""
    found: list[Panel] = []
    for name in result.vectors:
        point = _strongest(result, name)
        found += [_text(result, name, point), _shares(result, name), _by_point(result, name), _top(result, name, point)]
    return [*found, rows_table("Rows", result.rows)]


def _strongest(result: AnalysisResult, name: str) -> str:
    """The hook point with the largest mean size in the table of tokens."""
    sums: dict[str, float] = {}
    for row in result.tables["tokens"]:
        if row["vector"] == name and row["point"] != "all":
            sums[row["point"]] = sums.get(row["point"], 0.0) + abs(row["size"])
    return max(sums, key=lambda point: sums[point])


def _text(result: AnalysisResult, name: str, point: str) -> Tokens:
    rows = [row for row in result.tables["tokens"] if (row["vector"], row["point"]) == (name, point)]
    texts: dict[str, list[tuple[str, float | None]]] = {}
    for row in rows:
        texts.setdefault(row["text"], []).append((row["token"].replace("␣", " "), row["size"]))
    return Tokens(f"{name} at {point}: size at each token", list(texts.values()), "norm added / residual norm",
                  list(texts), diverging=True)  # fmt: skip


def _shares(result: AnalysisResult, name: str) -> Bars:
    point = result.arrays[f"shares {name}"].labels["hook point"][-1]
    lengths = result.find(metric="share of tokens", vector=name)
    trained, untrained = (
        result.find(metric="share of mass", vector=name, point=point, gate=gate) for gate in ("trained", "untrained")
    )
    shown = [
        series("trained", trained),
        series("share of the prompt's tokens", lengths),
    ]
    if untrained:
        shown += [
            series("untrained gate", untrained),
            series("shuffled gates", trained, control=True),
        ]
    title = f"{name}: share of the prompt's mass by segment" + ("" if point == "all" else f", {point}")
    return Bars(title, [row["segment"] for row in lengths], shown, "share")


def _by_point(result: AnalysisResult, name: str) -> Heatmap:
    rows = result.find(metric="share of mass / share of tokens", vector=name, gate="trained")
    points = list(dict.fromkeys(row["point"] for row in rows))
    segments = axis_labels(result.arrays[f"shares {name}"], 2)
    at = {(row["point"], row["segment"]): row["value"] for row in rows}
    table = [[at[point, segment] for segment in segments] for point in points]
    most = math.log2(_LIMIT)
    return Heatmap(
        f"{name}: share of mass / share of tokens", [[_log(v) for v in line] for line in table], points, segments,
        unit="log2 of the ratio", diverging=True, limits=(-most, most),
        texts=[["" if v is None else f"{v:.2g}" for v in line] for line in table],
    )  # fmt: skip


def _log(value: float | None) -> float | None:
    return None if value is None else math.log2(max(value, 2.0**-20))


def _percent(value: float | None) -> str:
    """A gate that is 0 everywhere has no shares."""
    return "" if value is None else f"{value:.1%}"


def _top(result: AnalysisResult, name: str, point: str) -> Table:
    rows = [row for row in result.tables["top_tokens"] if (row["vector"], row["point"]) == (name, point)]
    cells = [
        [row["token"], str(row["n"]), f"{row['mean_signed_size']:.3g}", _percent(row["share_of_mass"]),
         _percent(row["share_of_tokens"])]
        for row in rows
    ]  # fmt: skip
    columns = ["token", "n", "mean size (signed)", "share of mass", "share of tokens"]
    return Table(f"{name} at {point}: tokens with the largest mean size", columns, cells)
