"""What a figure shows, apart from how it is drawn: a panel becomes a PNG (``png``) and a part of one page (``page``).

An analyzer's ``panels`` makes these from a saved result; it computes nothing that the result lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Numbers = Sequence[float | None]
"""None is drawn as a gap."""


@dataclass(frozen=True)
class Series:
    """One line, or one colour of bars."""

    name: str
    y: Numbers
    low: Numbers | None = None
    """Ends of the 95 % intervals."""
    high: Numbers | None = None
    control: bool = False
    """Drawn in grey, so that a control is known at sight."""


@dataclass(frozen=True)
class Heatmap:
    """A coloured table."""

    title: str
    values: Sequence[Numbers]
    """``[R][C]``"""
    rows: Sequence[str]
    columns: Sequence[str]
    row_axis: str = ""
    column_axis: str = ""
    unit: str = ""
    """What a colour means."""
    diverging: bool = False
    """Two colours around 0."""
    limits: tuple[float, float] | None = None
    """Of the colours; default: those of the values."""
    texts: Sequence[Sequence[str]] | None = None
    """``[R][C]`` what stands in a cell; default: the number, in small tables."""


@dataclass(frozen=True)
class Lines:
    """Curves over a common axis."""

    title: str
    x: Sequence[float] | Sequence[str]
    series: Sequence[Series]
    x_axis: str = ""
    y_axis: str = ""
    log_y: bool = False
    log_x: bool = False
    line_at: float | None = None
    """A thin horizontal line: chance, the base..."""


@dataclass(frozen=True)
class Bars:
    """Bars with intervals, side by side for each label."""

    title: str
    labels: Sequence[str]
    series: Sequence[Series]
    y_axis: str = ""
    line_at: float | None = None


@dataclass(frozen=True)
class Points:
    """A scatter plot."""

    title: str
    x: Numbers
    y: Numbers
    labels: Sequence[str]
    """Shown where the pointer is; on the PNG for the first ``named``."""
    x_axis: str = ""
    y_axis: str = ""
    named: int = 0


@dataclass(frozen=True)
class Tokens:
    """Text whose tokens are coloured by a number."""

    title: str
    texts: Sequence[Sequence[tuple[str, float | None]]]
    """For each text its (token, number) pairs."""
    unit: str = ""
    names: Sequence[str] = ()
    """Of the texts."""
    diverging: bool = False


@dataclass(frozen=True)
class Table:
    """Plain cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    page_only: bool = False
    """No PNG: too long to be read there."""


Panel = Heatmap | Lines | Bars | Points | Tokens | Table


@dataclass(frozen=True)
class Drawn:
    """Files that ``plots.draw`` wrote."""

    page: str
    images: Sequence[str] = field(default_factory=tuple)
