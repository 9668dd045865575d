"""The claims' verdicts as the page shows them; every number is the record's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerkit.study.report.read import Study
from steerkit.study.report.words import in_unit, interval, listed, number

OUTCOMES = ("reproduced", "not reproduced", "inconclusive")
PLANTED = {"planted_true": "reproduced", "planted_false": "not reproduced"}
"""Effects put in on purpose, and what must come out."""


@dataclass(frozen=True)
class Strip:
    """Where estimate, interval, threshold and control stand on one line from 0 to 100."""

    estimate: float | None
    low: float | None
    high: float | None
    threshold: float | None
    control: float | None


@dataclass(frozen=True)
class Verdict:
    """One row of the table, as text."""

    claim: str
    title: str
    outcome: str
    estimate: str
    interval: str
    threshold: str
    control: str
    """The control's number, or what it is where it has none."""
    n: str
    seeds: str
    strip: Strip | None
    unit: str
    lines: Sequence[tuple[str, str]]
    """(name, text): statistic, why, power, what could have failed."""
    more: Sequence[tuple[str, str]]
    """(name, text): rule, tests, control, notes, sources."""
    expected: str = ""
    """Of a planted effect: the outcome that is right."""


def verdicts(study: Study) -> list[Verdict]:
    """Those of the claims, in the order of the record."""
    return [_verdict(record) for record in _records(study) if record["claim"] not in PLANTED]


def planted(study: Study) -> list[Verdict]:
    """Those of the planted effects."""
    return [_verdict(record) for record in _records(study) if record["claim"] in PLANTED]


def _records(study: Study) -> list[Mapping[str, Any]]:
    return list(study.results.get("verdicts") or [])


def summary(study: Study) -> list[str]:
    """How many claims came out how, and whether the planted effects came out right."""
    found = verdicts(study)
    if not found:
        return ["No claim was judged."]
    sentences = []
    for outcome in OUTCOMES:
        names = [verdict.claim for verdict in found if verdict.outcome == outcome]
        if names:
            sentences.append(f"{len(names)} of {len(found)} claims {outcome}: {listed(names)}.")
    tests = planted(study)
    if tests:
        wrong = [test.claim for test in tests if test.outcome != test.expected]
        sentences.append(
            f"The planted effects came out wrong ({listed(wrong)}): trust no verdict here." if wrong
            else "Both a planted true and a planted false effect came out right." if len(tests) == len(PLANTED)
            else f"Of the planted effects only {tests[0].claim} was run; it came out right."
        )  # fmt: skip
    else:
        sentences.append("No planted effect was run: nothing shows that the rules can tell true from false.")
    return sentences


def _verdict(record: Mapping[str, Any]) -> Verdict:
    unit = str(record.get("unit") or "")
    tests = record.get("tests") or []
    lines = (
        ("Measured", record.get("statistic")),
        ("Why", record.get("reason")),
        ("Power", record.get("power")),
        ("What the corpus makes possible", record.get("possible")),
    )
    more = (
        ("Rule", record.get("rule")),
        *(("Test", _test(test)) for test in tests if len(tests) > 1),
        ("Control", record.get("control")),
        *(("Note", note) for note in record.get("notes") or []),
        ("From", ", ".join(record.get("sources") or [])),
    )
    claim, title = str(record["claim"]), str(record.get("title") or "")
    return Verdict(
        claim,
        "" if title == claim else title,
        str(record.get("outcome") or ""),
        in_unit(record.get("estimate"), unit),
        interval(record.get("low"), record.get("high"), unit),
        in_unit(record.get("threshold"), unit),
        in_unit(record.get("control_value"), unit),
        number(record.get("n")),
        number(record.get("seeds")),
        _strip(record),
        unit,
        [(name, str(text)) for name, text in lines if text],
        [(name, str(text)) for name, text in more if text],
        str(record.get("expected") or PLANTED.get(claim, "")),
    )


def _test(test: Mapping[str, Any]) -> str:
    """One of a claim's several tests."""
    unit = str(test.get("unit") or "")
    ends = interval(test.get("low"), test.get("high"), unit)
    found = in_unit(test.get("estimate"), unit) + (f" ({ends})" if ends else "")
    beside = f"threshold {in_unit(test.get('threshold'), unit)}, control {in_unit(test.get('control_value'), unit)}"
    return f"{test.get('statistic')}: {found}; {beside}: {test.get('outcome')}"


def _strip(record: Mapping[str, Any]) -> Strip | None:
    keys = ("estimate", "low", "high", "threshold", "control_value")
    known = {k: float(record[k]) for k in keys if isinstance(record.get(k), int | float)}
    if "estimate" not in known or len(known) < 2:
        return None
    ends = [*known.values(), 0.0]
    low, span = min(ends), (max(ends) - min(ends)) or 1.0
    return Strip(*(4 + 92 * (known[k] - low) / span if k in known else None for k in keys))
