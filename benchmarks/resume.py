"""Kill a run with SIGKILL at random moments, resume it each time, and compare it with one that was left alone.

    python benchmarks/resume.py --out runs/resume

Runs the config (default: the quickstart, 12 steps, verifier pool and all) once undisturbed; then again, killed
``--kills`` times while it trains, and each time gone on with by the same command (``--ckpt_path last``). Compares the
vectors bit for bit, and metrics.csv row by row (times left out). Exit code 1 if anything differs. One process at a
time, one thread each.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from steerkit.vectors import SteeringVector

TIMED = re.compile(r"^time/|tok/s|tokens_per_second")


def command(options: argparse.Namespace, run_dir: Path, *more: str) -> list[str]:
    settings = ["--trainer.max_steps", str(options.steps), "--vector_every", str(options.every), "--samples_every", "0"]
    settings += ["--trainer.val_check_interval", "5", "--report.arms", "[]", "--trainer.enable_progress_bar", "false"]
    return [
        sys.executable,
        "-m",
        "steerkit",
        "fit",
        "--config",
        options.config,
        "--run_dir",
        str(run_dir),
        *settings,
        *more,
    ]


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with log.open("ab") as file:
        return subprocess.Popen(["nice", "-n", "10", *arguments], stdout=file, stderr=file, env=environment)


def metrics(run_dir: Path) -> list[dict[str, str]]:
    try:
        with (run_dir / "metrics.csv").open(newline="") as file:
            return [{k: v for k, v in row.items() if not TIMED.match(k)} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def state(run_dir: Path) -> dict[str, Any]:
    rows, found = metrics(run_dir), sorted((run_dir / "checkpoints").glob("*.ckpt"))
    return {
        "metrics_rows": len(rows),
        "newest_checkpoint": found[-1].name if found else None,
        "half_written": [path.name for path in run_dir.rglob(".*.tmp")],
    }


def until_training(process: subprocess.Popen[bytes], log: Path, times: int) -> float:
    """Waits until the log says for the n-th time that training begins; the moment of it."""
    while process.poll() is None and log.read_text(errors="replace").count("frozen parameters. Training") < times:
        time.sleep(0.01)
    return time.monotonic()


def kill(process: subprocess.Popen[bytes], seconds: float, run_dir: Path) -> dict[str, Any] | None:
    """SIGKILL after ``seconds``; None if the run was faster."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if process.poll() is not None:
            return None
        time.sleep(0.005)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    return {"seconds": round(seconds, 2), **state(run_dir), "workers": len(children), "left_running": len(alive)}


def same_vector(first: Path, second: Path) -> bool:
    one, other = (SteeringVector.from_pretrained(path / "vector").tensors for path in (first, second))
    return one.keys() == other.keys() and all(
        one[point][name].numpy().tobytes() == other[point][name].numpy().tobytes()
        for point in one
        for name in one[point]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--every", type=int, default=2, help="steps between checkpoints")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    whole, killed = out / "whole", out / "killed"
    process = start(command(options, whole), out / "whole.log")
    began = until_training(process, out / "whole.log", 1)
    if process.wait() != 0:
        print(f"The undisturbed run failed: see {out / 'whole.log'}.")
        return 2
    length = time.monotonic() - began
    print(f"undisturbed: {options.steps} steps in {length:.0f} s, {len(metrics(whole))} rows", flush=True)

    # Each kill falls anywhere in about two fifths of a run, so that five of them don't hit its first steps alone.
    moments = [
        random.Random(options.seed + number).uniform(0, 2 * length / options.kills) for number in range(options.kills)
    ]
    kills: list[dict[str, Any]] = []
    resume = ["--ckpt_path", "last"]
    for number, moment in enumerate(moments):
        process = start(command(options, killed, *resume), out / "killed.log")
        until_training(process, out / "killed.log", number + 1)
        hit = kill(process, moment, killed)
        if hit is None:
            print(f"the run ended before kill {number + 1}: take another --seed or more --steps")
            return 2
        kills.append(hit)
        print(json.dumps(hit), flush=True)
    code = start(command(options, killed, *resume), out / "killed.log").wait()
    if code != 0:
        print(f"The resumed run failed with {code}: see {out / 'killed.log'}.")
        return 2
    vectors, rows = same_vector(whole, killed), metrics(whole) == metrics(killed)
    record = {"seconds_whole": round(length, 1), "steps": options.steps, "every": options.every, "kills": kills}
    record |= {"vector_bit_equal": vectors, "metrics_equal": rows, "rows": len(metrics(killed))}
    (out / "resume.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"vector bit-equal: {vectors}; metrics.csv equal: {rows} ({record['rows']} rows)")
    return 0 if vectors and rows else 1


if __name__ == "__main__":
    sys.exit(main())
