"""Numbers as text, and the few sentences that are made of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

NONE = "–"


def number(value: Any) -> str:
    """Three digits or so; whole numbers as they are, with thousands apart."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NONE
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    text = f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 0.095 else ""
    return text or (f"{value:.2g}" if value else "0")


def percent(value: Any) -> str:
    """A percentage with one decimal, without its sign."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.1f}"


def in_unit(value: Any, unit: str) -> str:
    """One decimal for percentages and points, else as ``number``."""
    if isinstance(value, int | float) and not isinstance(value, bool) and ("%" in unit or "point" in unit):
        return percent(float(value))
    return number(value)


def interval(low: Any, high: Any, unit: str = "") -> str:
    """``a to b``; empty where there is none."""
    return "" if low is None or high is None else f"{in_unit(low, unit)} to {in_unit(high, unit)}"


def with_interval(row: Mapping[str, Any], value: str = "value", ends: str = "ci95") -> str:
    """``0.70 (0.53 to 0.80)`` of a row of an analysis."""
    found = row.get(ends)
    return number(row[value]) + (f" ({interval(*found)})" if found else "")


def beside_control(row: Mapping[str, Any]) -> str:
    """``0.32 (0.31 to 0.32), above its control's 0.26 (0.26 to 0.27)``: what the two intervals say."""
    text = with_interval(row)
    if row.get("control") is None:
        return text
    own, control = row.get("ci95"), row.get("control_ci95")
    words = "beside its control's"
    if own and control:
        words = "above its control's" if own[0] > control[1] else "not told apart from its control's"
        words = "below its control's" if own[1] < control[0] else words
    return f"{text}, {words} {with_interval(row, 'control', 'control_ci95')}"


def largest(
    rows: Sequence[Mapping[str, Any]], size: Callable[[Mapping[str, Any]], float] = lambda row: row["value"]
) -> Mapping[str, Any] | None:
    """The row with the largest number, of those that have one."""
    return max((row for row in rows if row["value"] is not None), key=size, default=None)


def sign_of(ends: Sequence[float] | None) -> str:
    """What an interval of a change says."""
    if ends is None:
        return "no interval"
    return "a gain" if ends[0] > 0 else "a loss" if ends[1] < 0 else "the interval holds 0"


def listed(parts: Sequence[str]) -> str:
    """``a, b and c``"""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else list(parts))


def rate(value: Any, layers: Sequence[int] = ()) -> str:
    """A learning rate: a number, or a JSON text of rates by layer; of one layer alone, that layer's."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return str(value)
    if not isinstance(found, dict):
        return NONE if found is None else str(found)
    if len(layers) == 1 and str(layers[0]) in found:
        return str(found[str(layers[0])])
    names = {"default": "", "-1": "last "}
    return ", ".join(names.get(layer, f"layer {layer}: ") + str(lr) for layer, lr in found.items())


def moment(value: Any) -> str:
    """Seconds since 1970 as a date; a text as it is."""
    if not isinstance(value, int | float):
        return str(value or NONE)
    return datetime.fromtimestamp(value, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def printable(text: str) -> str:
    """Control characters, which HTML has not, as the signs that stand for them; a token may hold any."""
    return text.translate(_SIGNS).encode("utf-8", "replace").decode("utf-8")


_SIGNS = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}, 0x7F: 0x2421,
    **dict.fromkeys((*range(0x80, 0xA0), *range(0xFDD0, 0xFDF0), 0xFFFE, 0xFFFF), 0xFFFD),
}  # fmt: skip


def duration(seconds: float | None) -> str:
    """``34 s``, ``12 min``, ``1 h 05 min``"""
    if seconds is None:
        return NONE
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
