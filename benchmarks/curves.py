r"""Two curves: tokens/s against the batch size, and the step's time against the steered layer.

    python benchmarks/curves.py [--form full|short|smoke] [--models smollm2-135m-instruct]

Batch size: prompts x 8 samples (1, 2 and 4 rows: one prompt), 32 tokens each (short: 16), ours beside ``generate`` and
beside the limit of the linear layers. Steered layer: one static vector on that layer; sampling and update apart, 8
prompts x 8 samples of as many tokens. Writes curves.json and curves.png.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from common import HEADLINE, Report, arguments
from ours import OurStep
from rollouts import Sides
from workload import Workload, linear_limit, never_stopping

ROWS = {"full": (1, 2, 4, 8, 16, 32, 64, 128), "short": (1, 8, 64), "smoke": (1, 2)}
TOKENS = {"full": 32, "short": 16, "smoke": 8}


def batch_sizes(model: str, form: str) -> list[dict[str, float]]:
    """One run of each side a size."""
    work, found = Workload(model, form), []
    tokens = TOKENS[form]
    for rows in ROWS[form]:
        k = min(rows, 8)
        work.prompts = work.encode(rows // k, tokens)
        sides = Sides(work, k, tokens)
        point = {
            "rows": rows,
            "ours": sides.ours(),
            "generate": sides.theirs(),
            "linear limit": linear_limit(work.loaded.base, rows, 0.2),
        }
        print(", ".join(f"{name} {value:.4g}" for name, value in point.items()), "(tokens/s)", flush=True)
        found.append(point)
    return found


def layers(model: str, form: str) -> list[dict[str, float]]:
    """Seconds of a step with a vector on one layer."""
    work, found = Workload(model, form), []
    work.form = replace(work.form, tokens=TOKENS[form])
    last = work.loaded.base.config.num_hidden_layers - 1
    steps = {"full": 6, "short": 3, "smoke": 1}[form]
    with never_stopping(work.loaded):
        OurStep(work, layers=last).run(0)
        for layer in sorted({round(last * step / steps) for step in range(steps + 1)}):
            timed = OurStep(work, layers=layer).run(1)
            found.append({"layer": layer, "sampling": timed.sampling, "update": timed.update})
            print(f"layer {layer}: sampling {timed.sampling:.3g} s, update {timed.update:.3g} s", flush=True)
    return found


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    for (left, right), (model, curves) in zip(
        figure.subplots(len(found), 2, squeeze=False), found.items(), strict=True
    ):
        rows = [point["rows"] for point in curves["rates"]]
        for name, style in (("ours", "o-"), ("generate", "o-"), ("linear limit", "--")):
            left.plot(rows, [point[name] for point in curves["rates"]], style, markersize=4, label=name)
        left.set_xscale("log", base=2)
        left.set_xticks(rows, [str(row) for row in rows])
        left.set_xlabel("rows decoded at once")
        left.set_ylabel(f"tokens/s, {model}")
        left.set_ylim(bottom=0)
        left.legend(frameon=False)
        places = [point["layer"] for point in curves["layers"]]
        sampling, update = ([point[name] for point in curves["layers"]] for name in ("sampling", "update"))
        right.stackplot(places, sampling, update, labels=("sampling", "update"), alpha=0.7)
        right.set_xlabel("steered layer")
        right.set_ylabel("step (s)")
        right.legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=120)


def main() -> None:
    options = arguments(__doc__, (HEADLINE,))
    report = Report("curves", options)
    for model in options.models:
        rates = batch_sizes(model, options.form)
        report.extra.setdefault("curves", {})[model] = {"rates": rates, "layers": layers(model, options.form)}
        report.write()
    if options.out is not None:
        draw(report.extra["curves"], options.out / "curves.png")


if __name__ == "__main__":
    main()
