r"""One full RL step, and its update alone, against TRL's RLOOTrainer with PEFT's LoRA (r = 1 on down_proj).

    pip install -c constraints.txt -e '.[bench]'
    python benchmarks/step.py [--form full|short|smoke] [--models smollm2-135m-instruct]

TRL's own training loop runs; before each of its steps, ours run: all layers, the middle layer, the last layer. So the
steps alternate in one process, on the same prompts and the same completions: TRL generates its own (that is timed) and
its update is handed ours. Each side has a model of its own. Rewards are mixed in every group: every other sample is
right. Neither side has a KL term; both clip, both end with AdamW. In the full form the first pair is not counted: it
pays for memory that is touched for the first time. In the short form it is all there is.

- step_vs_trl: sampling and update, static vector on all layers.
- update_middle_vs_trl, update_last_vs_trl: what follows the sampling, one static vector on the middle or last layer.
- step_natural_vs_trl (no target): ours with the verifier's own rewards, so groups that are all right or all wrong cost
  nothing here, against the same TRL steps, whose work does not depend on the rewards.
- generation_vs_trl, update_all_vs_trl (no target): the two halves of step_vs_trl.
"""

from __future__ import annotations

from dataclasses import replace

from common import HEADLINE, Report, Row, arguments
from ours import OurStep, Timed, mixed_rewards
from trl_side import TimedRLOO, trained, trl_trainer
from workload import Workload, never_stopping

from steerkit.rewards import Rubric
from steerkit.rollouts import without_streams


class Alternation:
    """What runs before each of TRL's steps."""

    def __init__(self, work: Workload) -> None:
        self.work = work
        n = work.loaded.base.config.num_hidden_layers
        self.layers: dict[str, str | int] = {"all": "all", "middle": n // 2, "last": n - 1}
        self.ours = {name: OurStep(work, layers) for name, layers in self.layers.items()}
        self.rubric = Rubric("verifiable")
        self.rubric.warm()
        self.times: dict[str, list[Timed]] = {name: [] for name in [*self.ours, "natural"]}
        self.trainer: TimedRLOO | None = None
        self.number = 0
        self.advantaged = 0

    def __call__(self) -> None:
        self.number += 1
        with never_stopping(self.work.loaded):
            for name, step in self.ours.items():
                timed = step.run(self.number)
                if name == "all":
                    groups = [without_streams(group) for group in timed.groups]
                self.times[name].append(replace(timed, groups=[]))
            timed = self.ours["all"].run(self.number, self.rubric)
            self.times["natural"].append(replace(timed, groups=[]))
        lengths = {len(rollout.token_ids) for group in groups for rollout in group.rollouts}
        if lengths != {self.work.form.tokens}:
            raise SystemExit(f"Our completions have the lengths {sorted(lengths)}, not {self.work.form.tokens} alone.")
        scores = self.rubric.score(groups).total
        self.advantaged += int((scores.amax(1) > scores.amin(1)).sum())
        assert self.trainer is not None
        self.trainer.given = groups


def bench(report: Report, model: str) -> None:
    work = Workload(model, report.options.form)
    theirs = Workload(model, report.options.form)
    form = work.form
    before = Alternation(work)
    rewards = mixed_rewards(form.prompts, form.k).flatten().tolist()
    warm = int(form.name == "full")
    steps = form.trl_runs + warm
    trainer = trl_trainer(theirs, rewards, steps, before, bool(report.options.checkpointing), report.options.parts)
    before.trainer = trainer
    trainer.train()
    before.rubric.close()
    clock = trainer.clock
    report.extra.setdefault("trl", {})[model] = {
        "step_seconds": clock.steps,
        "generation_seconds": clock.generation,
        "update_seconds": clock.updates,
        "gradient_checkpointing": bool(report.options.checkpointing),
        "gradient_accumulation": report.options.parts,
        "trained_parameters": trained(trainer),
        "ours_trained_parameters": {name: sum(p.numel() for p in s.parameters) for name, s in before.ours.items()},
        "ours_layers": before.layers,
        "natural_groups_with_advantage": f"{before.advantaged} of {steps * form.prompts}",
    }

    def add(name: str, ours: list[float], rivals: list[float], note: str = "") -> None:
        report.add(Row.of(name, list(zip(ours, rivals, strict=True))[warm:], "s", False, model, note))

    times = before.times
    add("step_vs_trl", [t.step for t in times["all"]], clock.steps)
    add("update_middle_vs_trl", [t.update for t in times["middle"]], clock.updates)
    add("update_last_vs_trl", [t.update for t in times["last"]], clock.updates)
    add("update_all_vs_trl", [t.update for t in times["all"]], clock.updates)
    add("generation_vs_trl", [t.sampling for t in times["all"]], clock.generation)
    note = f"groups with an advantage: {before.advantaged} of {steps * form.prompts}"
    add("step_natural_vs_trl", [t.step for t in times["natural"]], clock.steps, note)


def main() -> None:
    options = arguments(__doc__, (HEADLINE,), checkpointing=0, parts=1)
    report = Report("step", options)
    for model in options.models:
        bench(report, model)


if __name__ == "__main__":
    main()
