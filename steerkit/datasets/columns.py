"""From a source's rows to examples: which column is the problem, which rows count."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steerkit.errors import DataError
from steerkit.registry import did_you_mean
from steerkit.types import Example

_USUAL = {"problem": ("question", "prompt"), "answer": ("solution",)}
"""Other names of a column, taken if exactly one of them is there and the column itself is not."""


@dataclass(frozen=True)
class Reading:
    """How to read one source's rows."""

    label: str
    """What errors, numbered ids and ``Example.source`` call the source."""
    columns: Mapping[str, str | None] = field(default_factory=dict)
    """Our column -> the source's column; ``id: null`` numbers the rows."""
    where: Mapping[str, Any] = field(default_factory=dict)
    """Source column -> the value, or the list of values, that a row must have."""
    answer_pattern: str | None = None
    """A regular expression; its first group (of the last match) is the answer."""


@dataclass
class Counts:
    """What became of the rows."""

    rows: int = 0
    """read"""
    filtered: int = 0
    """left out by ``where``"""
    empty: int = 0
    """left out: no problem, no answer, or no match of ``answer_pattern``"""
    duplicates: int = 0
    """left out: the problem was there already"""
    conflicts: int = 0
    """duplicates whose answer differs from the kept one's (label noise)"""


def to_examples(rows: Sequence[Mapping[str, Any]], reading: Reading, counts: Counts, part: str = "") -> list[Example]:
    """Examples of the rows that ``where`` admits and that are not empty; adds to ``counts``.

    Args:
        part: goes into numbered ids after the label (``gsm8k/test/00017``).

    Raises:
        DataError: for no rows, an unknown or ambiguous column, or a value that is not text or a number.
    """
    if not rows:
        raise DataError(f"{reading.label} holds no rows.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = _resolve_columns(names, reading)
    for name in reading.where:
        _check_column(name, names, f"{reading.label}: where")
    taken = {name for name in columns.values() if name is not None}
    examples: list[Example] = []
    admitted = 0
    for index, row in enumerate(rows):
        if not all(_matches(row.get(name), wanted) for name, wanted in reading.where.items()):
            continue
        admitted += 1
        where = f"{reading.label}, row {index}"
        problem = _text(row, columns["problem"], where)
        answer = _answer(_text(row, columns["answer"], where), reading.answer_pattern)
        if not problem or not answer:
            continue
        number = "/".join(filter(None, (reading.label, part, f"{index:05d}")))
        extra = {ours: row.get(theirs) for ours, theirs in columns.items() if theirs and ours not in _OWN}
        extra |= {name: value for name, value in row.items() if name not in taken}
        examples.append(
            Example(
                id=_text(row, columns.get("id"), where) or number,
                problem=problem,
                answer=answer,
                source=_text(row, columns.get("source"), where) or reading.label,
                columns=extra,
            )
        )
    counts.rows += len(rows)
    counts.filtered += len(rows) - admitted
    counts.empty += admitted - len(examples)
    if not admitted:
        seen = {name: sorted({str(row.get(name)) for row in rows})[:10] for name in reading.where}
        raise DataError(f"{reading.label}: no row passes where {dict(reading.where)}; values there: {seen}.")
    return examples


_OWN = ("problem", "answer", "id", "source")


def _resolve_columns(names: Sequence[str], reading: Reading) -> dict[str, str | None]:
    columns = dict(reading.columns)
    for ours, theirs in columns.items():
        if theirs is not None:
            _check_column(theirs, names, f"{reading.label}: columns.{ours}")
    for ours in ("problem", "answer"):
        if columns.get(ours) is None:
            columns[ours] = _detect(ours, names, reading.label)
    for ours in ("id", "source"):
        if ours not in columns and ours in names:
            columns[ours] = ours
    return columns


def _detect(ours: str, names: Sequence[str], label: str) -> str:
    if ours in names:
        return ours
    usual = [name for name in _USUAL[ours] if name in names]
    if len(usual) == 1:
        return usual[0]
    trouble = f"both {' and '.join(usual)} could be" if usual else "none is"
    raise DataError(
        f"{label}: {trouble} the {ours}; say which, as in columns={{{ours!r}: ...}}. Columns: {', '.join(names)}."
    )


def _check_column(name: str, names: Sequence[str], where: str) -> None:
    if name not in names:
        raise DataError(f"{where}: no column {name!r}.{did_you_mean(name, names)} Columns: {', '.join(names)}.")


def _matches(value: Any, wanted: Any) -> bool:
    options = wanted if isinstance(wanted, (list, tuple, set)) else [wanted]
    return any(value == option or str(value) == str(option) for option in options)  # a CSV's 3 is the text "3"


def _text(row: Mapping[str, Any], name: str | None, where: str) -> str:
    value = row.get(name) if name is not None else None
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a numeric column with gaps turns 27 into 27.0
    if isinstance(value, (str, int, float)):
        return str(value).strip()
    raise DataError(f"{where}: column {name!r} holds a {type(value).__name__}; expected text or a number.")


def _answer(text: str, pattern: str | None) -> str:
    if pattern is None or not text:
        return text
    matches = list(re.finditer(pattern, text))
    return matches[-1].group(1).strip() if matches else ""
