"""From rules and evidence to verdicts: reproduced, not reproduced, or inconclusive, with all that stands behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerkit.analysis.statistics import without_nan
from steerkit.evaluation.metrics import Interval
from steerkit.study.claims.estimates import Estimate, Outcome, Resampling, all_of, decide, detectable, unanimous
from steerkit.study.claims.evidence import Evidence, Missing
from steerkit.study.claims.measures import measure
from steerkit.study.claims.planted import planted
from steerkit.study.claims.rules import CLAIMS, Rule, Test, parse_rules


def judge(results: Mapping[str, Any], folder: str | Path, rules: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One verdict for each claim that has a rule, in the order C1 to C10, then the two planted effects.

    What was not measured makes a verdict *inconclusive* and is named in it; only rules that make no sense raise.

    Args:
        results: a study's results.json.
        folder: the study's folder.
        rules: the ``claims:`` block of its config.

    Raises:
        SteerkitError: if the rules make no sense.
    """
    parsed = parse_rules(rules)
    evidence = Evidence(results, folder)
    verdicts = [verdict(parsed.claims[name], evidence, parsed.resampling) for name in CLAIMS if name in parsed.claims]
    n, seeds = int((results.get("test") or {}).get("n") or 256), len(results.get("seeds") or [0])
    return verdicts + [
        verdict(rule, made, parsed.resampling) | {"expected": expected}
        for rule, made, expected in planted(n, seeds, parsed.resampling.seed)
    ]


def verdict(rule: Rule, evidence: Evidence, draws: Resampling) -> dict[str, Any]:
    """The record of one claim; its numbers are those of the first test, ``tests`` holds all."""
    tests = [_tested(test, rule, evidence, draws) for test in rule.tests]
    outcome = all_of([test["outcome"] for test in tests])
    deciding = [test for test in tests if test["outcome"] == outcome]
    first = tests[0]
    return {
        "claim": rule.claim,
        "title": rule.title,
        "statistic": first["statistic"],
        "rule": rule.words,
        **{key: first[key] for key in _HEADLINE},
        "n": first["n"],
        "seeds": min(test["seeds"] for test in tests),
        "outcome": outcome,
        "reason": "; ".join(f"{test['statistic']}: {test['reason']}" for test in deciding),
        "power": first["power"],
        "possible": rule.possible,
        "sources": list(dict.fromkeys(source for test in tests for source in test["sources"])),
        "notes": [note for test in tests for note in test["notes"]],
        "tests": tests,
    }


_HEADLINE = ("threshold", "bound", "control", "estimate", "low", "high", "unit", "control_value", "detectable")


def _tested(test: Test, rule: Rule, evidence: Evidence, draws: Resampling) -> dict[str, Any]:
    record: dict[str, Any] = {
        "statistic": test.what, "rule": test.words, "threshold": test.threshold, "bound": test.bound, "unit": test.unit,
        "control": None, "estimate": None, "low": None, "high": None, "control_value": None, "n": 0, "seeds": 0,
        "detectable": None, "power": "nothing was measured", "by": [], "sources": [], "notes": [],
    }  # fmt: skip
    try:
        measured = measure(test, evidence, draws)
    except Missing as missing:
        return record | {"outcome": "inconclusive", "reason": str(missing)}
    except Exception as error:  # a damaged record must cost its verdict, not the report
        told = " ".join(str(error).split())[:160]
        return record | {"outcome": "inconclusive", "reason": f"not computed ({type(error).__name__}: {told})"}
    parts = [(one, *decide(one.interval, test.bound, test.threshold, one.controls)) for one in measured.estimates]
    outcome: Outcome = unanimous([part[1] for part in parts])
    reasons = list(dict.fromkeys(part[2] for part in parts))
    reason = reasons[0] if len(reasons) == 1 else "; ".join(f"{one.of}: {why}" for one, _, why in parts)
    seeds = {seed for one, _, _ in parts for seed in one.seeds}
    if len(seeds) < rule.min_seeds:
        reason = f"{len(seeds)} training seed(s) where the rule asks for {rule.min_seeds} (else {outcome}: {reason})"
        outcome = "inconclusive"
    hull = Interval(
        sum(one.interval.mean for one, _, _ in parts) / len(parts),
        min(one.interval.low for one, _, _ in parts),
        max(one.interval.high for one, _, _ in parts),
    )
    name, control = _strongest([one for one, _, _ in parts], test)
    n = min(one.n for one, _, _ in parts)
    apart = detectable(max((one.interval for one, _, _ in parts), key=lambda i: i.high - i.low))
    found: dict[str, Any] = without_nan(
        record
        | {
            "estimate": hull.mean, "low": hull.low, "high": hull.high, "n": n, "seeds": len(seeds),
            "control": name, "control_value": control, "outcome": outcome, "reason": reason,
            "detectable": apart, "power": _power(test, apart, n, len(seeds)),
            "by": [_part(one, said, why) for one, said, why in parts],
            "sources": list(dict.fromkeys(source for one, _, _ in parts for source in one.sources)),
            "notes": list(measured.notes),
        }
    )  # fmt: skip
    return found


def _part(one: Estimate, outcome: Outcome, reason: str) -> dict[str, Any]:
    return {
        "of": one.of, "value": one.interval.mean, "low": one.interval.low, "high": one.interval.high, "n": one.n,
        "controls": {name: list(control) for name, control in one.controls.items()}, "outcome": outcome,
        "reason": reason,
    }  # fmt: skip


def _strongest(estimates: list[Estimate], test: Test) -> tuple[str | None, float | None]:
    """The control that comes nearest to what is claimed, mean over the estimates."""
    names = dict.fromkeys(name for one in estimates for name in one.controls)
    if not names:
        return None, None
    means = {
        name: (lambda values: sum(values) / len(values))(
            [one.controls[name].mean for one in estimates if name in one.controls]
        )
        for name in names
    }
    pick = max if test.bound == "at_least" else min
    best = pick(means, key=lambda name: means[name])
    return best, means[best]


def _power(test: Test, apart: float | None, n: int, seeds: int) -> str:
    size = f"{n} problems" + (f" and {seeds} seeds" if seeds > 1 else " and one seed")
    if apart is None or not math.isfinite(apart):
        return f"with {size} there is no spread to judge the power by"
    if test.threshold is None:
        return f"with {size}, a difference of {apart:.2g} from the control would have been seen (80 %)"
    side, sign = ("at least", 1) if test.bound == "at_least" else ("at most", -1)
    return (
        f"with {size}, a value of {side} {test.threshold + sign * apart:.2g} would have been told from the threshold "
        f"{test.threshold:g} (80 %)"
    )
