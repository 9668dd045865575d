r"""Mathematical equality by ``math_verify``; runs in a worker process, where a hang or a crash harms nobody.

Read in math_verify 0.9: ``parse`` and ``verify`` stop themselves with SIGALRM unless their time-outs are None,
which is right here as ``pool.py`` holds the wall clock (the two warnings about it go to the disabled logger).
``verify(gold, target)`` is not symmetric: the form of an assignment or a set follows the gold, so gold comes first.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any


def prepare() -> None:
    """Imports sympy and the grammar and compiles the expressions, before the first clock starts."""
    equivalent(r"\frac{1}{2}", "0.25")
    equivalent("x+1", "1,2")


def equivalent(candidate: str, gold: str) -> tuple[str, str]:
    r"""Status and reason for the content of a box against a gold answer, both LaTeX or plain text.

    ``(fault, gold_unparsable)`` if the gold is not mathematics to math_verify, whatever the candidate is:
    equal text would otherwise be the only way to be right, and 1/2 against .5 would count as wrong.
    """
    from math_verify import verify

    expected = _parse_gold(gold)
    if all(isinstance(item, str) for item in expected):
        return "fault", "gold_unparsable"
    found = _parse(candidate)
    if all(isinstance(item, str) for item in found):
        return "wrong", "unparsable"
    equal = verify(expected, found, timeout_seconds=None)
    return ("correct", "equal") if equal else ("wrong", "not_equal")


def _parse(text: str) -> list[Any]:
    r"""math_verify's expressions for ``text``, and ``text`` itself as a string; only that if it is no mathematics."""
    from math_verify import parse

    # Gold and candidate go through the same \boxed{} road, so that both get the same normalisation.
    return list(parse(rf"\boxed{{{text}}}", parsing_timeout=None))


# One gold meets the K answers of its group one after the other.
_parse_gold = lru_cache(maxsize=256)(_parse)
