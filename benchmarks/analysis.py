r"""The logit lens and path patching of all layers: steerkit.analysis against plain nnsight with batched invokes.

    python benchmarks/analysis.py [--form full|short|smoke] [--models smollm2-135m-instruct tiny-reasoner]

Both sides answer the same question with the same numbers (compared, else the script stops), see ``studies.py``:

- lens_vs_nnsight: a vector on each layer in turn, the lens read at every layer: L + 1 runs, L lenses each.
- patching_vs_nnsight: the model steered at every layer with one layer's attention or MLP from the unsteered run:
  2 L + 2 runs.

nnsight: one trace, an invoke a run, so that they are one batch. 4 texts of one length, 24 completion tokens each.
"""

from __future__ import annotations

from collections.abc import Callable

import nnsight_side
import studies
import torch
from common import HEADLINE, Report, Row, alternate, arguments, seconds
from torch import Tensor
from workload import Workload

COMPLETION = {"full": 24, "short": 24, "smoke": 4}
TEXTS = 4


def compared(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], name: str) -> None:
    """Both sides once, untimed: the same numbers to fp32 rounding."""
    a, b = ours(), theirs()
    gap = float((a - b).abs().max())
    if a.shape != b.shape or gap > 2e-3:
        raise SystemExit(f"{name}: the two sides differ by {gap:.3g} nats, shapes {list(a.shape)}, {list(b.shape)}.")
    print(f"{name}: {a.numel()} numbers, the two sides differ by at most {gap:.1e} nats", flush=True)


@torch.no_grad()
def bench(report: Report, model: str) -> None:
    work = Workload(model, report.options.form)
    work.prompts = work.prompts[: min(TEXTS, len(work.prompts))]
    study = studies.Study(work, COMPLETION[work.form.name])
    # nnsight leaves its own things on a model's modules: each side has a model of its own.
    traced = nnsight_side.traced_model(Workload(model, report.options.form).loaded)
    for name, ours, theirs in (
        ("lens_vs_nnsight", studies.lens, nnsight_side.lens),
        ("patching_vs_nnsight", studies.patching, nnsight_side.patching),
    ):
        compared(lambda: ours(study), lambda: theirs(study, traced), name)  # noqa: B023 (called here)
        pairs = alternate(
            lambda: seconds(lambda: ours(study)),  # noqa: B023
            lambda: seconds(lambda: theirs(study, traced)),  # noqa: B023
            work.form.trl_runs,
        )
        report.add(Row.of(name, pairs, "s", False, model))


def main() -> None:
    options = arguments(__doc__, (HEADLINE, "tiny-reasoner"))
    report = Report("analysis", options)
    for model in options.models:
        bench(report, model)


if __name__ == "__main__":
    main()
