"""The arms table: every intervention, baseline and control on tiny-reasoner with the same budget.

    python benchmarks/arms.py --out runs/arms              # choose on validation, 3 seeds each, test once, table
    python benchmarks/arms.py --out runs/arms --only static_all lora_r16

1. choose: seed 0, each learning rate of the arm's grid, accuracy at temperature 1 on 128 validation problems x 2
   samples. While the best value is at an end of the grid, the grid goes on by one value on that side (twice at most),
   so that no arm is a straw man. For the mean differences, which nothing trains, the grid is of the vector's scale.
2. final: seeds 0, 1, 2 at the chosen value (mean differences: one, they have no seed), measured once on a fresh draw
   of test problems that no choice has seen.
3. table: mean over seeds; 95 % interval by bootstrap over problems (of the seeds' mean), and each seed's value.

Each run is a `steerkit fit` of its own, or `steerkit extract` and `evaluate`. What is finished lies in
benchmarks/results/arms and is not done again: remove that folder to measure anew, or go on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

HERE = Path(__file__).parent
FRESH = {"name": "arithmetic", "n_eval": 256, "seed": 7}
SEEDS = (0, 1, 2)
RESULTS = HERE / "results" / "arms"


@dataclass(frozen=True)
class Arm:
    """One row of the table: settings of `model` and the learning rates to try, or options of `steerkit extract` and the
    scales to try.
    """

    model: dict[str, Any]
    grid: tuple[float, ...]
    note: str = ""
    last: float = 1.0
    """The last layer's learning rate as a multiple of the others'."""
    rows: tuple[str, ...] = ("steered",)
    seeds: tuple[int, ...] = SEEDS
    extract: tuple[str, ...] = ()
    """Not trained: a mean difference, made with these options and `--scale`."""


ARMS: dict[str, Arm] = {
    "static_all": Arm(
        {}, (0.1, 0.3, 1.0), "static, all layers", last=7.0, rows=("base", "steered", "random", "prefix")
    ),
    "static_middle": Arm({"layers": 3}, (0.3, 1.0, 3.0), "static, layer 3"),
    "static_last": Arm({"layers": -1}, (2.0, 6.0, 20.0), "static, last layer"),
    "tokenwise": Arm({"intervention": "tokenwise"}, (0.03, 0.1, 0.3), "token-wise scaled, all layers"),
    "gated": Arm({"intervention": "gated"}, (0.3, 1.0, 3.0), "gated (sigmoid), all layers", last=7.0),
    "projected": Arm({"intervention": {"name": "projected", "rank": 13}}, (0.3, 1.0, 3.0), "projected, 13 numbers"),
    "lowrank": Arm(
        {"intervention": {"name": "lowrank", "rank": 2}}, (0.1, 0.3, 1.0), "low rank 2, all layers", last=7.0
    ),
    "lora_r1": Arm({"intervention": {"name": "lora", "rank": 1}}, (0.01, 0.03, 0.1), "LoRA r = 1, all linear maps"),
    "lora_r16": Arm(
        {"intervention": {"name": "lora", "rank": 16}}, (0.001, 0.003, 0.01), "LoRA r = 16, all linear maps"
    ),
    "full": Arm({"intervention": "full"}, (1e-4, 3e-4, 1e-3), "full fine-tuning"),
    "entropy": Arm({"objective": "entropy"}, (0.03, 0.1, 0.3), "static, all layers, entropy only", last=7.0),
    "mean_difference": Arm(
        {},
        (0.05, 0.1, 0.2),
        "mean difference, worked - bare answers, all layers (not trained)",
        seeds=(0,),
        extract=("--positive", "worked", "--negative", "bare"),
    ),
    "mean_difference_asked": Arm(
        {},
        (0.5, 1.0, 2.0),
        "mean difference of two requests, all layers, first generated token only (not trained)",
        seeds=(0,),
        extract=(
            *("--positive_request", "Please show your steps.", "--negative_request", "Just the answer."),
            *("--token_mask", "first_generated"),
        ),
    ),
}
FINAL_ONLY: dict[str, tuple[str, Arm]] = {
    "bias": ("static_all", Arm({"intervention": "bias"}, (), "down_proj bias, all layers", last=7.0)),
    "random_reward": ("static_all", Arm({"rewards": "random"}, (), "static, all layers, random reward", last=7.0)),
    "format_reward": ("static_all", Arm({"rewards": "format"}, (), "static, all layers, format reward", last=7.0)),
    "last_first": (
        "static_last",
        Arm(
            {"layers": -1, "token_mask": "first_generated"},
            (),
            "static, last layer, first generated token only",
            seeds=(0,),
        ),
    ),
    "last_rest": (
        "static_last",
        Arm(
            {"layers": -1, "token_mask": "not_first_generated"}, (), "static, last layer, all but the first", seeds=(0,)
        ),
    ),
}
"""Arms that take the rate chosen for another: on this model `bias` is static_all; a control has no validation gain to
choose by.
"""


def measured(out: Path, kind: str, label: str, arm: Arm, value: float, seed: int) -> dict[str, Any]:
    """One run at a learning rate (or scale); returns its rows and what was right, which RESULTS keeps (runs/ need not
    be kept).
    """
    kept, run = RESULTS / kind / f"{label}.json", out / kind / label
    if not kept.exists():
        run.mkdir(parents=True, exist_ok=True)
        if arm.extract:
            vector = run / "vector"
            steerkit(run, "extract", "--model", "tiny-reasoner", *arm.extract, "--scale", f"{value:g}", "--out", vector)
            steerkit(run, "evaluate", "--model", "tiny-reasoner", "--vector", vector, *problems(kind), "--out", run)
            found = summary(run, arm) | {"scale": value}
        else:
            steerkit(run, *fit(kind, arm, value, seed), "--run_dir", run)
            found = summary(run, arm)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found, indent=1))
    kept_record: dict[str, Any] = json.loads(kept.read_text())
    return kept_record


def fit(kind: str, arm: Arm, lr: float, seed: int) -> list[str]:
    """Arguments of a `steerkit fit` that trains the arm and measures it."""
    rate: Any = lr if arm.last == 1.0 else {"default": lr, "-1": lr * arm.last}
    overrides: dict[str, Any] = {"model.lr": rate, **{f"model.{k}": v for k, v in arm.model.items()}}
    if kind == "final":
        overrides |= {"data.test_dataset": FRESH, "report.split": "test", "report.temperatures": [0.0, 1.0]}
        overrides |= {"report.arms": list(arm.rows) if seed == 0 else ["steered"]}
    command = ["fit", "--config", os.path.relpath(HERE / "arms.yaml"), "--seed_everything", str(seed)]
    for key, value in overrides.items():
        command += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return command


def problems(kind: str) -> list[str]:
    """Options of `steerkit evaluate` that measure what the report of `fit` measures, with the same random numbers."""
    config = yaml.safe_load((HERE / "arms.yaml").read_text())
    data, final = config["data"], kind == "final"
    named = {
        "data": json.dumps(FRESH) if final else data["dataset"],
        "split": "test" if final else "validation",
        "limit": data["n_test" if final else "n_validation"],
        "k": config["report"]["k"],
        "max_tokens": config["model"]["max_tokens"],
        "seed": 1,  # ReportConfig.seed
    }
    flags = [word for name, value in named.items() for word in (f"--{name}", str(value))]
    return [*flags, "--temperature", *(("0", "1") if final else ("1",))]


def steerkit(run: Path, *arguments: Any) -> None:
    """Run one command; its output goes to a file beside the run's folder."""
    command = [sys.executable, "-m", "steerkit", *map(str, arguments)]
    log = run.with_name(f"{run.name}_{arguments[0]}.log")
    with open(log, "w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: see {log}")


