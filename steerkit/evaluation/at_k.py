"""pass@k and maj@k: what several samples of one problem are worth together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steerkit.errors import SteerkitError

_SPACING = re.compile(r"\s+|\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|\$")
_NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?\Z")


def pass_at_k(correct: ArrayLike, k: int) -> NDArray[np.float64]:
    """[N] probability that at least one of ``k`` samples drawn from a problem's own (without return) is right.

    The unbiased estimator of Chen et al., arXiv 2107.03374: 1 - C(n - c, k) / C(n, k), for n samples of which c are
    right. A problem with fewer than ``k`` samples that are no faults is NaN: nothing unbiased can be said of it.

    Args:
        correct: [N, K] bool or 0/1; NaN marks a fault, which is left out (n is the number of the others).
        k: at least 1.

    Raises:
        SteerkitError: for k < 1, or no table.
    """
    table = np.asarray(correct, dtype=np.float64)
    if table.ndim != 2:
        raise SteerkitError(f"Expected a table [problems, samples], got shape {list(table.shape)}.")
    if k < 1:
        raise SteerkitError(f"pass@k needs k of at least 1, got {k}.")
    known = (~np.isnan(table)).sum(axis=1)
    right = np.nansum(table, axis=1)
    # Whole numbers: comb() is exact, where a product of ratios would round.
    shares = [
        1.0 - comb(int(n - c), k) / comb(int(n), k) if n >= k else np.nan
        for n, c in zip(known.tolist(), right.tolist(), strict=True)
    ]
    return np.array(shares, dtype=np.float64)


def maj_at_k(answers: Sequence[Sequence[str | None]], correct: ArrayLike) -> NDArray[np.float64]:
    """[N] whether the answer that most samples of a problem give is right.

    Samples vote for an answer. All right samples are one class (the verifier called each equal to the gold answer);
    wrong ones are one class if their ``normalised_answer`` is the same text. A sample without an answer (no box, or
    cut off) has no vote, and neither has a fault. **Ties**: the share of the tied classes that is right, which is the
    expected accuracy when the tie is broken at random; so the value depends neither on the order of the samples nor
    on a random number. No vote at all is wrong; a problem whose samples are all faults is NaN.

    Args:
        answers: ``[N][K]`` the answer's text in each completion; None or an empty text is no answer.
        correct: [N, K] bool or 0/1; NaN marks a fault.

    Raises:
        SteerkitError: the two differ in shape.
    """
    table = np.asarray(correct, dtype=np.float64)
    if table.ndim != 2 or [len(row) for row in answers] != [table.shape[1]] * table.shape[0]:
        raise SteerkitError(f"maj@k needs one answer a sample, got verdicts of shape {list(table.shape)}.")
    return np.array([_majority(row, right) for row, right in zip(answers, table, strict=True)], dtype=np.float64)


_RIGHT = object()


def _majority(answers: Sequence[str | None], right: NDArray[np.float64]) -> float:
    if np.isnan(right).all():
        return float("nan")
    votes: dict[object, int] = {}
    for answer, value in zip(answers, right.tolist(), strict=True):
        if np.isnan(value):
            continue
        text = normalised_answer(answer or "")
        key: object = _RIGHT if value else text
        if value or text:
            votes[key] = votes.get(key, 0) + 1
    if not votes:
        return 0.0
    most = max(votes.values())
    tied = [key for key, count in votes.items() if count == most]
    return (_RIGHT in tied) / len(tied)


def normalised_answer(text: str) -> str:
    r"""``text`` without what doesn't change an answer: spacing, dollar signs, ``\left``, a final full stop.

    ``\dfrac`` and ``\tfrac`` are ``\frac``; a plain number loses thousands commas, a leading plus and trailing zeros.

    >>> normalised_answer(r" \left( 1, \dfrac12 \right). ")
    '(1,\\frac12)'
    >>> normalised_answer("1,024.50")
    '1024.5'
    """
    plain = _SPACING.sub("", text).replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").rstrip(".")
    if _NUMBER.match(plain):
        plain = plain.replace(",", "").lstrip("+")
        plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
        sign, digits = ("-", plain[1:]) if plain.startswith("-") else ("", plain)
        whole = digits.lstrip("0")
        plain = sign + (whole if whole and whole[0] != "." else "0" + whole)
    return plain
