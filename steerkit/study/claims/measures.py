"""The numbers that rules test, read from a study's samples and analyses: one function a statistic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from steerkit.evaluation.metrics import Interval
from steerkit.hookpoints import HookPoint
from steerkit.study.claims.estimates import Estimate, Resampling, difference, gain_share
from steerkit.study.claims.evidence import Analysed, Evidence, Missing
from steerkit.study.claims.rules import Test, control_names

BASE = "base"
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """A statistic's numbers, one for each seed (recipient...), and what stands beside them."""

    estimates: list[Estimate]
    notes: tuple[str, ...] = ()


def measure(test: Test, evidence: Evidence, draws: Resampling) -> Measured:
    """
    Raises:
        Missing: if what the rule asks for was not measured.
    """
    return _MEASURES[test.statistic](test, evidence, draws)


def share_of_gain(test: Test, evidence: Evidence, draws: Resampling) -> Measured:
    """(arm - base) / (reference - base), over problems and seeds together; the controls' shares likewise."""
    asked, temperature = test.settings, float(test.settings["temperature"])
    arm, reference = evidence.arm(asked["arm"]), evidence.arm(asked["reference"])
    controls = [evidence.arm(name) for name in control_names(asked)]
    samples = evidence.samples

    def share(name: str, at: float) -> tuple[Interval | None, int, tuple[int, ...]]:
        tables, seeds = samples.tables([name, reference, BASE], at)
        own = min((seeds[name], seeds[reference]), key=len)
        return gain_share(tables[name], tables[reference], tables[BASE], draws), tables[name].shape[1], tuple(own)

    found, n, seeds = share(arm, temperature)
    if found is None:
        raise Missing(f"the gain of {reference} may be 0 at temperature {temperature:g}: there is no share of it")
    beside: dict[str, Interval] = {}
    for control in controls:
        interval = share(control, temperature)[0]
        if interval is not None:
            beside[control] = interval
    notes = []
    for at in dict.fromkeys((temperature, *(1.0 - temperature,) * (temperature in (0.0, 1.0)))):
        parts = []
        for name in [arm, *map(evidence.arm, asked.get("also") or [])]:
            if name == arm and at == temperature:
                continue
            try:
                other = share(name, at)[0]
            except Missing:
                continue
            parts.append(f"{name} {_shown(other)}" if other else f"{name}: none, {reference}'s gain may be 0")
        if parts:
            notes.append(f"Share of {reference}'s gain at temperature {at:g}: {'; '.join(parts)}.")
    estimate = Estimate(found, n, f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}", seeds, beside,
                        (samples.source,))  # fmt: skip
    return Measured([estimate], tuple(notes))


def from_analysis(test: Test, evidence: Evidence, draws: Resampling) -> Measured:
    """Rows of an analyzer's result: the mean of those that match, with the mean of their ends (as if they always went
    up and down together, which is the widest they can be).
    """
    del draws
    asked = test.settings
    named = asked.get("arm")
    arms = [evidence.arm(name) for name in (named if isinstance(named, list) else [named])] if named else [None]
    wanted = _combinations(asked.get("settings") or {})
    estimates = []
    for settings in wanted:
        runs = [run for run in evidence.analyses if run.result.analyzer == asked["analyzer"] and _fits(run, settings)]
        label = ", ".join(f"{key} {value}" for key, value in settings.items())
        for arm in arms:
            found = [one for run in runs for one in _of_run(test, run, arm, label if len(wanted) > 1 else "",
                                                           len(arms) > 1)]  # fmt: skip
            if not found:
                of = " of ".join(part for part in (asked["analyzer"], arm or "") if part)
                raise Missing(f"no finished {of}{f' ({label})' if label else ''} with {asked['metric']!r}")
            estimates += found
    return Measured(estimates)