def summary(run: Path, arm: Arm) -> dict[str, Any]:
    """Rows of results.json that the table shows, and for each the number of right samples of each problem, by problem
    id; the commands that made them.
    """
    from pyarrow import parquet

    results = json.loads((run / "results.json").read_text())
    rows = [row for row in results["rows"] if row["arm"].split(" ")[0] in arm.rows]
    shown = {row["arm"] for row in rows}
    right: dict[str, dict[str, int]] = {}
    for sample in parquet.read_table(run / "samples.parquet").to_pylist():
        if sample["arm"] not in shown:
            continue
        of_arm = right.setdefault(f"{sample['arm']} @ {sample['temperature']:g}", {})
        of_arm[sample["id"]] = of_arm.get(sample["id"], 0) + (sample["verdict"] == "correct")
    counts = {key: [found[name] for name in sorted(found)] for key, found in right.items()}
    command = results["command"]
    if arm.extract:
        made = json.loads((run / "vector" / "steering_config.json").read_text())
        command = f"{made['receipts']['command']} && {command}"
    return {"command": command, "versions": results["versions"], "rows": rows, "right": counts}


def choose(out: Path, name: str, arm: Arm) -> tuple[float, dict[float, float]]:
    """The best learning rate (or scale) on validation, and every value tried."""
    tried: dict[float, float] = {}

    def measure(lr: float) -> None:
        tried[lr] = measured(out, "choose", f"{name}_{lr:g}", arm, lr, 0)["rows"][0]["accuracy"]

    for lr in arm.grid:
        measure(lr)
    ratio = arm.grid[1] / arm.grid[0]
    for _ in range(2):
        best = max(tried, key=lambda lr: tried[lr])
        if best == min(tried):
            measure(float(f"{best / ratio:.2g}"))
        elif best == max(tried):
            measure(float(f"{best * ratio:.2g}"))
    return max(tried, key=lambda lr: tried[lr]), tried


