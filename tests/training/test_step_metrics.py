"""The verifier's faults in the metrics of a step, by cause."""

from types import SimpleNamespace

import torch

from steerkit.rewards import Rubric, Verifiable
from steerkit.training.metrics import StepTable, step_metrics
from steerkit.types import Example, Rollout, RolloutGroup, Verdict
from steerkit.verifiers import FAULT_CAUSES, Verifier


class Fragile(Verifier):
    def verify(self, completion: str, answer: str) -> Verdict:
        if completion in ("timeout", "crash", "error: ValueError"):
            return Verdict("fault", completion)
        return Verdict("correct", "equal") if completion == answer else Verdict("wrong", "not_equal")


def metrics(texts: list[str]) -> dict[str, float]:
    rollouts = tuple(Rollout((1, 2), (-0.5, -0.5), "stop", text) for text in texts)
    groups = [RolloutGroup(Example("p", "?", "5"), "?", (1,), rollouts)]
    scores = Rubric([Verifiable(Fragile())]).score(groups)
    model = SimpleNamespace(interventions={})
    return step_metrics(StepTable.of(groups, scores), torch.zeros(1, len(texts)), model)  # type: ignore[arg-type]


def test_faults_are_counted_per_cause_and_left_out_of_the_accuracy() -> None:
    found = metrics(["5", "6", "timeout", "timeout", "error: ValueError", "5"])
    assert found["verifier/faults"] == 3
    assert found["accuracy"] == 2 / 3
    by_cause = {cause: found[f"verifier/faults/{cause}"] for cause in FAULT_CAUSES}
    assert by_cause == {"timeout": 2, "crash": 0, "memory": 0, "error": 1, "gold_unparsable": 0}


def test_the_columns_are_the_same_without_faults() -> None:
    assert metrics(["5", "6"]).keys() == metrics(["timeout", "crash"]).keys()
