"""What an answer can be."""

from __future__ import annotations

from dataclasses import dataclass

from steerkit.verifiers.answers.expression import Node
from steerkit.verifiers.answers.units import Unit


@dataclass(frozen=True)
class Value:
    """A formula, perhaps with a unit: ``5``, ``\\frac{3}{4}``, ``x+1``, ``15 cm^2``, ``12\\%``, ``30°``, ``\\$5``."""

    node: Node
    unit: Unit | None = None
    percent: bool = False
    degree: bool = False
    name: str = ""
    """What it is said to be: the x of ``x = 5``."""


@dataclass(frozen=True)
class Text:
    """Words, in lower case without punctuation."""

    words: str
    name: str = ""


@dataclass(frozen=True)
class Choice:
    """A letter that names one of the offered answers: ``(B)``."""

    letter: str
    name: str = ""


@dataclass(frozen=True)
class Time:
    """A time of day in seconds since midnight; ``half`` is ``am``, ``pm``, or empty where it was not said."""

    seconds: int
    half: str
    parts: tuple[int, ...] = ()
    """The numbers between the colons where no half was written: they may be a ratio."""
    name: str = ""


@dataclass(frozen=True)
class Numeral:
    """Digits in a base: ``204_5``."""

    digits: str
    base: int
    name: str = ""


@dataclass(frozen=True)
class Ratio:
    """``3:5:7``, as formulas."""

    terms: tuple[Node, ...]
    name: str = ""


@dataclass(frozen=True)
class Row:
    """Items in an order between brackets: a point, a vector, or (two items) an interval."""

    items: tuple[Answer, ...]
    opening: str
    closing: str
    name: str = ""


@dataclass(frozen=True)
class Several:
    """Several answers in any order; ``braces`` where they were written as a set."""

    items: tuple[Answer, ...]
    braces: bool = False
    name: str = ""


@dataclass(frozen=True)
class Matrix:
    """Rows of formulas; ``fence`` is ``|`` for a determinant."""

    rows: tuple[tuple[Node, ...], ...]
    fence: str = ""
    name: str = ""


@dataclass(frozen=True)
class Piece:
    """One interval; infinite ends are None."""

    low: Node | None
    high: Node | None
    low_closed: bool = False
    high_closed: bool = False


@dataclass(frozen=True)
class Region:
    """A union of intervals and points of the real line, without the points ``removed``."""

    pieces: tuple[Piece, ...]
    removed: tuple[Node, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Equation:
    """``left = right``, where the left side is no mere name."""

    left: Node
    right: Node
    value: Answer
    """The right side."""
    name: str = ""


@dataclass(frozen=True)
class Inequality:
    """``node < 0`` (``<=`` unless strict; ``!=`` if ``unequal``) in several variables."""

    node: Node
    strict: bool
    unequal: bool = False
    name: str = ""


Answer = Value | Text | Choice | Time | Numeral | Ratio | Row | Several | Matrix | Region | Equation | Inequality
