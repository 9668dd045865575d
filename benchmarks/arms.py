"""The arms table: every intervention, baseline and control on tiny-reasoner with the same budget.

    python benchmarks/arms.py --out runs/arms              # choose on validation, 3 seeds each, test once, table
    python benchmarks/arms.py --out runs/arms --only static_all lora_r16

1. choose: seed 0, each learning rate of the arm's grid, accuracy at temperature 1 on 128 validation problems x 2 samples.
   While the best value is at an end of the grid, the grid goes on by one value on that side (twice at most), so that no arm is
   a straw man.
2. final: seeds 0, 1, 2 at the chosen rate, measured once on a fresh draw of test problems that no choice has seen.
3. table: mean over seeds; 95 % interval by bootstrap over problems (of the seeds' mean), and each seed's value.

Each run is a `steerkit fit` of its own; what is finished is not done again, so the study can be stopped and gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
FRESH = {"name": "arithmetic", "n_eval": 256, "seed": 7}
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Arm:
    """One row of the table: settings of `model`, and the learning rates to try."""

    model: dict[str, Any]
    grid: tuple[float, ...]
    note: str = ""
    last: float = 1.0
    """The last layer's learning rate as a multiple of the others'."""
    rows: tuple[str, ...] = ("steered",)
    settings: dict[str, Any] = field(default_factory=dict)


ARMS: dict[str, Arm] = {
    "static_all": Arm({}, (0.1, 0.3, 1.0), "static, all layers", last=7.0, rows=("base", "steered", "random", "prefix")),
    "static_middle": Arm({"layers": 3}, (0.3, 1.0, 3.0), "static, layer 3"),
    "static_last": Arm({"layers": -1}, (2.0, 6.0, 20.0), "static, last layer"),
    "tokenwise": Arm({"intervention": "tokenwise"}, (0.03, 0.1, 0.3), "token-wise scaled, all layers"),
    "gated": Arm({"intervention": "gated"}, (0.3, 1.0, 3.0), "gated (sigmoid), all layers", last=7.0),
    "projected": Arm({"intervention": {"name": "projected", "rank": 13}}, (0.3, 1.0, 3.0), "projected, 13 numbers"),
    "lowrank": Arm({"intervention": {"name": "lowrank", "rank": 2}}, (0.1, 0.3, 1.0), "low rank 2, all layers", last=7.0),
    "lora_r1": Arm({"intervention": {"name": "lora", "rank": 1}}, (0.01, 0.03, 0.1), "LoRA r = 1, all linear maps"),
    "lora_r16": Arm({"intervention": {"name": "lora", "rank": 16}}, (0.001, 0.003, 0.01), "LoRA r = 16, all linear maps"),
    "full": Arm({"intervention": "full"}, (1e-4, 3e-4, 1e-3), "full fine-tuning"),
    "last_first": Arm(
        {"layers": -1, "token_mask": "first_generated"}, (2.0, 6.0, 20.0), "static, last layer, first generated token only"
    ),
    "last_rest": Arm(
        {"layers": -1, "token_mask": "not_first_generated"}, (2.0, 6.0, 20.0), "static, last layer, all but the first"
    ),
    "random_reward": Arm({"rewards": "random"}, (0.1, 0.3, 1.0), "static, all layers, random reward", last=7.0),
    "format_reward": Arm({"rewards": "format"}, (0.1, 0.3, 1.0), "static, all layers, format reward", last=7.0),
    "entropy": Arm({"objective": "entropy"}, (0.03, 0.1, 0.3), "static, all layers, entropy only", last=7.0),
}
"""`bias` is not tried on its own: it gets static_all's rate, for on this model the two are equal (`bias` in FINAL_ONLY)."""
FINAL_ONLY = {"bias": ("static_all", Arm({"intervention": "bias"}, (), "down_proj bias, all layers", last=7.0))}


def fit(out: Path, arm: Arm, lr: float, seed: int, final: bool) -> dict[str, Any]:
    """One `steerkit fit`; returns its results.json."""
    place = out / "results.json"
    if not place.exists():
        rate: Any = lr if arm.last == 1.0 else {"default": lr, "-1": lr * arm.last}
        overrides: dict[str, Any] = {"model.lr": rate, **{f"model.{k}": v for k, v in arm.model.items()}}
        if final:
            overrides |= {"data.test_dataset": FRESH, "report.split": "test", "report.k": 4}
            overrides |= {"report.temperatures": [0.0, 1.0], "report.arms": list(arm.rows) if seed == 0 else ["steered"]}
        command = [sys.executable, "-m", "steerkit", "fit", "--config", str(HERE / "arms.yaml"), "--run_dir", str(out)]
        command += ["--seed_everything", str(seed)]
        for key, value in overrides.items():
            command += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        out.mkdir(parents=True, exist_ok=True)
        with open(out.parent / f"{out.name}.log", "w") as log:
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed: see {out.parent / f'{out.name}.log'}")
    found: dict[str, Any] = json.loads(place.read_text())
    return found


