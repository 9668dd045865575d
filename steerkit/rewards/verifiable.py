"""The papers' reward: +1 for a right answer, -1 for a wrong one (arXiv 2509.06608)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from steerkit import registry
from steerkit.errors import SteerkitError
from steerkit.rewards.base import Reward
from steerkit.rewards.faults import FaultLog
from steerkit.types import Verdict
from steerkit.verifiers import Verifier, fault_cause

OnFault = Literal["drop", "wrong"]


class Verifiable(Reward):
    """``correct`` or ``wrong`` by a verifier plugin; a cut-off completion is wrong whatever it says.

    Args:
        verifier: a plugin's name, ``{name: ..., **settings}``, or a verifier.
        correct: reward of a right answer.
        wrong: reward of a wrong one.
        on_fault: ``drop``: a completion that the verifier failed on has no reward (None) and leaves its group;
            ``wrong``: it gets ``wrong``, which punishes answers built to hang the verifier.
        replay_file: the latest faults are written here after each call that met one.

    ``last_verdicts`` are the verdicts behind the last call. Over the whole life: ``counts`` sums the reasons of all
    verdicts, ``fault_counts`` the causes of the faults, and ``faults`` keeps the pairs behind the latest of them.
    """

    def __init__(
        self,
        verifier: str | Mapping[str, Any] | Verifier = "math",
        correct: float = 1.0,
        wrong: float = -1.0,
        on_fault: OnFault = "drop",
        replay_file: str | Path | None = None,
    ) -> None:
        if on_fault not in get_args(OnFault):
            raise SteerkitError(f"on_fault must be 'drop' or 'wrong', got {on_fault!r}.")
        self.verifier: Any = verifier if isinstance(verifier, Verifier) else registry.build("verifiers", verifier)
        self.correct, self.wrong, self.on_fault = correct, wrong, on_fault
        self.last_verdicts: list[Verdict] = []
        self.counts: Counter[str] = Counter()
        self.fault_counts: Counter[str] = Counter()
        self.faults = FaultLog(_spec(verifier))
        self.faults.path = None if replay_file is None else Path(replay_file)

    def verdicts(
        self, completions: Sequence[str], answers: Sequence[str], finish_reasons: Sequence[str] | None = None
    ) -> list[Verdict]:
        """One verdict per completion; the evaluation judges by this very path.

        Args:
            completions: sampled texts.
            answers: one gold answer per completion.
            finish_reasons: ``stop`` or ``length`` per completion; None takes all for ``stop``.
        """
        reasons = ["stop"] * len(completions) if finish_reasons is None else list(finish_reasons)
        if not len(completions) == len(answers) == len(reasons):
            raise SteerkitError(
                f"Expected one answer and one finish_reason per completion, got {len(completions)} completions, "
                f"{len(answers)} answers and {len(reasons)} finish reasons."
            )
        complete = [index for index, reason in enumerate(reasons) if reason != "length"]
        judged = self.verifier.verify_many([completions[i] for i in complete], [answers[i] for i in complete])
        verdicts = [Verdict("wrong", "truncated")] * len(completions)
        for index, verdict in zip(complete, judged, strict=True):
            verdicts[index] = verdict
        self.counts.update(verdict.reason for verdict in verdicts)
        self._note_faults(completions, answers, verdicts)
        return verdicts

    def _note_faults(self, completions: Sequence[str], answers: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        found = [index for index, verdict in enumerate(verdicts) if verdict.status == "fault"]
        for index in found:
            self.faults.add(answers[index], completions[index], verdicts[index].reason)
        self.fault_counts.update(fault_cause(verdicts[index].reason) for index in found)
        if found:
            self.faults.write()

    def __call__(
        self, prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        if "answer" not in columns:
            raise SteerkitError("The verifiable reward needs the column 'answer'; rename the data set's gold column.")
        self.last_verdicts = self.verdicts(completions, columns["answer"], columns.get("finish_reason"))
        return [self._value(verdict) for verdict in self.last_verdicts]

    def _value(self, verdict: Verdict) -> float | None:
        if verdict.status == "fault" and self.on_fault == "drop":
            return None
        return self.correct if verdict.correct else self.wrong

    def warm(self) -> None:
        if hasattr(self.verifier, "warm"):
            self.verifier.warm()

    def close(self) -> None:
        if hasattr(self.verifier, "close"):
            self.verifier.close()


def _spec(verifier: str | Mapping[str, Any] | Verifier) -> Any:
    """What a replay needs to build the verifier again; None for an object, whose settings nobody knows."""
    return dict(verifier) if isinstance(verifier, Mapping) else None if isinstance(verifier, Verifier) else verifier
