"""Pictures by matplotlib, narrow enough to be read on a phone: one drawing, as a PNG file and as SVG for the page."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steerkit.analysis.plots import Bars, Lines, Points, Series
from steerkit.study.report.blocks import Dots, Picture
from steerkit.study.report.theme import MARKED, PRINTED, Theme, themed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 5.0
"""Inches; the page shows an inch as up to 100 pixels."""
DPI = 150
_DASHES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
_FONT = 9.2
LABEL = 26
"""Letters of a line of a row's label: longer ones would leave the plot no room."""


def drawn(picture: Picture) -> bool:
    """Whether it is drawn here; tables, heat maps and coloured text are HTML."""
    return type(picture) in _DRAW


def svg(picture: Picture, key: str) -> str:
    """An ``<svg>`` element whose colours are CSS variables and whose text is text.

    Args:
        key: unique in the page, so that the ids inside are.
    """
    figure = _figure(picture, MARKED)
    buffer = StringIO()
    salt = hashlib.sha256(key.encode()).hexdigest()
    with _quiet(hashsalt=salt):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(buffer.getvalue(), picture.title)


def png(picture: Picture) -> bytes:
    """The picture in the light theme."""
    figure = _figure(picture, PRINTED)
    figure.suptitle(picture.title, fontsize=10, color=PRINTED["ink"])
    buffer = BytesIO()
    with _quiet():
        figure.savefig(buffer, format="png", dpi=DPI)
    return small_png(buffer.getvalue())


def small_png(data: bytes) -> bytes:
    """With a palette: about a third of the size."""
    from PIL import Image

    packed = BytesIO()
    with Image.open(BytesIO(data)) as image:
        image.convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT).save(packed, "PNG", optimize=True)
    return packed.getvalue()


@contextmanager
def _quiet(**settings: Any) -> Iterator[None]:
    """No formulas in labels, text left as text, and no warning of a glyph that the drawing's font lacks."""
    from matplotlib import rc_context

    rules: dict[Any, Any] = {"svg.fonttype": "none", "text.parse_math": False}
    rules |= {f"svg.{name}": value for name, value in settings.items()}
    with rc_context(rules), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _inline(text: str, title: str) -> str:
    """matplotlib's file as a part of an HTML page: no prologue, no namespaces, no group ids, short numbers."""
    from markupsafe import escape

    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", text, flags=re.DOTALL)  # the page's style has it
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(
        r"<[^>]+>",
        lambda tag: re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), tag[0]),
        text,
    )
    text = re.sub(r"\s*\n\s*", " ", text)
    box = re.search(r'viewBox="([^"]*)"', text)
    name = escape(title)
    head = f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{name}"><title>{name}</title>'
    return themed(head + text[text.index(">") + 1 :])


def _figure(picture: Picture, theme: Theme) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _quiet():
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        FigureCanvasAgg(figure)  # not pyplot: nothing global, no display
        axes = figure.add_subplot()
        for patch in (figure.patch, axes.patch):
            patch.set(facecolor=theme["surface"], visible=theme is PRINTED)  # the page's card shows through
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(theme["grid"])
        axes.tick_params(labelsize=_FONT, colors=theme["muted"], length=0)
        axes.set_axisbelow(True)
        _DRAW[type(picture)](figure, axes, picture, theme)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set(color=theme["muted"], fontsize=_FONT)
    return figure


def _numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _ends(series: Series) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    y = _numbers(series.y)
    nothing = [None] * len(y)
    return y, _numbers(series.low or nothing), _numbers(series.high or nothing)


def _legend(figure: Any, axes: Any, theme: Theme) -> None:
    handles, names = axes.get_legend_handles_labels()
    shown = [(handle, name) for handle, name in zip(handles, names, strict=True) if name]
    if len(shown) > 1:
        longest = max(len(name) for _, name in shown)
        columns = 1 if longest > 42 else 2 if longest > 24 else 3
        legend = figure.legend(
            [h for h, _ in shown], [n for _, n in shown], loc="outside lower center", ncols=min(columns, len(shown)),
            frameon=False, fontsize=_FONT - 0.5, labelcolor=theme["ink"], handlelength=1.8, columnspacing=1.2,
        )  # fmt: skip
        for handle in legend.legend_handles:
            handle.set_alpha(1)


