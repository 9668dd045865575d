"""Panels as PNG files, by matplotlib; no display is needed."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steerkit.analysis.plots.panels import Bars, Heatmap, Lines, Panel, Points, Table, Tokens
from steerkit.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = "#8a8a8a"
DPI = 90
MOST_ROWS = 30
"""Rows of a table, or texts, that a PNG shows; the page has them all."""


def write_png(panel: Panel, path: str | Path) -> None:
    """Draw one panel; an old file is replaced."""
    from PIL import Image

    figure = _DRAW[type(panel)](panel)
    with warnings.catch_warnings(), atomic_path(path) as temporary:
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # scripts that the font lacks: boxes
        drawn = BytesIO()
        figure.savefig(drawn, format="png", dpi=DPI, bbox_inches="tight")
        with Image.open(drawn) as image:  # a palette is a third of the size
            image.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT).save(temporary, "PNG", optimize=True)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(min(width, 14), min(height, 14)), layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot: nothing global, no display
    return figure, figure.add_subplot()


def _numbers(values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _heatmap(panel: Heatmap) -> Figure:
    table = np.array([_numbers(row) for row in panel.values])
    rows, columns = table.shape
    longest = max(map(len, panel.rows), default=0)
    figure, axes = _figure(2.2 + 0.09 * longest + 0.42 * columns, 1.4 + 0.32 * rows)
    low, high = panel.limits or _range(table, panel.diverging)
    colours = "RdBu_r" if panel.diverging else "viridis"
    image = axes.imshow(table, aspect="auto", cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    axes.set_xticks(range(columns), panel.columns, rotation=90 if max(map(len, panel.columns)) > 4 else 0, fontsize=8)
    axes.set_yticks(range(rows), panel.rows, fontsize=8)
    axes.set(xlabel=panel.column_axis, ylabel=panel.row_axis)
    axes.set_title(panel.title, fontsize=10)
    if panel.texts is not None or rows * columns <= 150:
        middle, span = (low + high) / 2, max(high - low, 1e-12)
        for r in range(rows):
            for c in range(columns):
                text = panel.texts[r][c] if panel.texts is not None else _short(table[r, c])
                bright = abs(table[r, c] - middle) / span > 0.3 if panel.diverging else table[r, c] < middle
                axes.text(c, r, text, ha="center", va="center", fontsize=6, color="white" if bright else "black")
    figure.colorbar(image, ax=axes, label=panel.unit)
    return figure


def _range(table: np.ndarray[Any, Any], diverging: bool) -> tuple[float, float]:
    known = table[np.isfinite(table)]
    if not len(known):
        return 0.0, 1.0
    if diverging:
        most = float(np.abs(known).max()) or 1.0
        return -most, most
    return float(known.min()), float(known.max()) if np.ptp(known) else float(known.min()) + 1.0


def _short(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2g}"


def _lines(panel: Lines) -> Figure:
    figure, axes = _figure(6.5, 3.6)
    names = bool(panel.x) and isinstance(panel.x[0], str)
    x = np.arange(len(panel.x)) if names else np.asarray(panel.x, dtype=float)
    for series in panel.series:
        y = _numbers(series.y)
        style = {"color": GREY, "linestyle": "--"} if series.control else {}
        (line,) = axes.plot(x, y, marker="o", markersize=3, linewidth=1.3, label=series.name, **style)
        if series.low is not None and series.high is not None:
            axes.fill_between(
                x, _numbers(series.low), _numbers(series.high), color=line.get_color(), alpha=0.18, linewidth=0
            )
    if names:
        step = max(1, len(x) // 30)
        labels = [str(label) for label in panel.x[::step]]
        axes.set_xticks(x[::step], labels, rotation=90 if max(map(len, labels)) > 4 else 0, fontsize=8)
    _finish(axes, panel.title, panel.x_axis, panel.y_axis, panel.line_at, panel.series)
    if panel.log_y:
        axes.set_yscale("log")
    if panel.log_x:
        axes.set_xscale("log")
    return figure


def _bars(panel: Bars) -> Figure:
    figure, axes = _figure(max(5.0, 1.5 + 0.5 * len(panel.labels) * max(1, len(panel.series)) ** 0.7), 3.6)
    width = 0.8 / max(1, len(panel.series))
    x = np.arange(len(panel.labels))
    for index, series in enumerate(panel.series):
        y = _numbers(series.y)
        error = None
        if series.low is not None and series.high is not None:
            error = np.nan_to_num(np.clip([y - _numbers(series.low), _numbers(series.high) - y], 0, None))
        colour = GREY if series.control else None
        axes.bar(x + (index - (len(panel.series) - 1) / 2) * width, np.nan_to_num(y), width, yerr=error, capsize=2,
                 label=series.name, color=colour)  # fmt: skip
    turned = max(map(len, panel.labels), default=0) * len(panel.labels) > 60
    axes.set_xticks(x, panel.labels, rotation=90 if turned else 0, fontsize=8)
    _finish(axes, panel.title, "", panel.y_axis, panel.line_at, panel.series)
    return figure


def _points(panel: Points) -> Figure:
    figure, axes = _figure(5.5, 4.2)
    x, y = _numbers(panel.x), _numbers(panel.y)
    axes.scatter(x, y, s=10, alpha=0.6)
    for index in range(min(panel.named, len(panel.labels))):
        axes.annotate(panel.labels[index], (x[index], y[index]), fontsize=7)
    _finish(axes, panel.title, panel.x_axis, panel.y_axis, None, ())
    return figure


def _finish(axes: Any, title: str, x: str, y: str, line_at: float | None, series: Any) -> None:
    if line_at is not None:
        axes.axhline(line_at, color="black", linewidth=0.7, linestyle=":")
    axes.set_title(title, fontsize=10)
    axes.set(xlabel=x, ylabel=y)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1 or (series and series[0].name):
        axes.legend(fontsize=7, frameon=False, loc="best")


def _tokens(panel: Tokens) -> Figure:
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    width, line_height = 110, 0.24
    known = np.array([value for text in panel.texts for _, value in text if value is not None] or [0.0])
    norm = Normalize(*_range(known, panel.diverging))
    colours = colormaps["RdBu_r" if panel.diverging else "YlOrRd"]
    placed: list[tuple[float, int, str, float | None]] = []
    line = 0
    for index, text in enumerate(panel.texts[:MOST_ROWS]):
        if panel.names:
            placed.append((0.0, line, panel.names[index], None))
            line += 1
        column = 0
        for token, value in text:
            if column + len(token) > width:
                line, column = line + 1, 0
            placed.append((column, line, token, value))
            column += len(token)
        line += 2
    figure, axes = _figure(11, 0.8 + line_height * line)
    for start, at, token, value in placed:
        box = None if value is None else {"facecolor": colours(norm(value)), "edgecolor": "none", "pad": 0.6}
        axes.text(start / width, -at, token, fontsize=7, family="monospace", va="center", bbox=box, parse_math=False)
    axes.set(xlim=(0, 1), ylim=(-line, 1))
    axes.axis("off")
    axes.set_title(f"{panel.title} ({norm.vmin:.3g} to {norm.vmax:.3g} {panel.unit})", fontsize=10)
    return figure


def _table(panel: Table) -> Figure:
    shown = [list(row) for row in panel.rows[:MOST_ROWS]] or [[""] * len(panel.columns)]
    widths = [
        max(len(str(panel.columns[c])), *(len(str(row[c])) for row in shown), 2) for c in range(len(panel.columns))
    ]
    figure, axes = _figure(0.6 + 0.085 * sum(widths), 0.6 + 0.2 * (len(shown) + 1))
    axes.axis("off")
    axes.set_title(panel.title, fontsize=10)
    table = axes.table(
        cellText=[[_plain(cell) for cell in row] for row in shown], colLabels=list(map(_plain, panel.columns)),
        colWidths=[width / sum(widths) for width in widths], cellLoc="left", loc="upper center",
    )  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(7)
    for cell in table.get_celld().values():
        cell.set_linewidth(0.2)
    return figure


def _plain(text: str) -> str:
    return str(text).replace("$", r"\$")  # no formula


_DRAW: dict[type, Any] = {
    Heatmap: _heatmap, Lines: _lines, Bars: _bars, Points: _points, Tokens: _tokens, Table: _table,
}  # fmt: skip
