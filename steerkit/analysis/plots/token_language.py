"""Figures of ``token_language``."""

from __future__ import annotations

from collections.abc import Sequence

from steerkit.analysis.plots.default import rows_table
from steerkit.analysis.plots.panels import Bars, Heatmap, Lines, Panel, Series, Table
from steerkit.analysis.plots.series import series
from steerkit.analysis.result import AnalysisResult
from steerkit.analysis.token_language import FALLING, FOREIGN, LIFT, MASS, RISING

SHOWN = 8
"""Tokens of each side in the table of tokens."""


def panels(result: AnalysisResult) -> list[Panel]:
    """Of each vector: foreign and home by layer, all classes' logits, rising and falling, tokens; the classes."""
    found: list[Panel] = []
    known = {row["kind"] for row in result.rows}
    sides = [kind for kind in (FOREIGN, result.settings["home"]) if kind in known] or sorted(known)[:1]
    for name in result.vectors:
        if not result.find(metric=LIFT, vector=name):  # a vector of zeros changes no logit
            continue
        found += [
            _by_layer(result, name, MASS, sides, "steered - base"),
            _by_layer(result, name, LIFT, sides, "standard deviations"),
            _all_classes(result, name),
            _shares(result, name),
            _tokens(result, name),
        ]
    return [*found, _classes(result), rows_table("Rows", result.rows)]


def _by_layer(result: AnalysisResult, name: str, metric: str, kinds: Sequence[str], unit: str) -> Lines:
    rows = {kind: result.find(metric=metric, vector=name, kind=kind) for kind in kinds}
    shown = [series(kind, of_one) for kind, of_one in rows.items()]
    shown += [series(f"{kind}, random vectors", of_one, control=True) for kind, of_one in rows.items()]
    layers = [row["layer"] for row in rows[kinds[0]]]
    return Lines(f"{name}: {metric}", layers, shown, "layer", unit, line_at=0.0)


def _all_classes(result: AnalysisResult, name: str) -> Heatmap:
    rows = result.find(metric=LIFT, vector=name)
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    at = {(row["layer"], row["kind"]): row["value"] for row in rows}
    table = [[at[layer, kind] for kind in kinds] for layer in layers]
    return Heatmap(
        f"{name}: mean logit change of each class", table, [f"layer {layer}" for layer in layers], kinds,
        unit="standard deviations", diverging=True,
    )  # fmt: skip


def _shares(result: AnalysisResult, name: str) -> Bars:
    """At the last layer, against the vocabulary."""
    rising, falling = (result.find(metric=metric, vector=name) for metric in (RISING, FALLING))
    last = max((row["layer"] for row in rising), default=0)
    of_last = [[row for row in rows if row["layer"] == last] for rows in (rising, falling)]
    vocabulary = {row["kind"]: row["value"] for row in result.find(metric="share of the vocabulary")}
    kinds = [row["kind"] for row in of_last[0]]
    shown = [
        series("rising", of_last[0]),
        series("falling", of_last[1]),
        Series("vocabulary", [vocabulary[kind] for kind in kinds]),
        series("rising, random vectors", of_last[0], control=True),
    ]
    return Bars(f"{name}: classes of the rising and falling tokens, layer {last}", kinds, shown, "share")


def _tokens(result: AnalysisResult, name: str) -> Table:
    rows = [row for row in result.tables["tokens"] if row["vector"] == name]
    cells = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        sides = [
            [row for row in rows if row["layer"] == layer and row["side"] == side][:SHOWN]
            for side in ("rising", "falling")
        ]
        cells.append([str(layer), *(", ".join(f"{r['token']} ({r['kind']})" for r in side) for side in sides)])
    return Table(f"{name}: rising and falling tokens", ["layer", "rising", "falling"], cells)


def _classes(result: AnalysisResult) -> Table:
    cells = [
        [row["kind"], str(row["tokens"]), f"{row['share']:.1%}", " ".join(row["examples"])]
        for row in result.tables["classes"]
    ]
    return Table("Classes of the vocabulary", ["class", "tokens", "share", "some of them"], cells)