def _dots(figure: Any, axes: Any, picture: Dots, theme: Theme) -> None:
    places, headings, at = [], [], 0.0
    labels = [fill(label, LABEL) for label in picture.labels]
    for number in range(len(labels)):
        group = picture.groups[number] if picture.groups else ""
        if group and (number == 0 or group != picture.groups[number - 1]):
            headings.append((at, group))
            at += 1.0
        more = 0.35 * labels[number].count("\n")  # two lines need more room than one, half of it above
        places.append(at + more)
        at += 1.0 + 2 * more
    figure.set_figheight(0.75 + 0.235 * at + (0.2 if len(picture.series) > 1 else 0))
    spread = 0.34 / max(1, len(picture.series) - 1) if len(picture.series) > 1 else 0.0
    for index, series in enumerate(picture.series):
        y, low, high = _ends(series)
        rows = np.array(places) + (index - (len(picture.series) - 1) / 2) * spread
        colour = theme["control"] if series.control else theme.series(index)
        axes.hlines(rows, low, high, color=colour, linewidth=1.6, alpha=0.75, clip_on=False)
        axes.plot(y, rows, "o", markersize=4.6, color=colour, label=series.name, markeredgewidth=1.2, clip_on=False,
                  zorder=3, markerfacecolor=theme["surface"] if index else colour)  # fmt: skip
    if picture.line_at is not None:
        axes.axvline(picture.line_at, color=theme["muted"], linewidth=0.9, linestyle=":")
    axes.set(ylim=(at - 0.4, -0.7), xlabel=picture.x_axis)
    axes.set_yticks([*places, *(h for h, _ in headings)], [*labels, *(name for _, name in headings)])
    for label, heading in zip(axes.get_yticklabels(), [False] * len(places) + [True] * len(headings), strict=True):
        label.set(color=theme["muted" if heading else "ink"], fontstyle="italic" if heading else "normal")
    if picture.limits:
        axes.set_xlim(*picture.limits)
    axes.grid(axis="x", color=theme["grid"], linewidth=0.7)
    _legend(figure, axes, theme)


def _bars(figure: Any, axes: Any, picture: Bars, theme: Theme) -> None:
    count = max(1, len(picture.series))
    figure.set_figheight(0.75 + (0.09 + 0.155 * count) * len(picture.labels) + (0.2 if count > 1 else 0))
    width = 0.8 / count
    rows = np.arange(len(picture.labels), dtype=np.float64)
    known = np.array([[value is not None for value in series.y] for series in picture.series])
    known = known.reshape(len(picture.series), len(rows))
    coloured = 0
    for index, series in enumerate(picture.series):
        y, low, high = _ends(series)
        colour = theme["control"] if series.control else theme.series(coloured)
        coloured += not series.control
        # A label that some series know nothing of has its other bars in the middle.
        at = rows + (known[:index].sum(0) - (known.sum(0) - 1) / 2) * width
        axes.barh(at, np.nan_to_num(y), width * 0.86, color=colour, alpha=0.6 if series.control else 0.85,
                  label=series.name, linewidth=0)  # fmt: skip
        axes.hlines(at, low, high, color=theme["ink"], linewidth=1.0)
    axes.axvline(0, color=theme["muted"], linewidth=0.7)
    if picture.line_at:
        axes.axvline(picture.line_at, color=theme["muted"], linewidth=0.9, linestyle=":")
    axes.set_yticks(rows, picture.labels)
    axes.tick_params(axis="y", labelcolor=theme["ink"])
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=picture.y_axis)
    axes.grid(axis="x", color=theme["grid"], linewidth=0.7)
    _legend(figure, axes, theme)


def _lines(figure: Any, axes: Any, picture: Lines, theme: Theme) -> None:
    named = bool(picture.x) and isinstance(picture.x[0], str)
    x = np.arange(len(picture.x)) if named else np.asarray(picture.x, dtype=np.float64)
    counts = {True: 0, False: 0}
    for series in picture.series:
        number = counts[series.control]
        counts[series.control] += 1
        colour = theme["control"] if series.control else theme.series(number)
        y, low, high = _ends(series)
        few = len(x) <= 24 and not series.control
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(x, y, color=colour, linewidth=1.5, label=series.name, marker="o" if few else "", markersize=3,
                  linestyle=_DASHES[number % len(_DASHES)] if series.control else "-")  # fmt: skip
    if picture.line_at is not None:
        axes.axhline(picture.line_at, color=theme["muted"], linewidth=0.9, linestyle=":")
    axes.set_xscale("log" if picture.log_x else "linear")  # before the ticks: it sets its own
    axes.set_yscale("log" if picture.log_y else "linear")
    if named:
        axes.set_xticks(x, picture.x)
    elif all(float(value).is_integer() for value in x) and len(x) <= 12:
        axes.set_xticks(x)
    axes.set(xlabel=picture.x_axis, ylabel=picture.y_axis)
    if picture.y_axis.endswith("%"):
        axes.set_ylim(0, 100)  # figures side by side are compared
    axes.grid(axis="y", color=theme["grid"], linewidth=0.7)
    figure.set_figheight(2.7 + 0.12 * len(picture.series))
    _legend(figure, axes, theme)


def _points(figure: Any, axes: Any, picture: Points, theme: Theme) -> None:
    x, y = _numbers(picture.x), _numbers(picture.y)
    axes.plot(x, y, "o", markersize=3.5, color=theme.series(0), alpha=0.65, markeredgewidth=0)
    for index in range(min(picture.named, len(picture.labels))):
        axes.annotate(picture.labels[index], (x[index], y[index]), fontsize=_FONT - 1, color=theme["ink"])
    axes.set(xlabel=picture.x_axis, ylabel=picture.y_axis)
    axes.grid(color=theme["grid"], linewidth=0.7)


_DRAW: dict[type, Callable[[Any, Any, Any, Theme], None]] = {
    Bars: _bars, Dots: _dots, Lines: _lines, Points: _points,
}  # fmt: skip
