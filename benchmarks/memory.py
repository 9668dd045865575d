r"""Peak resident memory of one RL step against TRL's, each side in a process of its own (Linux).

    python benchmarks/memory.py [--form full|short|smoke] [--models smollm2-135m-instruct]

The peak is the kernel's (``VmHWM``): libraries, weights, sampling and update. Same prompts, samples and lengths as in
``step.py``. Ours: default settings of ``steerkit fit``, static vector on all layers, rewards mixed in every group, two
steps. Theirs: the ``step.py`` settings, one step; glibc's own allocator settings, as a user of TRL has them.

- peak_memory_vs_trl: TRL without gradient checkpointing, as it is timed in ``step.py``.
- peak_memory_vs_trl_checkpointing (no target): TRL's default, with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from common import HEADLINE, Report, Row, arguments

SIDES = ("ours", "trl", "trl_checkpointing")


def peak_bytes() -> int:
    """Of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("This needs Linux's /proc.")


def one_side(side: str, model: str, form: str) -> None:
    """Run in a process of its own; prints the peak."""
    from workload import Workload, never_stopping

    work = Workload(model, form)
    loaded = peak_bytes()
    if side == "ours":
        from ours import OurStep

        with never_stopping(work.loaded):
            step = OurStep(work)
            for seed in (1, 2):
                step.run(seed)
    else:
        from ours import mixed_rewards
        from trl_side import trl_trainer

        rewards = mixed_rewards(work.form.prompts, work.form.k).flatten().tolist()
        trl_trainer(work, rewards, 1, checkpointing=side == "trl_checkpointing").train()
    print("PEAK", json.dumps({"loaded": loaded, "peak": peak_bytes()}))


def measured(side: str, model: str, form: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--form", form, "--side", side, "--models", model]
    environment = os.environ | {"STEERKIT_KEEP_MEMORY": "1" if side == "ours" else "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("PEAK ")]
    if done.returncode or not lines:
        raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(lines[0].removeprefix("PEAK "))
    return {key: value / 1e9 for key, value in found.items()}


def bench(report: Report, model: str) -> None:
    runs = 2 if report.options.form == "full" else 1
    sides = SIDES if report.options.form == "full" else SIDES[:2]
    found = {side: [measured(side, model, report.options.form) for _ in range(runs)] for side in sides}
    report.extra.setdefault("gigabytes", {})[model] = found
    for side in sides[1:]:
        name = "peak_memory_vs_trl" + side.removeprefix("trl")
        pairs = [(a["peak"], b["peak"]) for a, b in zip(found["ours"], found[side], strict=True)]
        report.add(Row.of(name, pairs, "GB", False, model))


def main() -> None:
    options = arguments(__doc__, (HEADLINE,), side="")
    if options.side:
        one_side(options.side, options.models[0], options.form)
        return
    report = Report("memory", options)
    for model in options.models:
        bench(report, model)


if __name__ == "__main__":
    main()
