r"""Mathematical equality of the last ``\boxed{}`` and the gold answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from steerkit.types import Verdict
from steerkit.verifiers.base import Verifier, check_lengths, displayed
from steerkit.verifiers.boxed import last_boxed
from steerkit.verifiers.pool import Answer, WorkerPool

_INTEGER = re.compile(r"-?[0-9]{1,1000}\Z")  # int() refuses beyond 4,300 digits


class MathVerifier(Verifier):
    r"""Correct if the last ``\boxed{}`` equals the gold answer mathematically (math_verify, in killable processes).

    Two plain integers are compared here, exactly and without a process. All else goes to ``workers`` processes;
    equal (answer, gold) pairs of one call are judged once, so a group whose samples agree costs one comparison.
    One full stop at the end of either side is dropped: math_verify does not parse ``5.``

    Args:
        workers: number of processes.
        timeout: seconds of wall clock for one answer; a longer one is killed and counts as a fault.
        memory_mb: address space of one process in MiB.
        max_chars: a box with more characters than this (and than its gold) is wrong without being looked at.

    Reasons. correct: ``equal``. wrong: ``not_equal``, ``no_box``, ``empty_box``, ``too_long``, ``unparsable``.
    fault: ``gold_unparsable``, ``timeout``, ``crash``, ``memory``, ``error: ...``.
    math_verify swallows exceptions, so an answer that exhausts memory inside it may come back as ``not_equal``.
    """

    def __init__(self, workers: int = 2, timeout: float = 5.0, memory_mb: int = 2048, max_chars: int = 2000) -> None:
        self.max_chars = max_chars
        self.pool = WorkerPool("steerkit.verifiers.equivalence:equivalent", workers, timeout, memory_mb)

    def verify(self, completion: str, answer: str) -> Verdict:
        return self.verify_many([completion], [answer])[0]

    def verify_many(self, completions: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        check_lengths(completions, answers)
        boxes = [last_boxed(completion) for completion in completions]
        pairs = [None if box is None else (_clean(box), _clean(gold)) for box, gold in zip(boxes, answers, strict=True)]
        judged: dict[tuple[str, str], Answer] = {}
        hard: dict[tuple[str, str], None] = {}  # a set that keeps the order
        for pair in pairs:
            if pair is None or pair in judged:
                continue
            quick = self._in_parent(*pair)
            if quick is None:
                hard[pair] = None
            else:
                judged[pair] = quick
        judged.update(zip(hard, self.pool.map(list(hard)), strict=True))
        return [
            Verdict("wrong", "no_box") if pair is None or box is None else Verdict(*judged[pair], displayed(box))
            for pair, box in zip(pairs, boxes, strict=True)
        ]

    def _in_parent(self, box: str, gold: str) -> Answer | None:
        """The answer where no process is needed, else None."""
        if not gold:
            return "fault", "gold_unparsable"
        if not box:
            return "wrong", "empty_box"
        if len(box) > max(self.max_chars, len(gold)):
            return "wrong", "too_long"
        if _INTEGER.match(box) and _INTEGER.match(gold):
            return ("correct", "equal") if int(box) == int(gold) else ("wrong", "not_equal")
        return None

    def warm(self) -> None:
        self.pool.warm()

    def close(self) -> None:
        self.pool.close()


def _clean(text: str) -> str:
    """Stripped, without one final full stop; an ellipsis stays."""
    text = text.strip()
    return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text
