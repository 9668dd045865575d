r"""Mathematical equality of a completion's answer and the gold answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from steerkit.types import Verdict
from steerkit.verifiers.base import Verifier, check_lengths, displayed
from steerkit.verifiers.extract import Form, check_forms, extract_answer
from steerkit.verifiers.pool import Answer, WorkerPool

_INTEGER = re.compile(r"-?[0-9]{1,1000}\Z")  # int() refuses beyond 4,300 digits


class MathVerifier(Verifier):
    r"""Correct if the completion's answer equals the gold answer mathematically (docs/verifiers.md).

    Two plain integers are compared here, exactly and without a process. All else goes to ``workers`` processes;
    equal (answer, gold) pairs of one call are judged once, so a group whose samples agree costs one comparison.

    Args:
        workers: number of processes.
        timeout: seconds of wall clock for one answer; a longer one is killed and counts as a fault.
        memory_mb: address space of one process in MiB.
        max_chars: an answer with more characters than this (and than its gold) is wrong without being looked at.
        extract: where the answer stands, in order of priority: ``boxed`` (the last ``\boxed{}``), ``hash`` (after
            ``####``), ``phrase`` (after "the answer is"). A later form counts only where the earlier ones find nothing.

    Reasons. correct: ``equal``. wrong: ``not_equal``, ``no_box``, ``empty_box``, ``too_long``, ``unparsable``.
    fault: ``gold_unparsable``, ``timeout``, ``crash``, ``memory``, ``error: ...``.
    math_verify, which compares what the strict reader does not know, swallows exceptions: an answer that exhausts
    memory inside it may come back as ``not_equal``.
    """

    def __init__(
        self,
        workers: int = 2,
        timeout: float = 5.0,
        memory_mb: int = 2048,
        max_chars: int = 2000,
        extract: Sequence[Form] = ("boxed",),
    ) -> None:
        self.max_chars = max_chars
        self.extract = check_forms(extract)
        self.pool = WorkerPool("steerkit.verifiers.equivalence:equivalent", workers, timeout, memory_mb)

    def verify(self, completion: str, answer: str) -> Verdict:
        return self.verify_many([completion], [answer])[0]

    def verify_many(self, completions: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        check_lengths(completions, answers)
        found = [extract_answer(completion, self.extract) for completion in completions]
        pairs = [
            None if text is None else (text.strip(), gold.strip()) for text, gold in zip(found, answers, strict=True)
        ]
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
            Verdict("wrong", "no_box") if pair is None else Verdict(*judged[pair], displayed(pair[0])) for pair in pairs
        ]

    def _in_parent(self, text: str, gold: str) -> Answer | None:
        """The answer where no process is needed, else None."""
        if not gold:
            return "fault", "gold_unparsable"
        if not text:
            return "wrong", "empty_box"
        if len(text) > max(self.max_chars, len(gold)):
            return "wrong", "too_long"
        if _INTEGER.match(text) and _INTEGER.match(gold):
            return ("correct", "equal") if int(text) == int(gold) else ("wrong", "not_equal")
        return None

    def warm(self) -> None:
        self.pool.warm()

    def wait(self) -> None:
        self.pool.wait()

    def close(self) -> None:
        self.pool.close()
