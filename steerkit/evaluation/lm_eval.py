"""The results in the files that lm-evaluation-harness writes, for tools that read those.

The shapes are those of ``lm_eval.loggers.EvaluationTracker`` (version 0.4): one folder a model with
``results_DATE.json`` and ``samples_TASK_DATE.jsonl``. An arm is a model, a set is a task, a temperature is a filter.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from steerkit.evaluation.records import by_problem, mean_share
from steerkit.evaluation.rows import MEAN
from steerkit.files import write_json, write_text

METRIC = "exact_match"
"""lm-eval's name for the share of right answers in its generative maths tasks."""


def write_lm_eval(
    folder: str | Path,
    record: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    now: datetime | None = None,
) -> list[Path]:
    """Write ``FOLDER/ARM/results_DATE.json`` and one ``samples_SET_DATE.jsonl`` a set, for each arm.

    Args:
        folder: where the models' folders go.
        record: ``results.json``.
        samples: the rows of ``samples.parquet``.
        now: the date in the file names.

    Returns:
        The result files.
    """
    # lm-eval cuts the task's name out between the first and the last underscore, the date follows the last.
    date = (now or datetime.now()).isoformat().replace(":", "-")
    arms = list(dict.fromkeys(row["arm"] for row in record["rows"]))
    written = []
    for arm in arms:
        model = record["model"] if arm == "base" else f"{record['model']}+{arm}"
        place = Path(folder) / re.sub(r"[\"<>:/|\\?*\[\]]+", "__", model)
        rows = [row for row in record["rows"] if row["arm"] == arm and row["set"] != MEAN]
        own = [sample for sample in samples if sample["arm"] == arm]
        lines = {name: _sample_lines([s for s in own if s["set"] == name]) for name in dict.fromkeys(_sets(rows))}
        for name, records in lines.items():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in records)
            task = re.sub(r"[/\\:]", "_", name)
            write_text(place / f"samples_{task}_{date}.jsonl", text.encode("utf-8", "replace").decode())
        write_json(place / f"results_{date}.json", _results(model, rows, own, lines, record))
        written.append(place / f"results_{date}.json")
    return written


def _sets(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(row["set"]) for row in rows]


def _filter(temperature: float) -> str:
    return f"temperature={temperature:g}"


def _results(
    model: str,
    rows: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    lines: Mapping[str, Sequence[Mapping[str, Any]]],
    record: Mapping[str, Any],
) -> dict[str, Any]:
    results: dict[str, dict[str, Any]] = {}
    configs: dict[str, Any] = {}
    for row in rows:
        name, filter_ = str(row["set"]), _filter(row["temperature"])
        part = [s for s in samples if s["set"] == name and s["temperature"] == row["temperature"]]
        found = results.setdefault(name, {"alias": name})
        found[f"{METRIC},{filter_}"] = row["accuracy"]
        found[f"{METRIC}_stderr,{filter_}"] = _standard_error(part)
        config = configs.setdefault(name, {"task": name, "output_type": "generate_until", "num_fewshot": 0})
        config.setdefault("metric_list", [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}])
        config.setdefault("filter_list", []).append({"name": filter_})
        config["repeats"] = max(config.get("repeats", 1), row["k"])
    return {
        "results": results,
        "group_subtasks": {name: [] for name in results},
        "configs": configs,
        "versions": dict.fromkeys(results, record["schema"]),
        "n-shot": dict.fromkeys(results, 0),
        "higher_is_better": {name: {METRIC: True} for name in results},
        "n-samples": {name: {"original": _n(rows, name), "effective": _n(rows, name)} for name in results},
        "config": {"model": "steerkit", "model_args": f"pretrained={model}", "command": record["command"]},
        "git_hash": None,
        "steerkit_versions": record["versions"],
        "task_hashes": {
            name: _hash("".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in own))
            for name, own in lines.items()
        },
        "model_source": "steerkit",
        "model_name": model,
        "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", model),
    }


def _n(rows: Sequence[Mapping[str, Any]], name: str) -> int:
    return max(int(row["n"]) for row in rows if row["set"] == name)


def _standard_error(part: Sequence[Mapping[str, Any]]) -> float | str:
    """Of the mean over problems; ``N/A``, as lm-eval writes it, for less than two."""
    shares = mean_share(part)
    known = shares[~np.isnan(shares)]
    return float(known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else "N/A"


def _sample_lines(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line a problem and temperature; its samples are the ``resps`` of the one request."""
    lines = []
    numbers = {name: number for number, name in enumerate(by_problem(samples))}
    for temperature in dict.fromkeys(sample["temperature"] for sample in samples):
        rows = by_problem([sample for sample in samples if sample["temperature"] == temperature])
        for name, row in rows.items():
            share = mean_share(row)[0]
            first = row[0]
            doc = {"id": name, "problem": first["problem"], "answer": first["answer"], "source": first["source"]}
            generation = {"temperature": temperature, "do_sample": temperature > 0}
            lines.append(
                {
                    "doc_id": numbers[name],
                    "doc": doc,
                    "target": str(first["answer"]),
                    "arguments": {"gen_args_0": {"arg_0": first["problem"], "arg_1": generation}},
                    "resps": [[sample["completion"] for sample in row]],
                    "filtered_resps": [sample["extracted"] for sample in row],
                    "filter": _filter(temperature),
                    "metrics": [METRIC],
                    "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
                    "prompt_hash": _hash(first["problem"]),
                    "target_hash": _hash(str(first["answer"])),
                    METRIC: None if np.isnan(share) else float(share),
                }
            )
    return lines


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
