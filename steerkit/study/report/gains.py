"""Each arm's share of what full fine-tuning gains, with an interval over problems in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steerkit.analysis.accuracy import ratio_row
from steerkit.study.report.arms import ROLES, falling, group, said, series_of
from steerkit.study.report.blocks import Block, Dots, Section
from steerkit.study.report.read import Study
from steerkit.study.report.words import interval, listed, percent

METRIC = "share of full fine-tuning's gain"
Row = Mapping[str, Any]


def shares_of_full(study: Study, temperature: str, seed: int = 0) -> list[Row]:
    """A row an arm: (arm - base) / (full - base), both means over seeds and samples of the same problems.

    The bootstrap resamples problems, all arms of a problem together; ``ci95`` is None where full fine-tuning's own
    gain may be 0 (``ratio_row``). Empty without samples, base or full fine-tuning.
    """
    if study.samples is None:
        return []
    base, full = (study.samples.shares(name, temperature) for name in ("base", "full"))
    found: list[Row] = []
    for arm in study.arms:
        if arm["arm"] in ("base", "full") or arm.get("role") == "base":
            continue
        own = study.samples.shares(arm["arm"], temperature)
        common = sorted(base.keys() & full.keys() & own.keys())
        if not common:
            continue
        low, high, of_arm = (np.array([shares[name] for name in common]) for shares in (base, full, own))
        found.append(ratio_row(METRIC, of_arm - low, high - low, seed, arm=arm["arm"], role=arm.get("role")))
    return found


def gains(study: Study) -> Section:
    """Share of full fine-tuning's gain, by arm and temperature."""
    title, question = (
        "Share of the full fine-tuning gain",
        "How much of what full fine-tuning gains does each arm reach?",
    )
    by_temperature = {t: shares_of_full(study, t) for t in falling(study)}
    names = list(dict.fromkeys(row["arm"] for rows in by_temperature.values() for row in rows))
    if not names:
        lacking = [name for name in ("base", "full") if study.arm(name) is None]
        reason = f"The study has no arm {listed(lacking)}." if lacking else f"{study.samples_file} gives no shares."
        return Section("gain", title, question, missing=[reason])
    headings = [*ROLES.values(), "other"]
    names.sort(key=lambda name: headings.index(group(study.arm(name))))
    series = []
    for t, rows in by_temperature.items():
        of = {row["arm"]: row for row in rows}
        series.append(series_of(f"temperature {t}", [_in_percent(of.get(name)) for name in names]))
    picture = Dots(
        title,
        [study.label(name) for name in names],
        series,
        "% of full fine-tuning's gain over the base",
        [group(study.arm(name)) for name in names],
        line_at=100.0,
    )
    block = Block(
        [picture] if any(row["value"] is not None for rows in by_temperature.values() for row in rows) else [],
        [_sentence(study, t, rows) for t, rows in by_temperature.items()],
        "100 % is full fine-tuning, 0 % the base. Points without a line have no interval: there full fine-tuning's "
        "own gain may be 0.",
        command=study.command,
        data=[study.samples_file],
        facts=["(arm - base) / (full - base)", "problems resampled in pairs: all arms of a problem together"],
    )
    return Section("gain", title, question, [block])


def _in_percent(row: Row | None) -> dict[str, float]:
    if row is None or row["value"] is None:
        return {}
    ends = dict(zip(("low", "high"), (100 * end for end in row["ci95"]), strict=True)) if row["ci95"] else {}
    return {"value": 100 * row["value"], **ends}


def _sentence(study: Study, t: str, rows: Sequence[Row]) -> str:
    """The static vector on all layers and the best steering arm."""
    gain = f"full fine-tuning goes from {said(study.arm('base'), t)} to {said(study.arm('full'), t)}"
    steering = [row for row in rows if row["role"] == "steering" and row["value"] is not None]
    if all(row["ci95"] is None for row in rows):
        return f"At temperature {t} {gain}: that gain may be 0, so a share of it says nothing (inconclusive)."
    if not steering:
        return f"At temperature {t} {gain}; no steering arm was measured beside it."
    best = max(steering, key=lambda row: row["value"])
    shown = [row for row in steering if row["arm"] == "static_all" or row is best]
    parts = []
    for row in shown:
        ends = "no interval"
        if row["ci95"]:
            low, high = row["ci95"]
            ends = interval(100 * low, 100 * high, "%")
        parts.append(f"{study.label(row['arm'])} reaches {percent(100 * row['value'])} % of that gain ({ends})")
    return f"At temperature {t} {gain}; {listed(parts)}."
