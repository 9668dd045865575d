"""Colours: named for what they mark, as numbers for a PNG and as CSS variables for the page, which has two themes."""

from __future__ import annotations

import re
from dataclasses import dataclass

LIGHT = {
    "ink": "#1b2733", "muted": "#5b6875", "grid": "#dde3e9", "surface": "#ffffff", "control": "#86919c",
    "c0": "#1f5fa8", "c1": "#c2571a", "c2": "#2f7d4f", "c3": "#8a4fa3", "c4": "#a8851f", "c5": "#b03a5b",
    "c6": "#2a8c95", "c7": "#6b5d4d", "positive": "#1f5fa8", "negative": "#c2571a", "strong": "#ffffff",
    "good": "#1e7a46", "bad": "#b0342c", "open": "#8a6100",
}  # fmt: skip
DARK = {
    "ink": "#e6ebf0", "muted": "#a3b0bd", "grid": "#33404c", "surface": "#161d24", "control": "#8b97a3",
    "c0": "#6aabf2", "c1": "#f0935a", "c2": "#66c28a", "c3": "#c597de", "c4": "#dcbb55", "c5": "#f07f9f",
    "c6": "#62c7d0", "c7": "#b8a994", "positive": "#6aabf2", "negative": "#f0935a", "strong": "#0d1216",
    "good": "#66c28a", "bad": "#f2877f", "open": "#dcbb55",
}  # fmt: skip
SERIES = 8
"""``c0`` to ``c7``."""


@dataclass(frozen=True)
class Theme:
    """Name -> colour, as matplotlib takes it."""

    colours: dict[str, str]

    def __getitem__(self, name: str) -> str:
        return self.colours[name]

    def series(self, number: int) -> str:
        """Of the n-th line."""
        return self.colours[f"c{number % SERIES}"]


PRINTED = Theme(LIGHT)
"""For PNG files."""
_MARKS = {name: f"#0a0b{number:02x}" for number, name in enumerate(LIGHT)}
MARKED = Theme(_MARKS)
"""Colours that stand for names: matplotlib writes them into the SVG, ``themed`` turns them into CSS variables."""


def themed(svg: str) -> str:
    """The SVG with ``var(--ink)`` for the mark of ``ink``, and so on."""
    names = {mark: name for name, mark in _MARKS.items()}
    return re.sub("#0a0b[0-9a-f]{2}", lambda found: f"var(--{names[found[0]]})", svg)


def css_variables(colours: dict[str, str]) -> str:
    """``--ink: #1b2733; ...``"""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
