"""The arms: their order, their accuracies as text, and the section that opens the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from steerkit.analysis.plots import Series, Table
from steerkit.study.report.blocks import Block, Dots, Section
from steerkit.study.report.read import Study
from steerkit.study.report.words import NONE, interval, number, percent, rate

ROLES = {"base": "base", "steering": "steering", "baseline": "weights are trained", "control": "controls"}
"""Role -> heading, in the order of figures and tables."""
Arm = Mapping[str, Any]


def group(arm: Arm | None) -> str:
    """The heading that an arm stands under."""
    return ROLES.get((arm or {}).get("role", ""), "other")


def ordered(study: Study) -> list[Arm]:
    """The arms by role, else in the study's order."""
    place = {role: index for index, role in enumerate(ROLES)}
    return sorted(study.arms, key=lambda arm: place.get(arm.get("role", ""), len(place)))


def falling(study: Study) -> list[str]:
    """The temperatures, the highest first."""
    return sorted(study.temperatures, key=float, reverse=True)


def accuracy(arm: Arm | None, temperature: str) -> Mapping[str, Any]:
    """Its record at a temperature; empty where there is none."""
    return ((arm or {}).get("accuracy") or {}).get(temperature) or {}


def said(arm: Arm | None, temperature: str) -> str:
    """``81.1 % (78.1 to 83.9)``"""
    found = accuracy(arm, temperature)
    ends = interval(found.get("low"), found.get("high"), "%")
    return f"{percent(found.get('value'))} %" + (f" ({ends})" if ends else "")


def series_of(name: str, records: Sequence[Mapping[str, Any]]) -> Series:
    """Records of value, low and high as a series."""
    value, low, high = ([record.get(key) for record in records] for key in ("value", "low", "high"))
    return Series(name, value, low, high)


def first_command(arms: Sequence[Arm]) -> str:
    """The command of the first run there is."""
    runs = [run for arm in arms for run in arm.get("runs") or []]
    return str(runs[0].get("command") or "") if runs else ""


def headline(study: Study) -> Section:
    """Accuracy by arm at every temperature."""
    title, question = "Accuracy by arm", "How often is each arm right on problems that no choice was made on?"
    arms = ordered(study)
    if not arms:
        return Section("accuracy", title, question, missing=["No arm was measured."])
    picture = Dots(
        title,
        [study.label(arm["arm"]) for arm in arms],
        [series_of(f"temperature {t}", [accuracy(arm, t) for arm in arms]) for t in falling(study)],
        "accuracy, %",
        [group(arm) for arm in arms],
        (0.0, _top(study)),
    )
    n, seeds = (study.results.get("test") or {}).get("n", NONE), study.results.get("seeds") or []
    block = Block(
        [picture, _table(study)],
        headline_sentences(study),
        "Each row is an arm: filled points are sampled at the higher temperature, open ones at the lower; lines are "
        "95 % intervals.",
        command=study.command,
        data=["results.json", study.samples_file],
        facts=[f"{n} test problems, training seeds {', '.join(map(str, seeds)) or NONE}",
               "intervals by bootstrap over problems of the seeds' mean"],
    )  # fmt: skip
    return Section("accuracy", title, question, [block])


def _top(study: Study) -> float:
    """The end of the accuracy axis: 100 %, or the next ten above all intervals, so that small effects can be seen."""
    ends = [accuracy(arm, t).get(key) for arm in study.arms for t in study.temperatures for key in ("value", "high")]
    highest = max((end for end in ends if end is not None), default=100.0)
    return min(100.0, 10.0 * math.ceil((highest + 2.0) / 10.0))


def _apart(best: Arm, base: Arm | None, temperature: str) -> str:
    """A remark where the two intervals overlap; nothing where they don't, or one is not known."""
    ends = [accuracy(arm, temperature).get(key) for arm in (best, base) for key in ("low", "high")]
    known = [float(end) for end in ends if end is not None]
    if len(known) < 4 or known[0] > known[3] or known[1] < known[2]:
        return ""
    return " Its interval overlaps the base's, so this alone does not tell them apart."


def headline_sentences(study: Study) -> list[str]:
    """Base, full fine-tuning, and the best arm of steering and controls, at the highest temperature."""
    if not study.arms:
        return []
    t = falling(study)[0]
    full = study.arm("full")
    beside = f", full fine-tuning in {said(full, t)}." if full else "."
    found = [f"At temperature {t} the base is right in {said(study.arm('base'), t)}{beside}"]
    for role, words in (("steering", "steering arm"), ("control", "control")):
        of_role = [arm for arm in study.arms if arm.get("role") == role and accuracy(arm, t).get("value") is not None]
        if of_role:
            best = max(of_role, key=lambda arm: accuracy(arm, t)["value"])
            which = f"best of {len(of_role)} {words}s" if len(of_role) > 1 else f"only {words}"
            apart = _apart(best, study.arm("base"), t)
            found.append(f"The {which} is {study.label(best['arm'])}: {said(best, t)}.{apart}")
    return found


def _table(study: Study) -> Table:
    temperatures = falling(study)[::-1]
    columns = ["arm", *(f"T={t} %" for t in temperatures), "each seed", "numbers trained", "optimiser bytes",
               "s a step", "tokens", "boxed %", "learning rate"]  # fmt: skip
    rows = []
    for arm in ordered(study):
        t = temperatures[-1]
        seeds = ", ".join(percent(value) for value in accuracy(arm, t).get("by_seed") or [])
        more = [((arm.get(name) or {}).get(t) or {}).get("value") for name in ("lengths", "boxed")]
        rates = arm.get("lr") or (arm.get("choice") or {}).get("lr")
        rows.append([
            study.label(arm["arm"]), *(said(arm, t).replace(" %", "", 1) for t in temperatures), seeds,
            *(number(arm.get(name)) for name in ("trainable", "optimizer_bytes", "step_seconds")),
            number(more[0]), percent(more[1]), rate(rates, arm.get("layers") or ()),
        ])  # fmt: skip
    note = f"Each seed, tokens of a completion, share with an answer in a box: at temperature {temperatures[-1]}."
    return Table("All arms", columns, rows, note)