def choose(out: Path, name: str, arm: Arm) -> tuple[float, dict[float, float]]:
    """The best learning rate on validation, and every value tried."""
    tried: dict[float, float] = {}

    def measure(lr: float) -> None:
        rows = fit(out / "choose" / f"{name}_{lr:g}", arm, lr, 0, final=False)["rows"]
        tried[lr] = rows[0]["accuracy"]

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
    print(f"{name}: lr {lr:g} of {', '.join(f'{k:g}: {100 * v:.1f} %' for k, v in sorted(tried.items()))}", flush=True)
    for seed in SEEDS:
        fit(out / "final" / f"{name}_{seed}", arm, lr, seed, final=True)
    (out / f"{name}.json").write_text(json.dumps({"lr": lr, "tried": {f"{k:g}": v for k, v in sorted(tried.items())}}))
    for other, (parent, twin) in FINAL_ONLY.items():
        if parent == name:
            for seed in SEEDS:
                fit(out / "final" / f"{other}_{seed}", twin, lr, seed, final=True)
            (out / f"{other}.json").write_text(json.dumps({"lr": lr, "tried": {}}))


def seed_mean(folders: list[Path], arm: str, temperature: float) -> tuple[float, float, float, list[float]]:
    """Mean over seeds, 95 % interval by bootstrap over problems, each seed's mean."""
    from pyarrow import parquet

    tables = []
    for folder in folders:
        samples = parquet.read_table(folder / "samples.parquet").to_pylist()
        picked = [s for s in samples if s["arm"].split(" ")[0] == arm and s["temperature"] == temperature]
        by_problem: dict[str, list[float]] = {}
        for sample in picked:
            by_problem.setdefault(sample["id"], []).append(float(sample["verdict"] == "correct"))
        tables.append([float(np.mean(by_problem[key])) for key in sorted(by_problem)])
    values = np.array(tables)  # [seeds, problems]
    rng = np.random.default_rng(0)
    means = values.mean(0)
    draws = means[rng.integers(0, len(means), (10_000, len(means)))].mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(means.mean()), float(low), float(high), [float(v) for v in values.mean(1)]


def table(out: Path) -> str:
    lines = [
        "| arm | numbers | lr | T=0 % | interval | T=1 % | interval | seeds (T=1) | s a step | optimiser bytes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    every = {**{k: v for k, v in ARMS.items()}, **{k: v for k, (_, v) in FINAL_ONLY.items()}}
    for name, arm in every.items():
        folders = [out / "final" / f"{name}_{seed}" for seed in SEEDS]
        folders = [folder for folder in folders if (folder / "results.json").exists()]
        if not folders:
            continue
        rows = json.loads((folders[0] / "results.json").read_text())["rows"]
        for shown in arm.rows:
            row = next(r for r in rows if r["arm"].split(" ")[0] == shown)
            used = folders if shown == "steered" else folders[:1]
            cold, warm = (seed_mean(used, shown, t) for t in (0.0, 1.0))
            label = arm.note if shown == "steered" else f"{row['arm']}" + (" (norms of static all)" if shown == "random" else "")
            seconds = [json.loads((f / "results.json").read_text())["rows"] for f in used]
            step = np.median([r["seconds_per_step"] for rows in seconds for r in rows if r["arm"] == "steered"])
            trained = shown == "steered"
            cells = [
                label,
                f"{row['trainable_params']:,}" if trained else "",
                json.loads((out / f"{name}.json").read_text())["lr"] if trained and (out / f"{name}.json").exists() else "",
                f"{100 * cold[0]:.1f}",
                f"{100 * cold[1]:.1f} - {100 * cold[2]:.1f}",
                f"{100 * warm[0]:.1f}",
                f"{100 * warm[1]:.1f} - {100 * warm[2]:.1f}",
                ", ".join(f"{100 * v:.1f}" for v in warm[3]) if len(used) > 1 else "",
                f"{step:.2f}" if trained else "",
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
    text = table(options.out)
    (options.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
