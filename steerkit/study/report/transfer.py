"""All transfer analyses of a study as one matrix: recipients and what is put on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from steerkit.analysis.plots import Heatmap
from steerkit.analysis.result import AnalysisResult
from steerkit.study.report.blocks import Block
from steerkit.study.report.read import Study
from steerkit.study.report.words import listed, number

NAMED = 3
"""Arms in a heading."""
METRICS = {"normalised gain": "Share of the own vector's gain", "accuracy": "Accuracy on the recipient"}


def heading(study: Study, record: Mapping[str, Any]) -> str:
    """Whose vectors an analysis is of."""
    arms = list(dict.fromkeys(map(str, record.get("arms") or filter(None, [record.get("arm")]))))
    if not arms:
        return str(record["folder"]).rpartition("/")[2]
    more = [f"{len(arms) - NAMED} more"] if len(arms) > NAMED else []
    return listed([study.label(arm) for arm in arms[:NAMED]] + more)


def matrix(study: Study, look: str) -> Block:
    """Recipients x arms: share of the own vector's gain, and accuracy."""
    found = [(a.record, a.result) for a in study.analyses("transfer") if a.result is not None]
    arms = list(dict.fromkeys(row["arm"] for _, result in found for row in result.rows if row.get("arm")))
    names = [f"{_recipient(result)}: {heading(study, record)}" for record, result in found]
    pictures = []
    for metric, title in METRICS.items():
        values = [[_value(result, metric, arm) for arm in arms] for _, result in found]
        kept = [k for k in range(len(arms)) if any(row[k] is not None for row in values)]
        if not kept:
            continue
        signed = metric != "accuracy"
        pictures.append(
            Heatmap(
                title, [[row[k] for k in kept] for row in values], names, [arms[k] for k in kept], unit=metric,
                diverging=signed, limits=(-1.0, 1.0) if signed else (0.0, 1.0),
            )
        )  # fmt: skip
    finding = []
    for _, result in found:
        gains = {arm: value for arm in arms if (value := _value(result, "normalised gain", arm)) is not None}
        if gains:
            best = max(gains, key=lambda arm: gains[arm])
            finding.append(f"On {_recipient(result)}, {best} has the largest share of its own vector's gain, "
                           f"{number(gains[best])}.")  # fmt: skip
        else:
            finding.append(f"On {_recipient(result)} there is no gain of a vector of its own to take a share of.")
    data = [f"{record['folder']}/analysis.json" for record, _ in found]
    return Block(pictures, finding, look, "All recipients", study.command, data)


def _recipient(result: AnalysisResult) -> str:
    return PurePath(str(result.settings.get("recipient") or "itself")).name


def _value(result: AnalysisResult, metric: str, arm: str) -> float | None:
    rows = result.find(metric=metric, arm=arm)
    return rows[0]["value"] if rows else None
