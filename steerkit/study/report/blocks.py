"""What a report is made of, apart from how it is drawn: sections, and blocks that say where their numbers are from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from steerkit.analysis.plots import Bars, Heatmap, Lines, Points, Series, Table, Tokens


@dataclass(frozen=True)
class Dots:
    """A point with its interval for each label and series, one row a label: for long labels, and for a phone."""

    title: str
    labels: Sequence[str]
    series: Sequence[Series]
    """Filled points for the first, open ones for the others."""
    x_axis: str = ""
    groups: Sequence[str] = ()
    """A heading for each label; one that repeats is written once. Empty: no headings."""
    limits: tuple[float, float] | None = None
    line_at: float | None = None


Picture = Bars | Dots | Heatmap | Lines | Points | Table | Tokens


@dataclass(frozen=True)
class Block:
    """Figures of one origin."""

    pictures: Sequence[Picture]
    finding: Sequence[str]
    """Sentences made from the numbers."""
    look: str = ""
    """How to read the figures; says nothing of what was found."""
    title: str = ""
    command: str = ""
    data: Sequence[str] = ()
    """Files below the study's folder."""
    facts: Sequence[str] = ()
    """n, positions, seconds: what a sceptic asks first."""
    notes: Sequence[str] = ()
    """Longer ones, folded away."""


@dataclass(frozen=True)
class Section:
    """One question of the report."""

    key: str
    """Its anchor, and the beginning of its figures' file names."""
    title: str
    question: str
    blocks: Sequence[Block] = ()
    missing: Sequence[str] = field(default_factory=tuple)
    """Stated in place: what is not there, and why."""
