"""Each arm's share of what full fine-tuning gains, with an interval over problems (in pairs) and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steerkit.study.claims.estimates import gain_share
from steerkit.study.claims.evidence import Evidence, Missing
from steerkit.study.claims.measures import BASE
from steerkit.study.report.arms import ROLES, falling, group, said, series_of
from steerkit.study.report.blocks import Block, Dots, Section
from steerkit.study.report.read import Study
from steerkit.study.report.words import interval, listed, percent

FULL = "full"
Row = Mapping[str, Any]


def shares_of_full(study: Study, temperature: str) -> list[Row]:
    """A row an arm: ``(arm - base) / (full - base)`` of its problems' mean accuracies, as the verdicts have it.

    ``gain_share`` resamples problems, all arms of a problem together, and training seeds. ``value`` and ``ci95`` are
    None where full fine-tuning's own gain may be 0. Empty without samples, base or full fine-tuning.
    """
    evidence = Evidence(study.results, study.folder)
    found: list[Row] = []
    for arm in study.arms:
        name = arm["arm"]
        if name in (BASE, FULL) or arm.get("role") == "base":
            continue
        try:
            tables, _ = evidence.samples.tables([name, FULL, BASE], float(temperature))
        except Missing:
            continue
        share = gain_share(tables[name], tables[FULL], tables[BASE], study.draws)
        value, ends = (None, None) if share is None else (share.mean, [share.low, share.high])
        found.append({"arm": name, "role": arm.get("role"), "value": value, "ci95": ends, "n": tables[name].shape[1]})
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
        "% of full fine-tuning's gain",
        [group(study.arm(name)) for name in names],
        line_at=100.0,
    )
    block = Block(
        [picture] if any(row["value"] is not None for rows in by_temperature.values() for row in rows) else [],
        [_sentence(study, t, rows) for t, rows in by_temperature.items()],
        "100 % is full fine-tuning, 0 % the base. No points: full fine-tuning's own gain may be 0 there.",
        command=study.command,
        data=[study.samples_file],
        facts=[
            "(arm - base) / (full - base)",
            "problems resampled in pairs (all arms of a problem together), and training seeds: as in the verdicts",
        ],
    )
    return Section("gain", title, question, [block])


def _in_percent(row: Row | None) -> dict[str, float]:
    if row is None or row["value"] is None:
        return {}
    low, high = row["ci95"]
    return {"value": 100 * row["value"], "low": 100 * low, "high": 100 * high}


def _sentence(study: Study, t: str, rows: Sequence[Row]) -> str:
    """The static vector on all layers and the best steering arm."""
    gain = f"full fine-tuning goes from {said(study.arm('base'), t)} to {said(study.arm('full'), t)}"
    steering = [row for row in rows if row["role"] == "steering" and row["value"] is not None]
    if all(row["value"] is None for row in rows):
        return f"At temperature {t} {gain}: that gain may be 0, so a share of it says nothing (inconclusive)."
    if not steering:
        return f"At temperature {t} {gain}; no steering arm was measured beside it."
    best = max(steering, key=lambda row: row["value"])
    shown = [row for row in steering if row["arm"] == "static_all" or row is best]
    parts = []
    for row in shown:
        low, high = row["ci95"]
        ends = interval(100 * low, 100 * high, "%")
        parts.append(f"{study.label(row['arm'])} reaches {percent(100 * row['value'])} % of that gain ({ends})")
    return f"At temperature {t} {gain}; {listed(parts)}."
