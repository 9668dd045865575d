"""Rows of the doctor's table, and the loop that fills it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from steerkit.errors import SteerkitError

if TYPE_CHECKING:
    from steerkit.doctor.subject import Subject

Status = Literal["pass", "fail", "note", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    status: Status
    """``note``: worth knowing, nothing to mend."""
    found: str
    """In a few words, with figures."""
    advice: str = ""
    """For a failure: what to do."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """For ``doctor.json``."""


@dataclass(frozen=True, slots=True)
class Check:
    """One question to the model."""

    name: str
    run: Callable[[Subject], Finding]
    needs: tuple[str, ...] = ()
    """Checks without whose success this one can't be run."""
    advice: str = ""
    """What to do if it crashes."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    status: Status
    found: str
    advice: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


def examine(subject: Subject, checks: Sequence[Check], debug: bool = False) -> Iterator[Row]:
    """Run the checks in order; one that raises has failed, one that needs it is skipped.

    Args:
        debug: let the exception through.
    """
    passed: set[str] = set()
    for check in checks:
        missing = [name for name in check.needs if name not in passed]
        if missing:
            yield Row(check.name, "skipped", f"needs {missing[0]!r}")
            continue
        try:
            finding = check.run(subject)
        except Exception as error:
            if debug:
                raise
            kind = "" if isinstance(error, SteerkitError) else f"{type(error).__name__}: "
            finding = Finding("fail", f"{kind}{' '.join(str(error).split())[:400]}", check.advice)
        if finding.status in ("pass", "note"):
            passed.add(check.name)
        yield Row(check.name, finding.status, finding.found, finding.advice, finding.figures)
