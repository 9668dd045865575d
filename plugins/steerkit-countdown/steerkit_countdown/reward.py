r"""The graded Countdown reward: much for a solution, a little for a legible attempt.

The grades are TinyZero's (github.com/Jiayi-Pan/TinyZero, reward_score/countdown.py): 1, 0.1 and 0.
"""

from __future__ import annotations

from steerkit.rewards import Verifiable
from steerkit.rewards.verifiable import OnFault
from steerkit.types import Verdict
from steerkit_countdown.verifier import CountdownVerifier

LEGIBLE = ("not_equal", "bad_number", "division_by_zero")
"""Reasons of a verdict on a box that holds an arithmetic expression."""


class CountdownReward(Verifiable):
    r"""``correct`` for a solution, ``legible`` for a box with any arithmetic expression, ``wrong`` for the rest.

    It reads the columns ``answer`` (``numbers=3,6,7; target=24``) and, where there is one, ``finish_reason``: a cut-off
    completion gets ``wrong``. As a ``Verifiable`` it also tells the trainer how to judge validation and test answers.

    Args:
        correct, legible, wrong: the three grades.
        on_fault: what an answer column that is no puzzle gets: ``drop`` (None) or ``wrong``.
    """

    def __init__(
        self, correct: float = 1.0, legible: float = 0.1, wrong: float = 0.0, on_fault: OnFault = "drop"
    ) -> None:
        super().__init__(CountdownVerifier(), correct, wrong, on_fault)
        self.legible = legible

    def _value(self, verdict: Verdict) -> float | None:
        return self.legible if verdict.reason in LEGIBLE else super()._value(verdict)
