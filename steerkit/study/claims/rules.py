"""The rules of the claims as they stand in a study's config (``claims:``): read, checked, and put in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steerkit.errors import SteerkitError
from steerkit.registry import did_you_mean
from steerkit.study.claims.estimates import Bound, Resampling

CLAIMS = tuple(f"C{number}" for number in range(1, 11))

STATISTICS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    # name -> (settings that it needs, settings that it may have)
    "share_of_gain": (frozenset({"arm", "reference", "temperature"}), frozenset({"controls", "also"})),
    "analysis": (frozenset({"analyzer", "metric"}), frozenset({"arm", "where", "settings", "controls", "absolute"})),
    "lens_token": (frozenset({"arm", "temperature"}), frozenset({"controls"})),
    "sae_ablation": (frozenset({"arm"}), frozenset({"controls"})),
}
"""What a rule may measure; ``measures.py`` holds them."""

_COMMON = {"statistic", "what", "unit", "at_least", "at_most"}


@dataclass(frozen=True, slots=True)
class Test:
    """One number against one threshold and its controls."""

    __test__ = False  # not pytest's

    statistic: str
    what: str
    """What is measured, in words."""
    bound: Bound
    threshold: float | None
    """None: the controls alone decide."""
    unit: str
    settings: Mapping[str, Any]
    """What the statistic reads: arm, analyzer, metric..."""

    @property
    def words(self) -> str:
        side = "at least" if self.bound == "at_least" else "at most"
        beyond = "above" if self.bound == "at_least" else "below"
        names = list(control_names(self.settings))
        parts = [f"{side} {self.threshold:g}"] if self.threshold is not None else []
        if names:
            parts.append(f"{beyond} {' and '.join(names)}")
        return f"{self.what}: {', and '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A claim's tests: it is reproduced if all are."""

    claim: str
    title: str
    tests: tuple[Test, ...]
    min_seeds: int = 1
    possible: str = ""
    """What the base's corpus makes possible, and what could have failed."""

    @property
    def words(self) -> str:
        seeds = f"{self.min_seeds} training seeds or more" if self.min_seeds > 1 else "one training seed or more"
        many = len(self.tests) > 1
        return (
            f"{'All of: ' if many else ''}{'; '.join(test.words for test in self.tests)}. Reproduced if the whole 95 % "
            f"interval is there{' in each test' if many else ''}, with {seeds}; not reproduced if "
            f"{'one interval' if many else 'it'} is wholly on the other side, or a control does as much; else "
            "inconclusive."
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of a study."""

    claims: Mapping[str, Rule]
    resampling: Resampling = field(default_factory=Resampling)


def control_names(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Control -> how it is found. A list names arms; ``own`` is what the analyzer measured beside its number."""
    controls = settings.get("controls") or {}
    return controls if isinstance(controls, Mapping) else {name: name for name in controls}


def parse_rules(block: Any) -> Rules:
    """The ``claims:`` block of a study's config, checked.

    Raises:
        SteerkitError: one line that names the claim and the setting.
    """
    if not isinstance(block, Mapping):
        raise SteerkitError(f"claims must map C1 to C10 to rules, got {block!r:.60}.")
    resampling = Resampling(int(block.get("resamples", 4000)), int(block.get("seed", 0)))
    if resampling.resamples < 100:
        raise SteerkitError(f"claims.resamples must be at least 100, got {resampling.resamples}.")
    found = {}
    for name, rule in block.items():
        if name in ("resamples", "seed"):
            continue
        if name not in CLAIMS:
            raise SteerkitError(f"claims has no {name!r}.{did_you_mean(name, CLAIMS)} It has C1 to C10.")
        found[str(name)] = _rule(name, rule)
    return Rules(found, resampling)


def _rule(name: str, block: Any) -> Rule:
    where = f"claims.{name}"
    if not isinstance(block, Mapping):
        raise SteerkitError(f"{where} must be a rule (title, tests), got {block!r:.60}.")
    known = ("title", "tests", "min_seeds", "possible")
    for key in block:
        if key not in known:
            raise SteerkitError(f"{where} has no setting {key!r}.{did_you_mean(key, known)}")
    tests = block.get("tests")
    if not isinstance(tests, list) or not tests:
        raise SteerkitError(f"{where}.tests must list one test or more.")
    seeds = block.get("min_seeds", 1)
    if not isinstance(seeds, int) or seeds < 1:
        raise SteerkitError(f"{where}.min_seeds must be at least 1, got {seeds!r}.")
    return Rule(
        name,
        str(block.get("title", name)),
        tuple(_test(f"{where}.tests[{index}]", test) for index, test in enumerate(tests)),
        seeds,
        " ".join(str(block.get("possible", "")).split()),
    )


def _test(where: str, block: Any) -> Test:
    if not isinstance(block, Mapping) or "statistic" not in block:
        raise SteerkitError(f"{where} needs a statistic: {', '.join(STATISTICS)}.")
    statistic = block["statistic"]
    if statistic not in STATISTICS:
        raise SteerkitError(f"{where}: no statistic {statistic!r}.{did_you_mean(statistic, STATISTICS)}")
    needs, may = STATISTICS[statistic]
    for key in block:
        if key not in _COMMON | needs | may:
            raise SteerkitError(f"{where} ({statistic}) has no setting {key!r}.{did_you_mean(key, needs | may)}")
    missing = sorted(needs - block.keys())
    if missing:
        raise SteerkitError(f"{where} ({statistic}) needs {', '.join(missing)}.")
    bounds = [key for key in ("at_least", "at_most") if key in block]
    if len(bounds) != 1:
        raise SteerkitError(f"{where} needs one of at_least and at_most.")
    bound: Bound = "at_least" if bounds[0] == "at_least" else "at_most"
    threshold = block[bound]
    settings = {key: value for key, value in block.items() if key not in _COMMON}
    if threshold == "controls":
        if not control_names(settings):
            raise SteerkitError(f"{where}: {bound}: controls needs controls.")
        threshold = None
    elif not isinstance(threshold, int | float) or isinstance(threshold, bool) or not math.isfinite(threshold):
        raise SteerkitError(f"{where}.{bound} must be a number, or 'controls', got {threshold!r}.")
    what = str(block.get("what", block.get("metric", statistic)))
    return Test(statistic, what, bound, threshold, str(block.get("unit", "")), settings)