def study(out: Path, name: str, arm: Arm) -> None:
    lr, tried = choose(out, name, arm)
    what = "scale" if arm.extract else "lr"
    print(
        f"{name}: {what} {lr:g} of {', '.join(f'{k:g}: {100 * v:.1f} %' for k, v in sorted(tried.items()))}", flush=True
    )
    for seed in arm.seeds:
        measured(out, "final", f"{name}_{seed}", arm, lr, seed)
    for other, (parent, twin) in FINAL_ONLY.items():
        if parent == name:
            for seed in twin.seeds:
                measured(out, "final", f"{other}_{seed}", twin, lr, seed)


def seed_mean(runs: list[dict[str, Any]], arm: str, temperature: float) -> tuple[float, float, float, list[float]]:
    """Mean over seeds, 95 % interval by bootstrap over problems, each seed's mean."""
    row = next(r for r in runs[0]["rows"] if r["arm"] == arm and r["temperature"] == temperature)
    values = np.array([run["right"][f"{arm} @ {temperature:g}"] for run in runs]) / row["k"]  # [seeds, problems]
    means = values.mean(0)
    draws = means[np.random.default_rng(0).integers(0, len(means), (10_000, len(means)))].mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(means.mean()), float(low), float(high), [float(v) for v in values.mean(1)]


def table() -> str:
    """Markdown: the rows of all arms that are finished."""
    lines = [
        "| arm | numbers | lr | T=0 % | interval | T=1 % | interval | T=1, each seed | s a step | optimiser bytes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, arm in {**ARMS, **{key: twin for key, (_, twin) in FINAL_ONLY.items()}}.items():
        files = [RESULTS / "final" / f"{name}_{seed}.json" for seed in arm.seeds]
        runs = [json.loads(file.read_text()) for file in files if file.exists()]
        for shown in arm.rows if runs else ():
            row = next(r for r in runs[0]["rows"] if r["arm"].split(" ")[0] == shown)
            trained = shown == "steered"
            used = runs if trained else runs[:1]
            cold, warm = (seed_mean(used, row["arm"], t) for t in (0.0, 1.0))
            timed = [r["seconds_per_step"] for run in used for r in run["rows"] if r["arm"] == "steered"]
            steps = [seconds for seconds in timed if seconds is not None]
            value = row["lr"] if "scale" not in runs[0] else f"scale {runs[0]['scale']:g}"
            cells = [
                arm.note if trained else row["arm"] + (" (norms of static, all layers)" if shown == "random" else ""),
                f"{row['trainable_params']:,}" if trained else "",
                value if trained else "",
                f"{100 * cold[0]:.1f}",
                f"{100 * cold[1]:.1f} - {100 * cold[2]:.1f}",
                f"{100 * warm[0]:.1f}",
                f"{100 * warm[1]:.1f} - {100 * warm[2]:.1f}",
                ", ".join(f"{100 * v:.1f}" for v in warm[3]) if trained else "",
                f"{np.median(steps):.2f}" if trained and steps else "",
                f"{row['optimizer_bytes']:,}" if trained else "",
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/arms"))
    parser.add_argument("--only", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--workers", type=int, default=2, help="runs at once, each on one thread")
    parser.add_argument("--table", action="store_true", help="print the table of what is finished, and stop")
    options = parser.parse_args()
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(options.workers) as pool:
            for future in [pool.submit(study, options.out, name, ARMS[name]) for name in options.only]:
                future.result()
    print(table())


if __name__ == "__main__":
    main()