def lens_token(test: Test, evidence: Evidence, draws: Resampling) -> Measured:
    """How much more often samples begin with the token that the lens of the vector names first, than the base's do."""
    arm, temperature = evidence.arm(test.settings["arm"]), float(test.settings["temperature"])
    controls = [evidence.arm(name) for name in control_names(test.settings)]
    estimates, notes = [], []
    for run, name, seed in _vectors(evidence, "logit_lens", arm):
        rows = _chosen(run.result.tables.get("direct", []), name, {"lens": "norm", "side": "top", "rank": 1}, run)
        if not rows:
            continue
        first = max(rows, key=lambda row: HookPoint.parse(str(row["point"])).layer)
        tables, seeds = evidence.samples.tables([arm, BASE, *controls], temperature, int(first["token_id"]))
        if seed not in seeds[arm]:
            continue
        own = tables[arm][[seeds[arm].index(seed)]]
        beside = {control: difference(tables[control], tables[BASE], draws) for control in controls}
        estimates.append(
            Estimate(difference(own, tables[BASE], draws), own.shape[1], f"seed {seed}", (seed,), beside,
                     (run.folder, evidence.samples.source))
        )  # fmt: skip
        notes.append(
            f"Seed {seed}: the lens names {first['token']!r} (cosine {first['cosine']:.2f}); samples begin with it in "
            f"{100 * tables[BASE].mean():.1f} % (base) and {100 * own.mean():.1f} %."
        )
    if not estimates:
        raise Missing(f"no logit_lens of {arm} with samples of the same seed")
    return Measured(estimates, tuple(notes))


def sae_ablation(test: Test, evidence: Evidence, draws: Resampling) -> Measured:
    """Change of accuracy when the first feature of the ranking is ablated, in the direction that its correlation says:
    positive if a feature of right answers lowers the accuracy when it is taken away.
    """
    del draws
    arm = evidence.arm(test.settings["arm"])
    estimates, notes = [], []
    for run, name, seed in _vectors(evidence, "diff_sae", arm):
        first = _chosen(run.result.rows, name, {"metric": "active rate, right - wrong", "rank": 1}, run)
        if not first or first[0]["value"] is None:
            continue
        sign, feature = (1.0 if first[0]["value"] > 0 else -1.0), first[0]["feature"]
        where = {"metric": "accuracy, edited - steered", "run": "ablated", "feature": feature}
        changes = _chosen(run.result.rows, name, where, run)
        if not changes:
            continue
        effect, control = (_signed(one, -sign) for one in (_interval(changes[0]), _own_control(changes[0])))
        beside = {"random features": control} if "own" in control_names(test.settings).values() else {}
        estimates.append(
            Estimate(effect, int(changes[0]["n"]), f"seed {seed}", (seed,), beside, (run.folder,))
        )  # fmt: skip
        notes.append(f"Seed {seed}: feature {feature}, of {'right' if sign > 0 else 'wrong'} answers.")
    if not estimates:
        raise Missing(f"no diff_sae of {arm} that ablated its first feature")
    return Measured(estimates, tuple(notes))


_MEASURES: Mapping[str, Callable[[Test, Evidence, Resampling], Measured]] = {
    "share_of_gain": share_of_gain,
    "analysis": from_analysis,
    "lens_token": lens_token,
    "sae_ablation": sae_ablation,
}


# -- rows of analyses


def _vectors(evidence: Evidence, analyzer: str, arm: str) -> list[tuple[Analysed, str, int]]:
    """(analysis, the vector's name in it, its seed), by seed."""
    found = [
        (run, name, seed)
        for run in evidence.analyses
        if run.result.analyzer == analyzer
        for name, (of, seed) in run.vectors.items()
        if of == arm
    ]
    return sorted(found, key=lambda item: item[2])


