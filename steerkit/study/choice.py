"""What is chosen on the way: learning rates on validation, an opening; and the words that stand for it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steerkit.errors import SteerkitError
from steerkit.files import write_json
from steerkit.study.arms import Arm, rate_of
from steerkit.study.items import Item

_WORD = re.compile(r"<(rate|opening) of ((?:recipients/)?[\w.-]+)>")


def best(grid: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rate with the highest validation accuracy; of equal ones the smallest, and the tie is stated.

    Args:
        grid: ``{"lr", "accuracy"}``, accuracy in percent or None (the run failed, or nothing was judged).

    Returns:
        ``lr``, ``ties`` (all rates of the best accuracy, where there are several), ``at_end`` (the best stands at an
        end of the grid: a better one may lie outside).

    Raises:
        SteerkitError: no rate has an accuracy.
    """
    known = sorted((row for row in grid if row["accuracy"] is not None), key=lambda row: float(row["lr"]))
    if not known:
        raise SteerkitError("no rate of the grid has a validation accuracy")
    top = max(row["accuracy"] for row in known)
    ties = [row["lr"] for row in known if row["accuracy"] == top]
    rates = sorted(float(row["lr"]) for row in grid)
    at_end = len(rates) > 1 and float(ties[0]) in (rates[0], rates[-1])
    return {"lr": ties[0], "ties": ties if len(ties) > 1 else [], "at_end": at_end}


def choose(folder: Path, item: Item) -> None:
    """Do an item of kind ``choose``: read results, write its ``choice.json``.

    Raises:
        SteerkitError: nothing can be chosen.
    """
    about = item.about
    if "opening" in about:
        openings = _read(folder / about["opening"]).get("openings", [])
        if not openings:
            raise SteerkitError("the base has no printable opening among its likeliest first tokens")
        record = {"opening": openings[0]["text"], "openings": openings}
    elif "layers" in about:
        rows = _read(folder / about["results"])["rows"]
        by_layer: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            axes = row["sweep"]
            by_layer.setdefault(str(axes["layer"]), []).append(_grid_row(axes["lr"], row))
        chosen = {layer: {**best(grid), "grid": grid} for layer, grid in by_layer.items()}
        record = {"layers": chosen, "rate": {layer: one["lr"] for layer, one in chosen.items()}}
        record["rate"] = {"default": next(iter(record["rate"].values())), **record["rate"]}
    else:
        grid = []
        for lr, place in about["grid"].items():
            path = folder / place
            row = _read(path)["rows"][0] if path.is_file() else {"accuracy": None, "ci95": None}
            grid.append(_grid_row(float(lr), row))
        record = {**best(grid), "grid": grid}
        record["rate"] = rate_of(record["lr"], about["last"])
    write_json(folder / item.out, record | {"temperature": about.get("temperature")})


def resolved(folder: Path, argv: Sequence[str], arms: Mapping[str, Arm]) -> list[str]:
    """The words of a command with what was chosen in the place of ``<rate of ARM>`` (or ``recipients/NAME``) and
    ``<opening of ARM>``."""
    return [_WORD.sub(lambda found: _chosen(folder, found[1], found[2], arms), word) for word in argv]


def _chosen(folder: Path, what: str, name: str, arms: Mapping[str, Arm]) -> str:
    arm = arms.get(name)
    place = name if name.startswith("recipients/") else f"arms/{arm.key if arm else name}"
    record = _read(folder / place / "choice.json")
    if what == "opening":
        return json.dumps(record["opening"], ensure_ascii=False)[1:-1]  # it stands inside a JSON text
    if arm is not None and arm.layer is not None:
        return json.dumps(record["layers"][str(arm.layer)]["lr"])
    return json.dumps(record["rate"])


def _grid_row(lr: float, row: Mapping[str, Any]) -> dict[str, Any]:
    if row.get("failed"):  # a policy of a sweep that broke down: what it was before is no result of this rate
        return {"lr": lr, "accuracy": None, "low": None, "high": None, "failed": row["failed"]}
    low, high = row["ci95"] or (None, None)
    percent = [None if v is None else round(100 * v, 4) for v in (row["accuracy"], low, high)]
    return {"lr": lr, "accuracy": percent[0], "low": percent[1], "high": percent[2]}


def _read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record
