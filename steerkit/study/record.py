"""The record of a study: ``results.json`` and ``samples.parquet``, from the folders of its items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steerkit.evaluation.results import versions, write_samples
from steerkit.files import write_json
from steerkit.study.arms import Arm
from steerkit.study.config import StudyConfig
from steerkit.study.intervals import intervals, machine
from steerkit.study.items import WorkList
from steerkit.study.plan import Plan
from steerkit.verifiers.boxed import last_boxed

SCHEMA = 1


def assemble(folder: Path, config: StudyConfig, arms: Mapping[str, Arm], plan: Plan, work: WorkList,
             decode: Callable[[int], str], command: str) -> dict[str, Any]:  # fmt: skip
    """Write ``samples.parquet``, and return the record without its verdicts.

    An arm without a finished run is not in it; ``failed`` says why.

    Args:
        decode: the text of a token.
        command: of the study.
    """
    rows: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    problems: dict[str, str] = {}
    for arm in arms.values():
        runs, own = [], []
        for seed in seeds_of(arm, arms, config):
            run = _run(folder, arm, arms, seed, work)
            if run is None:
                continue
            facts, samples = run
            runs.append(facts)
            for sample in samples:
                problems[sample["id"]] = f"{sample['problem']}\x1f{sample['answer']}"
                own.append(_sample(arm.name, seed, sample))
        if not runs:
            continue
        rows += own
        shown.append(_arm(folder, arm, arms, config, runs, own))
    first = next((run for arm in shown for run in arm["runs"]), None)
    results = _read(folder / first["folder"] / "results.json") if first else {"rows": []}
    test = results["rows"][0]["set"] if results["rows"] else ""
    listed = json.dumps(sorted(problems.items()), ensure_ascii=True)
    firsts = {row["first_token"] for row in rows if row["first_token"] is not None}
    if rows:
        write_samples(folder / "samples.parquet", rows)
    record = {
        "schema": SCHEMA,
        "name": config.name,
        "config_hash": config.digest(),
        "rules_hash": config.rules_digest(),
        "base": config.base,
        "command": command,
        "started": work.sessions[0]["started"] if work.sessions else None,
        "seconds": round(sum(session["seconds"] for session in work.sessions), 1),
        "sessions": work.sessions,
        "cpu_seconds": round(sum(item.cpu_seconds for item in work.items.values()), 1),
        "machine": machine() | {"threads": work.sessions[-1]["threads"] if work.sessions else None},
        "versions": versions(),
        "test": {"dataset": test, "n": len(problems), "sha": hashlib.sha256(listed.encode()).hexdigest()[:16]},
        "temperatures": config.temperatures,
        "seeds": config.seeds,
        "arms": shown,
        "aliases": {alias: arm.name for arm in arms.values() for alias in arm.aliases},
        "samples": "samples.parquet",
        "first_tokens": {str(token): decode(token) for token in sorted(firsts)},
        "analyses": _analyses(work),
        "recipients": _recipients(folder, config, work),
        "verdicts": [],
        "failed": work.failed,
        "left_out": plan.left_out,
        "items": {state: work.count(state) for state in ("done", "failed", "waiting")},
    }
    return record


def seeds_of(arm: Arm, arms: Mapping[str, Arm], config: StudyConfig) -> list[int]:
    """Training seeds; a base's or a prefix's row has none and is measured once, beside the first."""
    owner = arms[arm.config.of].config if arm.config.of is not None else arm.config
    seeds = owner.seeds or config.seeds
    return list(seeds[:1] if arm.config.row in ("base", "prefix") else seeds)


def _run(folder: Path, arm: Arm, arms: Mapping[str, Arm], seed: int, work: WorkList
         ) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:  # fmt: skip
    """(what is known of a run, its samples), or None where it is not done."""
    from pyarrow import parquet

    key = arm.config.of or arm.key
    item = work.items[f"{key}/final" if arm.layer is not None else f"{key}/seed{seed}"]
    if item.state != "done":
        return None
    place = f"{item.out}/sweep/layer{arm.layer}_seed{seed}" if arm.layer is not None else item.out
    wanted = arm.config.row or "steered"
    samples = [
        sample
        for sample in parquet.read_table(folder / place / "samples.parquet").to_pylist()
        if sample["arm"].split(" ")[0] == wanted
    ]
    if not samples:
        return None
    row = next(r for r in _read(folder / place / "results.json")["rows"] if r["arm"] == samples[0]["arm"])
    own = arm.config.row is None
    there = {name: (folder / place / path).exists() for name, path in _PARTS.items()}
    facts = {
        "seed": seed,
        "folder": place,
        "row": samples[0]["arm"],
        "vector": f"{place}/vector" if own and there["vector"] else None,
        "adapter": next((f"{place}/{name}" for name in ("adapter", "model") if own and there[name]), None),
        "curve": f"{place}/metrics.csv" if own and there["curve"] else None,
        "command": item.command,
        "log": item.log,
        "failed": row.get("failed"),
        "facts": {name: row.get(name) for name in ("lr", "trainable_params", "optimizer_bytes", "seconds_per_step")},
    }
    return facts, samples


_PARTS = {"vector": "vector", "adapter": "adapter", "model": "model", "curve": "metrics.csv"}


def _sample(arm: str, seed: int, sample: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "arm": arm,
        "seed": seed,
        "temperature": float(sample["temperature"]),
        "id": sample["id"],
        "sample": sample["sample"],
        "correct": None if sample["verdict"] == "fault" else sample["verdict"] == "correct",
        "tokens": sample["tokens"],
        "boxed": last_boxed(sample["completion"]) is not None,
        "cut": sample["finish_reason"] == "length",
        "first_token": sample["first_token"],
    }


def _arm(folder: Path, arm: Arm, arms: Mapping[str, Arm], config: StudyConfig, runs: list[dict[str, Any]],
         rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:  # fmt: skip
    facts = [run.pop("facts") for run in runs]
    timed = [fact["seconds_per_step"] for fact in facts if fact["seconds_per_step"] is not None]
    own = arm.config.row is None
    return {
        "arm": arm.name,
        "label": arm.label,
        "aliases": list(arm.aliases),
        "role": arm.config.role,
        "row_of": arm.config.of,
        "layers": _layers(folder, arm, runs),
        "trainable": facts[0]["trainable_params"] if own else 0,
        "optimizer_bytes": facts[0]["optimizer_bytes"] if own else 0,
        # In a sweep the step is that of all policies together: it says nothing of one.
        "step_seconds": round(float(np.median(timed)), 4) if own and timed and arm.layer is None else None,
        "lr": facts[0]["lr"] if own else None,
        "choice": _choice(folder, arm, arms, config) if own else None,
        "runs": runs,
        "accuracy": intervals(rows, "correct", 100.0),
        "lengths": intervals(rows, "tokens", 1.0),
        "boxed": intervals(rows, "boxed", 100.0),
    }


def _layers(folder: Path, arm: Arm, runs: Sequence[Mapping[str, Any]]) -> list[int]:
    """The layers that its vector stands at; none for a baseline that changes weights."""
    if arm.layer is not None:
        return [arm.layer]
    vector = runs[0]["vector"]
    if vector is None:
        return []
    from steerkit.vectors import SteeringVector

    return sorted({point.layer for point in SteeringVector.from_pretrained(folder / vector).tensors})


def _choice(folder: Path, arm: Arm, arms: Mapping[str, Arm], config: StudyConfig) -> dict[str, Any] | None:
    """What was chosen for an arm, by its own grid or by that of the arm whose rate it takes."""
    owner = arms.get(arm.config.lr_of) if arm.config.lr_of is not None else arm
    owner = owner or next((a for a in arms.values() if arm.config.lr_of in a.aliases), arm)
    path = folder / "arms" / owner.key / "choice.json"
    if not config.choice.enabled or owner.config.grid is None or not path.is_file():
        return None
    record = _read(path)
    chosen = record["layers"][str(owner.layer)] if owner.layer is not None else record
    return _chosen(chosen) | {"taken_from": owner.name if owner is not arm else None}


def _chosen(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("lr", "grid", "ties", "at_end")}


def _analyses(work: WorkList) -> list[dict[str, Any]]:
    done = [item for item in work.items.values() if item.kind == "analyze" and item.state == "done"]
    return [
        {
            "name": item.id,
            "analyzer": item.about["analyzer"],
            "arm": item.about["arms"][0],
            "arms": item.about["arms"],
            "seed": item.about["seed"],
            "vectors": item.about["vectors"],
            "recipient": item.about.get("recipient"),
            "folder": item.out,
            "command": item.command,
            "seconds": item.seconds,
            "cpu_seconds": item.cpu_seconds,
        }
        for item in done
    ]


def _recipients(folder: Path, config: StudyConfig, work: WorkList) -> list[dict[str, Any]]:
    found = []
    for name, recipient in config.recipients.items():
        item = work.items.get(f"recipients/{name}/own")
        if item is not None and item.state == "done":
            path = folder / "recipients" / name / "choice.json"
            chosen = config.choice.enabled and recipient.grid is not None and path.is_file()
            found.append({"name": name, "base": recipient.base, "like": recipient.like, "folder": item.out,
                          "vector": f"{item.out}/vector", "command": item.command,
                          "choice": _chosen(_read(path)) if chosen else None})  # fmt: skip
    return found


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """``results.json``, whole or not at all."""
    write_json(folder / "results.json", record)


def _read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record
