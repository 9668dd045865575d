"""The contract of a verifier (``verifiers/base.py``): a verdict on anything, in order, in bounded time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, get_args

from steerkit.errors import SteerkitError
from steerkit.testing.checks import Check, assert_all, label, made
from steerkit.types import Example, Verdict, VerdictStatus
from steerkit.verifiers.base import EXTRACTED_CHARS

Pair = tuple[str, str]
"""A completion and the gold answer."""

RIGHT: tuple[Pair, ...] = ((r"The answer is \boxed{15}.", "15"),)
WRONG: tuple[Pair, ...] = ((r"The answer is \boxed{16}.", "15"), ("I don't know.", "15"))
ODD = (
    "",
    "15",
    r"\boxed{",
    r"\boxed{}",
    r"\boxed{\boxed{}}",
    "\\boxed{\x00\ud800🙂}",
    r"\boxed{__import__('os')}",
    "}{" * 50,
)
"""Completions that break careless verifiers."""
LONG = 10**6
SECONDS = 10.0
"""Processor time that a completion of ``LONG`` characters may take."""


def check_verifier(
    target: Any,
    *,
    right: Sequence[Pair] | None = None,
    wrong: Sequence[Pair] | None = None,
    examples: Sequence[Example] = (),
    **settings: Any,
) -> None:
    r"""The verifier contract.

    Args:
        target: a class, an object, or a plugin's name.
        right: (completion, gold answer) pairs that must be correct. Without these, ``wrong`` and ``examples``, it is
            tried on ``\boxed{15}`` against 15.
        wrong: pairs that must be wrong; as default ``\boxed{16}`` and no box.
        examples: problems whose gold answers it must understand.
        settings: of a class.

    Raises:
        AssertionError: naming the promise that is broken.
    """
    checks = verifier_checks(target, right=right, wrong=wrong, examples=examples, **settings)
    assert_all(label(target), checks)


def verifier_checks(
    target: Any,
    *,
    right: Sequence[Pair] | None = None,
    wrong: Sequence[Pair] | None = None,
    examples: Sequence[Example] = (),
    **settings: Any,
) -> list[Check]:
    """The promises, for ``check_verifier`` and for the shell."""
    if not right and not wrong and not examples:
        right, wrong = RIGHT, WRONG
    contract = _Contract(made("verifiers", target, settings), right or (), wrong or (), examples)
    checks = [
        Check("right answers are correct", contract.right_answers),
        Check("wrong answers are wrong", contract.wrong_answers),
        Check("the gold answers are understood", contract.understood),
        Check("odd completions and odd gold answers get a verdict", contract.odd),
        Check("verify_many is verify, in order", contract.in_order),
        Check("the same question gets the same verdict", contract.repeatable),
        Check("lists of unequal length are refused", contract.unequal),
        Check(f"a completion of {LONG:,} characters is judged within {SECONDS:g} s", contract.bounded),
        Check("works again after close()", contract.reopened),
    ]
    present = {"right": bool(right), "wrong": bool(wrong), "the gold": bool(examples)}
    return [check for check in checks if all(given or not check.name.startswith(key) for key, given in present.items())]


class _Contract:
    def __init__(
        self, verifier: Any, right: Sequence[Pair], wrong: Sequence[Pair], examples: Sequence[Example]
    ) -> None:
        self.verifier, self.right, self.wrong, self.examples = verifier, right, wrong, examples
        golds = [gold for _, gold in (*right, *wrong)] + [example.answer for example in examples]
        self.pairs = [*right, *wrong, *((completion, golds[0]) for completion in ODD)]

    def right_answers(self) -> None:
        self._status(self.right, "correct")

    def wrong_answers(self) -> None:
        self._status(self.wrong, "wrong")

    def _status(self, pairs: Sequence[Pair], status: VerdictStatus) -> None:
        for completion, gold in pairs:
            verdict = self.verifier.verify(completion, gold)
            assert verdict.status == status, (
                f"{completion!r:.80} against {gold!r:.80}: expected {status}, got {verdict}"
            )

    def understood(self) -> None:
        golds = [example.answer for example in self.examples[:256]]
        verdicts = self.verifier.verify_many([r"\boxed{0}"] * len(golds), golds)
        for gold, verdict in zip(golds, verdicts, strict=True):
            assert verdict.status != "fault", f"gold answer {gold!r:.80}: {verdict}"

    def odd(self) -> None:
        pairs = self.pairs + [(r"\boxed{15}", gold) for gold in ODD]
        for (completion, gold), verdict in zip(pairs, self._verdicts(pairs), strict=True):
            where = f"{completion!r:.80} against {gold!r:.80}"
            assert isinstance(verdict, Verdict), f"{where}: expected a Verdict, got {verdict!r:.80}"
            assert verdict.status in get_args(VerdictStatus), f"{where}: status {verdict.status!r}"
            assert verdict.reason, f"{where}: a verdict needs a reason"
            size = len(verdict.extracted)
            assert size <= EXTRACTED_CHARS, f"{where}: extracted has {size} characters; use verifiers.base.displayed"
            verdict.extracted.encode()  # it is written to files

    def in_order(self) -> None:
        alone = [self.verifier.verify(*pair) for pair in self.pairs]
        for pairs, expected in ((self.pairs, alone), (self.pairs[::-1], alone[::-1])):
            assert self._verdicts(pairs) == expected, "verify_many differs from verify on each, in that order"
        assert self.verifier.verify_many([], []) == []

    def repeatable(self) -> None:
        first, second = self._verdicts(self.pairs), self._verdicts(self.pairs)
        assert first == second, "the verdicts changed at the second time"

    def unequal(self) -> None:
        try:
            self.verifier.verify_many(["a", "b"], [self.pairs[0][1]])
        except SteerkitError:
            return
        raise AssertionError("2 completions and 1 answer: expected a SteerkitError")

    def bounded(self) -> None:
        gold = self.pairs[0][1]
        began = time.process_time()
        for text in ("(" * LONG, "\\boxed{" + "1+" * (LONG // 2) + "}", "\\boxed{" * (LONG // 7)):
            verdict = self.verifier.verify(text, gold)
            assert verdict.status != "correct", f"{text!r:.20}... is not {gold!r:.80}: {verdict!r:.200}"
        spent = time.process_time() - began
        assert spent <= SECONDS, f"took {spent:.1f} s of processor time"

    def reopened(self) -> None:
        before = self._verdicts(self.pairs)
        for method in ("warm", "close"):
            if hasattr(self.verifier, method):
                getattr(self.verifier, method)()
        after = self._verdicts(self.pairs)
        if hasattr(self.verifier, "close"):
            self.verifier.close()
        assert after == before, "other verdicts than before close()"

    def _verdicts(self, pairs: Sequence[Pair]) -> list[Verdict]:
        completions, golds = [completion for completion, _ in pairs], [gold for _, gold in pairs]
        return list(self.verifier.verify_many(completions, golds))
