r"""Mathematical equality of two short answers; runs in a worker process, where a hang or a crash harms nobody.

First the strict reader of ``answers/``: it understands a whole answer or refuses it, so nothing is dropped that
could tell a wrong answer from a right one. Gold answers beyond it (a sum, an integral, a chain of orders) go to
``math_verify``'s grammar (without its fall-back to whatever number stands in the text) and comparison.

Read in math_verify 0.9: ``verify`` stops itself with SIGALRM unless its time-out is None, which is right here as
``pool.py`` holds the wall clock. ``verify(gold, target)`` is not symmetric: the form of an assignment or a set
follows the gold, so gold comes first.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from steerkit.verifiers.answers import Unreadable, read, same
from steerkit.verifiers.answers.model import Answer, Choice, Several, Text, Value
from steerkit.verifiers.answers.normal import normalise
from steerkit.verifiers.answers.numeric import has
from steerkit.verifiers.answers.words import plain, split_label

_LOST = re.compile(r"'|\\prime|\\text|\\mbox|\\mathrm|\d\s*_")
"""What math_verify's grammar drops (primes, the base of a numeral) or takes for a product of letters."""


def prepare() -> None:
    """Imports sympy and the grammar and compiles the expressions, before the first clock starts."""
    equivalent(r"\frac{1}{2}", "0.25")
    equivalent(r"\sum_{k=1}^{n} k", r"\sum_{j=1}^{n} j")


def equivalent(candidate: str, gold: str) -> tuple[str, str]:
    r"""Status and reason for the content of a box against a gold answer, both LaTeX or plain text.

    ``(fault, gold_unparsable)`` if no reader understands the gold, whatever the candidate is: equal text would
    otherwise be the only way to be right, and 1/2 against .5 would count as wrong.
    """
    expected = _read_gold(gold)
    if expected is None:
        return _by_library(candidate, gold)
    try:
        equal = _same_text(expected, candidate)
    except (Unreadable, RecursionError):
        return ("wrong", "unparsable") if _has_value(gold) else ("fault", "gold_unparsable")
    return ("correct", "equal") if equal else ("wrong", "not_equal")


def _same_text(expected: Answer, candidate: str) -> bool:
    if isinstance(expected, Choice):
        letter, rest = split_label(plain(normalise(candidate)))
        if letter and isinstance(read(rest), Text | Value) and len(rest.strip()) > 1:  # (B) 12, but not (B) or (C)
            return letter == expected.letter
    found = read(candidate, scientific=not _mentions_e(expected))
    if isinstance(expected, Several) and not isinstance(found, Several):
        found = read(candidate, thousands=False)  # 1,722 where two answers are asked for
    return same(expected, found)


def _mentions_e(expected: Answer) -> bool:
    """Whether the gold is a formula in e: then ``6e-10`` is one, too."""
    return isinstance(expected, Value) and has(expected.node, ("const", "e"))


@lru_cache(maxsize=256)
def _read_gold(gold: str) -> Answer | None:
    try:
        return read(gold)
    except (Unreadable, RecursionError):
        return None


@lru_cache(maxsize=256)
def _has_value(gold: str) -> bool:
    """Whether the gold can be compared at all; 1/0 can't."""
    try:
        return same(read(gold), read(gold))
    except (Unreadable, RecursionError):
        return False


def _by_library(candidate: str, gold: str) -> tuple[str, str]:
    from math_verify import verify

    expected = _gold_by_library(gold)
    if expected is None:
        return "fault", "gold_unparsable"
    found = _parse_by_library(candidate)
    if found is None:
        return "wrong", "unparsable"
    equal = verify([expected], [found], timeout_seconds=None)
    return ("correct", "equal") if equal else ("wrong", "not_equal")


def _parse_by_library(text: str) -> Any:
    """sympy's expression, or None if the grammar refuses the text, or would drop a part of it."""
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy, normalize_latex

    if _LOST.search(text):
        return None
    clean = normalize_latex(normalise(text), NormalizationConfig(malformed_operators=True))
    try:
        return latex2sympy(
            clean, normalization_config=None, conversion_config=ConversionConfig(lowercase_symbols=False)
        )
    except MemoryError:
        raise
    except Exception:  # whatever the grammar or sympy raise, there is no expression
        return None


_gold_by_library = lru_cache(maxsize=256)(_parse_by_library)
