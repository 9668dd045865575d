"""The contract of a verifier: is this completion's answer equal to the gold answer?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

from steerkit.errors import SteerkitError
from steerkit.types import Verdict

V = TypeVar("V", bound="Verifier")

FAULT_CAUSES = ("timeout", "crash", "memory", "error", "gold_unparsable")
"""Why a verifier may fail; a plugin's own reasons count as ``error``."""

EXTRACTED_CHARS = 500
"""A verdict keeps at most this many characters of the answer: it is written to result files."""


class Verifier(ABC):
    """Compares completions with gold answers.

    A subclass writes ``verify``; one that can do many at once (a pool, a server) overrides ``verify_many`` too.
    A verifier never raises on a completion: what it can't judge is a ``fault`` with a reason, since a fault is
    not a wrong answer. Whether a completion was cut off is the reward's business, not the verifier's.
    """

    @abstractmethod
    def verify(self, completion: str, answer: str) -> Verdict:
        """Judges one ``completion`` (the text sampled, without the prompt) against the gold ``answer``."""

    def verify_many(self, completions: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """Judges ``completions[i]`` against ``answers[i]``; the verdicts keep that order.

        Raises:
            SteerkitError: the two lists differ in length.
        """
        check_lengths(completions, answers)
        return [self.verify(completion, answer) for completion, answer in zip(completions, answers, strict=True)]

    def warm(self) -> None:  # noqa: B027 - most verifiers have nothing to start
        """Starts whatever is slow to start and returns at once, so that sampling hides the cost."""

    def wait(self) -> None:  # noqa: B027 - most verifiers have nothing to start
        """Blocks until what ``warm`` started can answer; only who measures the rate needs it."""

    def close(self) -> None:  # noqa: B027 - most verifiers hold nothing
        """Releases processes and the like; the verifier may be used again afterwards."""

    def __enter__(self: V) -> V:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def fault_cause(reason: str) -> str:
    """The counter that a fault's reason belongs to: one of ``FAULT_CAUSES``."""
    cause = reason.partition(":")[0]
    return cause if cause in FAULT_CAUSES else "error"


def check_lengths(completions: Sequence[str], answers: Sequence[str]) -> None:
    """Raises SteerkitError unless there is one answer per completion."""
    if len(completions) != len(answers):
        raise SteerkitError(
            f"A verifier needs one answer per completion, got {len(completions)} completions and "
            f"{len(answers)} answers; repeat each answer for the K completions of its prompt."
        )


def displayed(text: str) -> str:
    """``text`` as a verdict may carry it: bounded, and encodable as UTF-8 (lone surrogates become ``?``)."""
    return text[:EXTRACTED_CHARS].encode("utf-8", "replace").decode("utf-8")
