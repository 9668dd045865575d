"""Result rows: what the samples of one arm, set and temperature come to, and the means over sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steerkit.evaluation.metrics import mean_over_sets
from steerkit.evaluation.records import accuracy, fault_causes, mean_share, summarise

if TYPE_CHECKING:
    from steerkit.evaluation.arms import Arm, Protocol

MEAN = "mean"
"""The set of the rows that average over sets."""

FACTS: dict[str, Any] = {
    "train_seed": None,
    "lr": None,
    "trainable_params": 0,
    "optimizer_bytes": 0,
    "seconds_per_step": None,
}
"""Columns that an arm may fill; the rest of a row is measured."""


def result_rows(
    arms: Sequence[Arm],
    sets: Sequence[str],
    protocol: Protocol,
    samples: Sequence[Mapping[str, Any]],
    too_long: Mapping[str, int],
) -> list[dict[str, Any]]:
    """One row a set, arm and temperature, pooled over seeds; with several sets their unweighted means at the end.

    Args:
        samples: records of ``records.sample_records`` with ``seen_in_training``, problems of a set in order.
        too_long: set -> problems left out since their prompt does not fit the context.
    """
    parts: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
    for sample in samples:
        parts.setdefault((sample["set"], sample["arm"], sample["temperature"]), []).append(sample)
    rows = []
    for name in sets:
        for arm in arms:
            for temperature in protocol.temperatures:
                part = parts[name, arm.name, temperature]
                facts = {"arm": arm.name, "set": name, "temperature": temperature}
                row = {**facts, **summarise(part, protocol.seed), **FACTS, **arm.facts}
                row["k"] = protocol.samples(name, temperature)
                row["too_long"] = too_long.get(name, 0)
                rows.append(row | _seen(part) | _seeds(part, protocol.seeds_at(temperature)))
    if len(sets) > 1:
        for arm in arms:
            for temperature in protocol.temperatures:
                own = {name: parts[name, arm.name, temperature] for name in sets}
                of_sets = [r for r in rows if r["arm"] == arm.name and r["temperature"] == temperature]
                rows.append(_mean_row(arm, own, of_sets, protocol, temperature))
    return rows


def _seeds(part: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    if len(seeds) == 1:
        return {"sample_seed": seeds[0]}
    by_seed = [accuracy([sample for sample in part if sample["seed"] == seed]) for seed in seeds]
    return {"sample_seed": None, "sample_seeds": list(seeds), "accuracy_by_seed": by_seed}


def _seen(part: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many problems training saw, and the accuracy on the others."""
    if any(sample["seen_in_training"] is None for sample in part):
        return {"seen_in_training": None}
    fresh = [sample for sample in part if not sample["seen_in_training"]]
    count = len({sample["id"] for sample in part}) - len({sample["id"] for sample in fresh})
    return {"seen_in_training": count} | ({"accuracy_unseen": accuracy(fresh)} if count and fresh else {})


def _mean_row(
    arm: Arm,
    parts: Mapping[str, Sequence[Mapping[str, Any]]],
    rows: Sequence[Mapping[str, Any]],
    protocol: Protocol,
    temperature: float,
) -> dict[str, Any]:
    # A set whose samples are all faults has no accuracy, and then neither has the mean.
    known = all(row["accuracy"] is not None for row in rows)
    interval = mean_over_sets([mean_share(part) for part in parts.values()], protocol.seed) if known else None
    seeds = protocol.seeds_at(temperature)
    row: dict[str, Any] = {
        "arm": arm.name,
        "set": MEAN,
        "temperature": temperature,
        "k": None,
        "n": sum(row["n"] for row in rows),
        "accuracy": interval.mean if interval else None,
        "ci95": [interval.low, interval.high] if interval else None,
        "mean_tokens": sum(row["mean_tokens"] for row in rows) / len(rows),
        **{name: sum(row[name] for row in rows) for name in ("faults", "truncated", "no_box", "too_long")},
        "fault_causes": fault_causes([sample for part in parts.values() for sample in part]),
        **FACTS,
        **arm.facts,
        "sets": list(parts),
        "sample_seed": seeds[0] if len(seeds) == 1 else None,
    }
    if len(seeds) > 1:
        table = [row["accuracy_by_seed"] for row in rows]
        row["sample_seeds"] = list(seeds)
        columns = zip(*table, strict=True)
        row["accuracy_by_seed"] = [None if None in column else sum(column) / len(column) for column in columns]
    return row
