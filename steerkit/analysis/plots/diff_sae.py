"""Figures of ``diff_sae``."""

from __future__ import annotations

from steerkit.analysis.plots.default import rows_table
from steerkit.analysis.plots.panels import Bars, Lines, Panel, Series, Table, Tokens
from steerkit.analysis.plots.series import series
from steerkit.analysis.result import AnalysisResult


def panels(result: AnalysisResult) -> list[Panel]:
    """The causal test, the ranking, top activating texts, the training's curves; then the rows."""
    found: list[Panel] = [_causal(result), _ranking(result), *_texts(result)]
    if "curves" in result.arrays:
        curves = result.arrays["curves"]
        steps = [int(step) for step in curves.labels["step"]]
        series = [
            Series(n, line) for n, line in zip(curves.labels["curve"], curves.values.tolist(), strict=True)
        ]  # fmt: skip
        found.append(Lines("Training of the SAE", steps, series, "step", "share"))
    facts = [
        [str(r["feature"]), f"{r['difference'] or 0:.3g}", f"{r['active_rate']:.3g}", f"{r['mean_when_active']:.3g}",
         f"{r['direction_norm']:.3g}"]
        for r in result.tables["features"]
    ]  # fmt: skip
    columns = ["feature", "right - wrong", "active rate", "mean activation", "norm of its direction"]
    return [*found, Table("Features", columns, facts), rows_table("Rows", result.rows)]


def _causal(result: AnalysisResult) -> Bars:
    rows = [row for row in result.rows if row["metric"] == "accuracy"]
    labels = [f"{row['run']} {row.get('feature', '')}".strip() for row in rows]
    random = [row if "random" in row["run"] else None for row in rows]
    own = [row if "random" not in row["run"] else None for row in rows]
    series = []
    for name, picked, control in (("feature", own, False), ("random active feature", random, True)):
        low, high = ([row["ci95"][s] if row and row["ci95"] else None for row in picked] for s in (0, 1))
        series.append(Series(name, [row["value"] if row else None for row in picked], low, high, control))
    steered = next(row["value"] for row in rows if row["run"] == "steered")
    return Bars("Accuracy on held-out prompts while features are edited", labels, series, "accuracy", steered)


def _ranking(result: AnalysisResult) -> Bars:
    rows = [row for row in result.rows if row["metric"] == "active rate, right - wrong" and row["value"] is not None]
    signed = [{**row, "control": (row["control"] or 0.0) * (1 if row["value"] >= 0 else -1)} for row in rows]
    shown = [series("right - wrong", rows), series("shuffled verdicts, by rank", signed, control=True)]
    return Bars("Active rate of features in right - wrong completions", [str(r["feature"]) for r in rows], shown)


def _texts(result: AnalysisResult) -> list[Panel]:
    found: list[Panel] = []
    for feature in list(dict.fromkeys(row["feature"] for row in result.tables["texts"]))[:4]:
        texts: dict[str, list[tuple[str, float | None]]] = {}
        for row in result.tables["texts"]:
            if row["feature"] == feature:
                name = f"{row['text']}, sample {row['sample']}"
                texts.setdefault(name, []).append((row["token"].replace("␣", " "), row["activation"]))
        found.append(Tokens(f"Feature {feature}: top texts", list(texts.values()), "activation", list(texts)))
    return found
