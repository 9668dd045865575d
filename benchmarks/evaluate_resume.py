"""Kill an evaluation with SIGKILL in its middle, let the same command go on, and compare it with one left alone.

    python benchmarks/evaluate_resume.py --out runs/evaluate -- --suite math --model smollm2-135m-instruct \\
        --data_root DIR --limit 30 --k 1 --temperature 0 --max_tokens 128

What stands behind ``--`` are the options of ``steerkit evaluate``. The kill comes when ``--at`` of the samples are on
disk. Compares the rows of results.json and samples.parquet column by column (both must be equal, bit for bit), and
says how many samples the resumed process took over. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def start(out: Path, options: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        command = [sys.executable, "-m", "steerkit", "evaluate", *options, "--out", str(out)]
        return subprocess.Popen(command, stdout=file, stderr=file, env={"OMP_NUM_THREADS": "1", **os.environ})


def on_disk(out: Path) -> int:
    """Samples in the journal: whole lines."""
    return sum(shard.read_bytes().count(b"\n") for shard in (out / "journal").glob("samples-*.jsonl"))


def rows(out: Path) -> list[dict[str, Any]]:
    return list(json.loads((out / "results.json").read_text(encoding="utf-8"))["rows"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--at", type=float, default=0.5, help="share of the samples on disk when the kill comes")
    parser.add_argument("evaluate", nargs="+", help="options of steerkit evaluate, behind --")
    options = parser.parse_args()
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    whole, killed = folder / "whole", folder / "killed"

    began = time.monotonic()
    if start(whole, options.evaluate, folder / "whole.log").wait() != 0:
        print(f"The undisturbed evaluation failed: see {folder / 'whole.log'}.")
        return 2
    record: dict[str, Any] = {"seconds_whole": round(time.monotonic() - began)}

    from pyarrow import parquet

    samples = parquet.read_table(whole / "samples.parquet")
    process = start(killed, options.evaluate, folder / "killed.log")
    while process.poll() is None and on_disk(killed) < options.at * len(samples):
        time.sleep(0.05)
    if process.poll() is not None:
        print(f"The evaluation ended before the kill: see {folder / 'killed.log'}.")
        return 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    record |= {"samples": len(samples), "on_disk_at_kill": on_disk(killed)}
    shards = {shard: shard.read_bytes() for shard in (killed / "journal").glob("samples-*.jsonl")}
    began = time.monotonic()
    process = start(killed, options.evaluate, folder / "killed.log")
    untouched = True
    while process.poll() is None:
        with_journal = {shard: shard.read_bytes() for shard in shards if shard.exists()}
        untouched &= all(shards[shard] == data for shard, data in with_journal.items())
        time.sleep(0.5)
    if process.returncode != 0:
        print(f"The resumed evaluation failed: see {folder / 'killed.log'}.")
        return 2
    record["seconds_resumed"] = round(time.monotonic() - began)
    record["earlier_samples_untouched"] = untouched
    record["rows_equal"] = rows(whole) == rows(killed)
    record["samples_equal"] = samples.equals(parquet.read_table(killed / "samples.parquet"))
    record["files_equal"] = (whole / "samples.parquet").read_bytes() == (killed / "samples.parquet").read_bytes()
    (folder / "evaluate_resume.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))
    return 0 if record["rows_equal"] and record["samples_equal"] and untouched else 1


if __name__ == "__main__":
    sys.exit(main())
