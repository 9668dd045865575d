"""The figure of a sweep: accuracy against layer, learning rate or scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steerkit.files import atomic_path

AXES = ("layer", "scale", "lr", "seed")
"""What may stand on the horizontal axis, the first that varies."""


def plot_sweep(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write a PNG: a line a temperature through the means, a point with its 95 % interval for each policy, the base as
    a dashed line.

    Args:
        rows: of ``results.json``; those of the sweep's policies hold ``sweep``, their place on its axes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    own = [row for row in rows if row["arm"].startswith("steered") and row.get("sweep") and row["accuracy"] is not None]
    if not own:
        return
    axis = next((name for name in AXES if len({row["sweep"].get(name) for row in own}) > 1), "seed")
    figure = Figure(figsize=(6, 4), layout="constrained")
    canvas, plot = FigureCanvasAgg(figure), figure.add_subplot()
    for number, temperature in enumerate(sorted({row["temperature"] for row in own})):
        color, here = f"C{number}", [row for row in own if row["temperature"] == temperature]
        places = sorted({row["sweep"].get(axis, 0) for row in here})
        means = [
            sum(values) / len(values)
            for values in ([row["accuracy"] for row in here if row["sweep"].get(axis, 0) == place] for place in places)
        ]
        plot.plot(places, [100 * mean for mean in means], color=color, label=f"steered, T = {temperature:g}")
        for row in here:
            low, high = row["ci95"]
            middle = 100 * row["accuracy"]
            error = [[max(0.0, middle - 100 * low)], [max(0.0, 100 * high - middle)]]
            plot.errorbar(row["sweep"].get(axis, 0), middle, error, fmt="o", color=color, markersize=4, linewidth=0.8)
        for row in rows:
            if row["arm"] == "base" and row["temperature"] == temperature and row["accuracy"] is not None:
                plot.axhline(100 * row["accuracy"], color=color, linestyle="--", linewidth=1)
                plot.plot([], [], color=color, linestyle="--", label=f"base, T = {temperature:g}")
    if axis in ("lr", "scale") and min(row["sweep"][axis] for row in own) > 0:
        plot.set_xscale("log")
    if axis in ("layer", "seed"):
        plot.set_xticks(sorted({row["sweep"].get(axis, 0) for row in own}))
    plot.set_xlabel({"lr": "learning rate"}.get(axis, axis))
    plot.set_ylabel("accuracy (%)")
    plot.set_ylim(0, 100)
    plot.legend(frameon=False)
    with atomic_path(path) as temporary:
        canvas.print_figure(temporary, dpi=120, format="png")
