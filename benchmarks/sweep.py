r"""A sweep over all single layers as one run against as many separate runs.

    python benchmarks/sweep.py [--form full|short|smoke] [--models tiny-reasoner smollm2-135m-instruct]

Ours: ``sweep: layers: all``, every policy a row of one batch. Theirs: the same steps of one policy after the other, by
steerkit, too, start-up excluded. 16 rows a policy (4 prompts x 4 samples), the same prompts, seeds and lengths; rewards
mixed in every group. A row: seconds of a step of all policies.
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


def bench(report: Report, model: str) -> None:
    work = Workload(model, report.options.form)
    if work.form.name != "smoke":
        work.form = replace(work.form, prompts=4, k=4)
        work.prompts = work.prompts[:4]
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
    row = Row.of("sweep_vs_separate", pairs, "s", False, model, note)
    report.add(row.renamed("sweep_vs_separate" if model == TARGET_MODEL else f"sweep_vs_separate@{model}"))


def main() -> None:
    options = arguments(__doc__, (TARGET_MODEL, "smollm2-135m-instruct"))
    report = Report("sweep", options)
    for model in options.models:
        bench(report, model)


if __name__ == "__main__":
    main()
