"""Heat maps and coloured text as HTML: for each number the share of a colour, which the page's theme supplies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steerkit.analysis.plots import Heatmap, Tokens
from steerkit.study.report.words import number

NUMBERED = 160
"""Cells of a heat map up to which each shows its number; beyond, on hover only."""
LONG_TEXT = 110
"""Letters."""
LONG = 5
"""Letters from which a column's name is written upwards."""


@dataclass(frozen=True)
class Cell:
    """One coloured place."""

    text: str
    share: float | None
    """-1 to 1: how much of the negative or the positive colour; None: no number."""
    value: str
    """The number, shown on hover."""

    @property
    def style(self) -> str:
        """Classes: its colour's side, and whether the text needs the other ink."""
        if self.share is None:
            return "na"
        return ("n" if self.share < 0 else "p") + (" s" if abs(self.share) > 0.58 else "")

    @property
    def strength(self) -> str:
        """For the CSS variable."""
        return f"{abs(self.share or 0.0):.2f}".lstrip("0") or "0"


@dataclass(frozen=True)
class Grid:
    """A heat map's rows."""

    rows: Sequence[tuple[str, Sequence[Cell]]]
    columns: Sequence[str]
    upright: bool
    """Whether the columns' names are written upwards."""
    scale: str
    """What the ends of the colours mean."""
    small: bool
    """Too many cells for numbers."""
    wide: bool
    """Needs the page's whole width."""


def grid(panel: Heatmap) -> Grid:
    """A heat map for the page's template."""
    known = [value for row in panel.values for value in row if value is not None]
    low, high = panel.limits or _limits(known, panel.diverging)
    small = panel.texts is None and len(panel.rows) * len(panel.columns) > NUMBERED
    rows = []
    for r, name in enumerate(panel.rows):
        cells = []
        for c, value in enumerate(panel.values[r]):
            text = panel.texts[r][c] if panel.texts is not None else "" if small else _cell(value)
            cells.append(Cell(text, _share(value, low, high, panel.diverging), number(value)))
        rows.append((name, cells))
    # The layers' hook points say "output" each: short names leave room for the numbers.
    upright = panel.texts is None and max(map(len, panel.columns), default=0) >= LONG
    ends = f"{number(low)} to {number(high)}" if known else "no numbers"
    wide = len(panel.columns) > 10 or panel.texts is not None
    return Grid(rows, panel.columns, upright, " ".join(filter(None, (panel.unit, ends))), small, wide)


def _limits(known: Sequence[float], diverging: bool) -> tuple[float, float]:
    if diverging:
        most = max(map(abs, known), default=0.0) or 1.0
        return -most, most
    low, high = min(known, default=0.0), max(known, default=1.0)
    return low, high if high > low else low + 1.0


def _share(value: float | None, low: float, high: float, diverging: bool) -> float | None:
    if value is None or value != value:
        return None
    if diverging:
        most = max(abs(low), abs(high)) or 1.0
        return max(-1.0, min(1.0, value / most))
    return max(0.0, min(1.0, (value - low) / ((high - low) or 1.0)))


def _cell(value: float | None) -> str:
    if value is None or value != value:
        return ""
    text = f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
    return "0.00" if text == "-0.00" else text


def long(panel: Tokens) -> bool:
    """Whether its texts need the page's whole width."""
    return any(sum(len(token) for token, _ in text) > LONG_TEXT for text in panel.texts)


@dataclass(frozen=True)
class Passage:
    """One coloured text."""

    name: str
    cells: Sequence[Cell]


def passages(panel: Tokens, most: int = 6) -> list[Passage]:
    """The first texts, each token a cell."""
    known = [abs(value) for text in panel.texts for _, value in text if value is not None]
    top = max(known, default=0.0) or 1.0
    found = []
    for index, text in enumerate(panel.texts[:most]):
        cells = [Cell(t, None if v is None else max(-1.0, min(1.0, v / top)), number(v)) for t, v in text]
        found.append(Passage(panel.names[index] if panel.names else "", cells))
    return found
