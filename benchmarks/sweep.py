r"""A sweep over all single layers as one run against as many separate runs.

    python benchmarks/sweep.py [--form full|short|smoke] [--models tiny-reasoner smollm2-135m-instruct]

Ours: ``sweep: layers: all``, every policy a row of one batch. Theirs: the same steps of one policy after the other, by
steerkit, too, start-up excluded. The same prompts, seeds and lengths; rewards mixed in every group. A row: seconds of a
step of all policies.

- sweep_vs_separate: 8 rows a policy (2 prompts x 4 samples; the target is for at most 16 rows).
- sweep_vs_separate_16_rows: 16 rows (4 prompts x 4 samples).
"""

from __future__ import annotations

from dataclasses import replace

from common import Report, Row, alternate, arguments
from ours import OurStep
from workload import Workload, never_stopping

from steerkit.training.members import Sweep

TARGET_MODEL = "tiny-reasoner"
STEPS = {"full": 3, "short": 1, "smoke": 1}
"""Of each run that is timed."""


PROMPTS = {"sweep_vs_separate": 2, "sweep_vs_separate_16_rows": 4}
K = 4


def bench(report: Report, model: str, name: str) -> None:
    work = Workload(model, report.options.form)
    if work.form.name != "smoke":
        work.form = replace(work.form, prompts=PROMPTS[name], k=K)
        work.prompts = work.prompts[: PROMPTS[name]]
    swept = OurStep(work, sweep=Sweep(layers="all"))
    separate = [OurStep(work, layers=layer) for layer in range(len(swept.members))]
    steps = STEPS[work.form.name]
    number = 0

    def ours() -> float:
        return sum(swept.run(number + step).step for step in range(steps)) / steps

    def theirs() -> float:
        return sum(one.run(number + step).step for one in separate for step in range(steps)) / steps

    with never_stopping(work.loaded):
        ours(), theirs()  # caches, packed weights, the sampler's probes
        number = 100
        pairs = alternate(ours, theirs, work.form.runs)
    note = f"{len(separate)} policies, {work.form.prompts} x {work.form.k} rows each, {work.form.tokens} tokens"
    row = Row.of(name, pairs, "s", False, model, note)
    report.add(row.renamed(name if model == TARGET_MODEL else f"{name}@{model}"))


def main() -> None:
    options = arguments(__doc__, (TARGET_MODEL,))  # the larger one takes 10 minutes a pair: --models
    report = Report("sweep", options)
    for model in options.models:
        for name in PROMPTS:
            bench(report, model, name)


if __name__ == "__main__":
    main()