def _of_run(test: Test, run: Analysed, arm: str | None, label: str, several_arms: bool) -> list[Estimate]:
    """An estimate for each of the analysis's vectors that are the arm's (for the whole analysis, without arm)."""
    if arm is None:
        seeds = sorted({seed for _, seed in run.vectors.values()}) or [0]
        whose: list[tuple[str | None, tuple[int, ...]]] = [(None, tuple(seeds[:1]))]
    else:
        whose = [(name, (seed,)) for name, (of, seed) in run.vectors.items() if of == arm]
    estimates = []
    for name, of_seeds in whose:
        where = {"metric": test.settings["metric"], **(test.settings.get("where") or {})}
        rows = _chosen(run.result.rows, name, where, run)
        if not rows:
            continue  # another run of this analyzer, with other settings
        value = _mean([_interval(row) for row in rows])
        beside = {}
        for control, spec in control_names(test.settings).items():
            if spec == "own":
                beside["random" if control == "own" else control] = _mean([_own_control(row) for row in rows])
            else:
                others = _chosen(run.result.rows, name, {**where, **spec}, run)
                if not others:
                    raise Missing(f"{run.folder} has no row { {**where, **spec} }")
                beside[control] = _mean([_interval(row) for row in others])
        parts = [label, arm if several_arms and arm else "", *(f"seed {seed}" for seed in of_seeds)]
        if test.settings.get("absolute") and value.mean < 0:
            value = _signed(value, -1.0)
        estimates.append(
            Estimate(value, min(int(row["n"]) for row in rows), ", ".join(part for part in parts if part), of_seeds,
                     beside, (run.folder,))
        )  # fmt: skip
    return estimates


def _chosen(rows: Sequence[Row], vector: str | None, where: Mapping[str, Any], run: Analysed) -> list[Row]:
    return [
        row
        for row in rows
        if (vector is None or row.get("vector") == vector)
        and all(key in row and _matches(key, row[key], wanted, vector, run) for key, wanted in where.items())
    ]


def _matches(key: str, value: Any, wanted: Any, vector: str | None, run: Analysed) -> bool:
    if isinstance(wanted, list):
        return any(_matches(key, value, one, vector, run) for one in wanted)
    if key in ("layer", "steered_layer"):
        if wanted == "own":
            points = run.result.vectors[vector]["points"] if vector else []
            return value in {HookPoint.parse(point).layer for point in points}
        if isinstance(wanted, int) and wanted < 0:
            wanted += int(run.result.model["n_layers"])
    if isinstance(wanted, str) and isinstance(value, str):
        return fnmatchcase(value, wanted)
    return bool(value == wanted)


def _combinations(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each of a list's values must be there: one selection for each."""
    found: list[dict[str, Any]] = [{}]
    for key, value in settings.items():
        found = [one | {key: item} for one in found for item in (value if isinstance(value, list) else [value])]
    return found


def _fits(run: Analysed, settings: Mapping[str, Any]) -> bool:
    own = run.result.settings
    return all(
        fnmatchcase(str(own.get(key)), value) if isinstance(value, str) else own.get(key) == value
        for key, value in settings.items()
    )


def _interval(row: Row) -> Interval:
    if row["value"] is None:
        raise Missing(f"{row['metric']}: the number could not be had")
    if row["ci95"] is None:
        if row["n"] > 1:
            raise Missing(f"{row['metric']} has no interval: what it is divided by may be 0")
        return Interval(row["value"], row["value"], row["value"])  # exact
    return Interval(row["value"], *row["ci95"])


def _own_control(row: Row) -> Interval:
    if row["control"] is None:
        raise Missing(f"{row['metric']} has no control")
    ends = row["control_ci95"] or [row["control"], row["control"]]
    return Interval(row["control"], *ends)


def _mean(parts: Sequence[Interval]) -> Interval:
    return Interval(*(float(np.mean(values)) for values in zip(*parts, strict=True)))


def _signed(interval: Interval, sign: float) -> Interval:
    if sign > 0:
        return interval
    return Interval(-interval.mean, -interval.high, -interval.low)


def _shown(interval: Interval) -> str:
    return f"{interval.mean:.2f} ({interval.low:.2f} to {interval.high:.2f})"
