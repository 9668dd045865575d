r"""How the cost of a step grows: seconds and peak memory against K, completion length, steered layers, vocabulary.

    python benchmarks/growth.py [--form full|short|smoke]

A random Llama of 8 blocks, 256 wide, 4 prompts of 48 tokens; all else at K = 8, 64 tokens, all 8 layers, vocabulary
8192 while one of them varies. Steered layers are the topmost ones. Rewards mixed in every group, default settings
(so activations stay within ``memory_budget``, 1 GB). Each point is a process of its own; its memory is the peak above
what it had after loading. Writes growth.json with two fits for each curve, and growth.png:

- slope: least squares, seconds (or MB) for each further unit;
- exponent: of cost ~ x^exponent, a line through the logarithms (1: proportional; below 1: a constant part remains).
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import Report, arguments
from memory import peak_bytes

BASE = {"K": 8, "completion tokens": 64, "steered layers": 8, "vocabulary": 8192}
POINTS: dict[str, Sequence[int]] = {
    "K": (2, 4, 8, 16, 32),
    "completion tokens": (16, 32, 64, 128, 256),
    "steered layers": (1, 2, 4, 6, 8),
    "vocabulary": (1024, 4096, 16384, 65536),
}
PROMPTS, PROMPT_TOKENS = 4, 48
COSTS = {"seconds": "s", "megabytes": "MB"}


def one_point(setting: dict[str, int], form: str) -> None:
    """Run in a process of its own; prints what it took."""
    import torch
    from common import Form
    from ours import OurStep
    from transformers import AutoConfig, AutoModelForCausalLM
    from workload import Workload, never_stopping

    from steerkit.models import LoadedModel, load_model
    from steerkit.rollouts import EncodedPrompt
    from steerkit.types import Example

    work = Workload("tiny-reasoner", form)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=setting["vocabulary"],
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=0,
    )
    given = load_model("tiny-reasoner", dtype="float32")
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    work.loaded = LoadedModel(base, given.tokenizer, given.layout, "random llama")
    work.form = Form(form, PROMPTS, setting["K"], setting["completion tokens"], 1, 1)
    ids = torch.randint(1, setting["vocabulary"], (PROMPTS, PROMPT_TOKENS))
    work.prompts = [EncodedPrompt(Example(f"p{n}", "", ""), "", tuple(row)) for n, row in enumerate(ids.tolist())]
    step = OurStep(work, layers=list(range(8 - setting["steered layers"], 8)))
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    with never_stopping(work.loaded):
        took = [step.run(seed).step for seed in range(2 if form == "smoke" else 4)][1:]
    print("POINT", json.dumps({"seconds": statistics.median(took), "megabytes": (peak_bytes() - before) / 1e6}))


def resident_bytes() -> int:
    """Of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measured(setting: dict[str, int], form: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--form", form, "--point", json.dumps(setting)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("POINT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{setting} failed:\n{done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(lines[0].removeprefix("POINT "))
    return found


def fitted(xs: Sequence[float], ys: Sequence[float]) -> dict[str, float]:
    """Slope and intercept of the least-squares line, and the exponent of the power law."""
    slope, intercept = statistics.linear_regression(xs, ys)
    exponent = statistics.linear_regression([math.log(x) for x in xs], [math.log(max(y, 1e-9)) for y in ys]).slope
    return {"slope": slope, "intercept": intercept, "exponent": exponent}


def draw(curves: dict[str, Any], path: Path) -> None:
    """Four small plots: seconds on the left axis, memory on the right, each with its line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (axis, curve) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        other = place.twinx()
        for axes, (cost, unit), color in zip((place, other), COSTS.items(), ("C0", "C1"), strict=True):
            xs, ys, fit = curve["x"], curve[cost], curve[f"{cost}_fit"]
            axes.plot(xs, ys, "o", color=color, markersize=4)
            axes.plot(xs, [fit["intercept"] + fit["slope"] * x for x in xs], color=color, linewidth=1)
            axes.set_ylim(0, 1.1 * max(ys))
            axes.set_ylabel(f"{'step' if cost == 'seconds' else 'peak memory'} ({unit})", color=color)
        time, size = curve["seconds_fit"], curve["megabytes_fit"]
        place.set_title(
            f"{1000 * time['slope']:.3g} ms and {size['slope']:.3g} MB each,\n"
            f"exponents {time['exponent']:.2f} and {size['exponent']:.2f}",
            fontsize=9,
        )
        place.set_xlabel(axis)
        place.set_xlim(left=0)
    figure.savefig(path, dpi=120)


def main() -> None:
    options = arguments(__doc__, point="")
    if options.point:
        one_point(json.loads(options.point), options.form)
        return
    report = Report("growth", options)
    curves: dict[str, Any] = {}
    for axis, values in POINTS.items():
        chosen = {"full": values, "short": values[::2], "smoke": values[:2]}[options.form]
        small = {"K": 2, "completion tokens": 8} if options.form == "smoke" else {}
        found = [measured(BASE | small | {axis: value}, options.form) for value in chosen]
        curve: dict[str, Any] = {"x": list(chosen)}
        for cost, unit in COSTS.items():
            curve[cost] = [point[cost] for point in found]
            curve[f"{cost}_fit"] = fit = fitted(chosen, curve[cost])
            shown = ", ".join(f"{x}: {y:.3g}" for x, y in zip(chosen, curve[cost], strict=True))
            print(f"{axis}, {unit}: {shown}; slope {fit['slope']:.3g}, exponent {fit['exponent']:.2f}", flush=True)
        curves[axis] = curve
    report.extra = {"base": BASE, "curves": curves}
    report.write()
    if options.out is not None:
        draw(curves, options.out / "growth.png")


if __name__ == "__main__":
    main()
