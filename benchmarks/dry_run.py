"""What `steerkit fit --dry_run` says of SmolLM2-135M, against what `steerkit fit` then takes.

    python benchmarks/dry_run.py            # the table; benchmarks/results/dry_run.json

Needs plugins/steerkit-smollm2. Each case is a forecast in one process and a training of a few steps in another: peak
resident memory (of the whole process) and the median seconds of a step after the first, judging left out. Problems come
from the generator; without a few-shot prompt nearly all completions are cut off, as the forecast presumes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMMON = {
    "seed_everything": 0, "samples_every": 0, "model.base": "smollm2-135m-instruct", "model.temperature": 1.0,
    "model.template": {"system": ""}, "model.validation_temperatures": [1.0], "data.n_validation": 2,
    "trainer.limit_val_batches": 0, "trainer.enable_progress_bar": False, "report.arms": [],
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "static, all layers": {"model.layers": "all", "data.prompts_per_step": 8, "model.samples_per_prompt": 8,
                           "model.max_tokens": 64},
    "static, layer 15": {"model.layers": 15, "data.prompts_per_step": 8, "model.samples_per_prompt": 8,
                         "model.max_tokens": 64},
    "static, last layer": {"model.layers": -1, "data.prompts_per_step": 8, "model.samples_per_prompt": 8,
                           "model.max_tokens": 64},
    "static, all layers, longer": {"model.layers": "all", "data.prompts_per_step": 4, "model.samples_per_prompt": 8,
                                   "model.max_tokens": 128},
    "full fine-tuning": {"model.intervention": "full", "data.prompts_per_step": 4, "model.samples_per_prompt": 8,
                         "model.max_tokens": 64, "model.lr": 1e-5},
}  # fmt: skip


def words(settings: dict[str, Any]) -> list[str]:
    return [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in settings.items()]


def forecast(arguments: list[str]) -> dict[str, float]:
    """In this process: peak bytes and seconds a step."""
    from steerkit.commands import dry_run, train
    from steerkit.commands.console import prepare

    prepare()
    try:
        train._run_lightning("fit", [*arguments, "--dry_run"])
    except train.DryRun as asked:
        rows = {row.name: row for row in dry_run.examine(asked.model, asked.data, asked.config, arguments)}
    memory, took = rows["memory"].figures, rows["time"].figures
    return {"peak": memory["peak"], **{key: took[key] for key in ("step_s", "sampling_s", "update_s")}}


def child(kind: str, name: str, steps: int) -> dict[str, float]:
    """One of the two, in a process of its own."""
    arguments = words({**COMMON, **CASES[name], "model.rewards": "random", "trainer.max_steps": steps})
    with tempfile.TemporaryDirectory() as folder:
        arguments.append(f"--run_dir={folder}/run")
        if kind == "forecast":
            command = [sys.executable, __file__, "--forecast", json.dumps(arguments)]
            return json.loads(
                subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
            )
        process = subprocess.Popen([sys.executable, "-m", "steerkit", "fit", *arguments], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{name}: the training failed")
        with open(Path(folder) / "run" / "metrics.csv", newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("time/update")][1:]
    middle = {key: statistics.median(float(row[f"time/{key}"]) for row in rows) for key in ("rollout", "update")}
    length = statistics.mean(float(row["length"]) for row in rows) if "length" in rows[0] else float("nan")
    return {"peak": usage.ru_maxrss * 1024.0, "step_s": sum(middle.values()), "sampling_s": middle["rollout"],
            "update_s": middle["update"], "length": length}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--forecast", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.forecast:
        print(json.dumps(forecast(json.loads(options.forecast))))
        return
    target = HERE / "results" / "dry_run.json"
    target.parent.mkdir(exist_ok=True)
    found: dict[str, Any] = json.loads(target.read_text()) if target.is_file() else {}  # cases of other calls stay
    print("| case | memory: forecast | measured | ratio | a step: forecast | measured | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name in options.only:
        said, was = child("forecast", name, options.steps), child("fit", name, options.steps)
        found[name] = {"forecast": said, "measured": was}
        gb = [part["peak"] / 1e9 for part in (said, was)]
        s = [part["step_s"] for part in (said, was)]
        print(f"| {name} | {gb[0]:.2f} GB | {gb[1]:.2f} GB | {gb[0] / gb[1]:.2f} | {s[0]:.1f} s | {s[1]:.1f} s | "
              f"{s[0] / s[1]:.2f} |", flush=True)  # fmt: skip
        target.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
