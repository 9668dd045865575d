"""Learning curves: accuracy of the training's own samples, step by step."""

from __future__ import annotations

from collections.abc import Sequence

from steerkit.analysis.plots import Lines, Series
from steerkit.study.report.arms import Arm, first_command, group, ordered
from steerkit.study.report.blocks import Block, Section
from steerkit.study.report.read import Study
from steerkit.study.report.words import percent

WINDOW = 5
"""Steps of the moving mean."""
TOGETHER = 6
"""Curves of a figure."""


def curves(study: Study) -> Section:
    """A figure of up to six arms each, by role; single layers apart."""
    title, question = "Learning curves", "How fast does each arm learn, and does it stay?"
    found: dict[str, list[tuple[Arm, Series, list[int]]]] = {}
    unjudged = []
    for arm in ordered(study):
        made = _curve(study, arm)
        if made is None and study.curves(arm, "reward"):
            unjudged.append(study.label(arm["arm"]))
        if made is not None:
            one_layer = arm.get("role") == "steering" and len(arm.get("layers") or []) == 1
            found.setdefault("one layer" if one_layer else group(arm), []).append((arm, *made))
    silent = [f"Not judged while they trained, since none of their rewards is a verifier: {', '.join(unjudged)}."]
    if not found:
        missing = silent if unjudged else ["No run left a metrics.csv."]
        return Section("curves", title, question, missing=missing)
    pictures = []
    for name, of_group in found.items():
        parts = [of_group[start : start + TOGETHER] for start in range(0, len(of_group), TOGETHER)]
        for number, part in enumerate(parts, start=1):
            steps = max((steps for _, _, steps in part), key=len)
            heading = name.capitalize() + (f" ({number})" if len(parts) > 1 else "")
            lines = [_filled(series, len(steps)) for _, series, _ in part]
            pictures.append(Lines(heading, steps, lines, "step", "right samples of training, %"))
    shown = [(arm, series) for of_group in found.values() for arm, series, _ in of_group]
    best, worst = (pick(shown, key=lambda pair: pair[1].y[-1] or 0.0) for pick in (max, min))
    arms = [arm for arm, _ in shown]
    highest = f"At the end of training {best[1].name} stands highest ({percent(best[1].y[-1])} %)"
    says = [f"{highest}, {worst[1].name} lowest ({percent(worst[1].y[-1])} %)."] if len(shown) > 1 else []
    block = Block(
        pictures,
        says + (silent if unjudged else []),
        f"Means over seeds of a moving mean over {WINDOW} steps; bands go from the lowest to the highest seed. "
        "These are the samples of training, not the test set.",
        command=first_command(arms),
        data=[str(run["curve"]) for run in arms[0].get("runs") or [] if run.get("curve")],
        facts=[f"{sum(len(arm.get('runs') or []) for arm in arms)} runs, a metrics.csv in each one's folder"],
    )  # fmt: skip
    return Section("curves", title, question, [block])


def _curve(study: Study, arm: Arm) -> tuple[Series, list[int]] | None:
    runs = study.curves(arm, "accuracy")
    if not runs:
        return None
    shortest = min(map(len, runs))
    smooth = [_moving([value for _, value in run[:shortest]]) for run in runs]
    columns = list(zip(*smooth, strict=True))
    low, high = ([100 * pick(column) for column in columns] for pick in (min, max))
    mean = [100 * sum(column) / len(column) for column in columns]
    ends = (low, high) if len(runs) > 1 else (None, None)
    return Series(study.label(arm["arm"]), mean, *ends), [step for step, _ in runs[0][:shortest]]


def _moving(values: Sequence[float]) -> list[float]:
    """The mean of each value and the up to four before it."""
    windows = (values[max(0, k + 1 - WINDOW) : k + 1] for k in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _filled(series: Series, length: int) -> Series:
    """A shorter run's curve ends earlier."""
    gap = [None] * (length - len(series.y))
    low, high = (None if end is None else [*end, *gap] for end in (series.low, series.high))
    return Series(series.name, [*series.y, *gap], low, high)
