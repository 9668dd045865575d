"""Single layers side by side, and the learning rates that were tried before the test set was touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steerkit.analysis.plots import Lines, Series, Table
from steerkit.study.report.arms import accuracy, falling, first_command, ordered, said, series_of
from steerkit.study.report.blocks import Block, Section
from steerkit.study.report.read import Study
from steerkit.study.report.words import interval, listed, percent, rate


def layers(study: Study) -> Section:
    """Static vectors at one layer each."""
    title, question = "Layer sweep", "At which layer does one vector alone help?"
    single = [arm for arm in study.arms if arm["arm"].startswith("static_") and len(arm.get("layers") or []) == 1]
    single.sort(key=lambda arm: arm["layers"][0])
    if len(single) < 2:
        words = "One static arm stands" if single else "No static arm stands"
        return Section("layers", title, question, missing=[f"{words} at a layer of a sweep (each_layer): no sweep."])
    x = [arm["layers"][0] for arm in single]
    t = falling(study)[0]
    series = [series_of(f"one layer, T={t}", [accuracy(arm, t) for arm in single]) for t in falling(study)]
    for name in ("base", "static_all", "full"):
        value = accuracy(study.arm(name), t).get("value")
        if value is not None:
            series.append(Series(f"{study.label(name)}, T={t}", [value] * len(x), control=True))
    known = [arm for arm in single if accuracy(arm, t).get("value") is not None] or single
    best, worst = (pick(known, key=lambda arm: accuracy(arm, t).get("value") or 0.0) for pick in (max, min))
    block = Block(
        [Lines("Accuracy by the layer that is steered", x, series, "layer", "accuracy, %")],
        [f"At temperature {t} the best layer is {best['layers'][0]}: {said(best, t)}; the worst {worst['layers'][0]}: "
         f"{said(worst, t)}. The base has {said(study.arm('base'), t)}."],
        "Bands are 95 % intervals over problems; grey lines are the arms that the sweep is measured against.",
        command=first_command(single),
        data=["results.json"],
        facts=["learning rates: " + ", ".join(f"layer {arm['layers'][0]} {_rate(arm)}" for arm in single)],
    )  # fmt: skip
    return Section("layers", title, question, [block])


def choices(study: Study) -> Section:
    """Which learning rate each arm got, and from which grid."""
    title, question = "Choice of learning rates", "What was tried before the test set was touched?"
    chosen = [(study.label(arm["arm"]), arm["choice"]) for arm in ordered(study)
              if (arm.get("choice") or {}).get("grid") and not _taken(arm)]  # fmt: skip
    arms = len(chosen)
    chosen += [(f"recipient {other['name']}", other["choice"]) for other in study.recipients if other.get("choice")]
    if not chosen:
        return Section("choice", title, question, missing=["No grid: every rate was stated beforehand."])
    rows = []
    for label, choice in chosen:
        for cell in choice["grid"]:
            mark = "chosen" if cell.get("lr") == choice.get("lr") else ""
            ends = interval(cell.get("low"), cell.get("high"), "%")
            rows.append([label, str(cell.get("lr")), percent(cell.get("accuracy")), ends, mark])
    edges = [label for label, choice in chosen if _at_an_end(choice)]
    others = f"; recipients of transferred vectors: {len(chosen) - arms}" if len(chosen) > arms else ""
    finding = [f"Arms with a grid: {arms}{others}."]
    finding.append(f"Chosen at an end of its grid: {listed(edges)}. A better rate may lie beyond." if edges
                   else "No rate was chosen at an end of its grid.")  # fmt: skip
    taken = [f"{study.label(arm['arm'])} takes {_rate(arm)} from {study.label(_taken(arm))}" for arm in ordered(study)
             if _taken(arm)]  # fmt: skip
    columns = ["arm", "learning rate", "validation %", "interval", ""]
    table = Table("Validation accuracy by learning rate", columns, rows)
    block = Block([table], finding, command=study.command, data=["results.json"], facts=taken)
    return Section("choice", title, question, [block])


def _rate(arm: Mapping[str, Any]) -> str:
    return rate((arm.get("choice") or {}).get("lr") or arm.get("lr"))


def _taken(arm: Mapping[str, Any]) -> str:
    """The arm whose rate it takes; empty where it has its own grid, or none."""
    return str((arm.get("choice") or {}).get("taken_from") or "")


def _at_an_end(choice: Mapping[str, Any]) -> bool:
    if "at_end" in choice:
        return bool(choice["at_end"])
    rates = [cell.get("lr") for cell in choice["grid"]]
    return len(rates) > 1 and choice.get("lr") in (rates[0], rates[-1])
