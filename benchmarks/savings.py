r"""What single savings of the fast sampler and of the update give: each against the same code without it.

    python benchmarks/savings.py [--form full|short|smoke] [--models smollm2-135m-instruct] [--only direct]

A static vector on every layer, rewards mixed in every group, completions of at most 24 tokens. Rows, seconds without
over seconds with:

- fused_sampling, fused_update: norms and rotary embeddings in fewer passes (``rollouts/fused.py``).
- packed_sampling: the weights in oneDNN's layout (``rollouts/acceleration.py``).
- grouped_sampling: heads that share keys as queries of one attention (the same file; where a family's samples can't
  share their prompt: neither of these two models).
- direct_sampling: decoding steps with fewer calls and joined weights (``rollouts/direct.py``).

A saving that gives nothing on the machines at hand is code to be taken out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from common import HEADLINE, Report, Row, arguments
from ours import OurStep, Timed
from workload import Workload, never_stopping

from steerkit.rollouts import acceleration, direct

TOKENS = 24
SAVINGS = {
    "direct": ("sampling",),
    "fused": ("sampling", "update"),
    "packed": ("sampling",),
    "grouped": ("sampling",),
}
"""The saving -> the halves of a step that it is for."""


def without(name: str, step: Callable[[], Timed]) -> Timed:
    """A step without the saving."""

    def nothing(*_: Any) -> Any:
        return nullcontext()

    off = {
        "direct": patch.object(direct, "steps_directly", lambda _model: False),
        "fused": patch.object(acceleration, "fused", nothing),
        "packed": patch.object(acceleration, "WORTH_PACKING", float("inf")),
        "grouped": patch.object(acceleration, "_grouped_attention", nothing),
    }
    with off[name]:
        return step()


def bench(report: Report, model: str) -> None:
    work, seed = Workload(model, report.options.form), 0
    work.form = replace(work.form, tokens=min(work.form.tokens, TOKENS))
    ours = OurStep(work)

    def step() -> Timed:
        nonlocal seed
        seed += 1
        return ours.run(seed)

    with never_stopping(work.loaded):
        for name in report.options.only.split() or SAVINGS:
            halves = SAVINGS[name]
            without(name, step), step()
            pairs: list[tuple[Timed, Timed]] = []
            for _ in range(work.form.runs):
                pairs.append((step(), without(name, step)))
            for half in halves:
                took = [(getattr(a, half), getattr(b, half)) for a, b in pairs]
                report.add(Row.of(f"{name}_{half}", took, "s", False, model))


def main() -> None:
    options = arguments(__doc__, (HEADLINE, "tiny-reasoner"), only="")
    report = Report("savings", options)
    for model in options.models:
        bench(report, model)


if __name__ == "__main__":
    main()
