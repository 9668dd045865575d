"""Which split a problem belongs to, decided by its text alone.

The key is a hash of the normalised problem, so a problem lands in the same split whichever file it comes from, in
whatever order, and however many rows are added later: what one set trains on, no other set tests on.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Iterable, Sequence

from steerkit.datasets.base import SPLITS, Split
from steerkit.errors import DataError
from steerkit.types import Example

_KEPT_SIGNS = frozenset("+-*/=<>^")


def normalised_key(text: str) -> str:
    """SHA-1 (40 hex digits) of the problem after NFKC and lower case, only letters, digits and ``+-*/=<>^`` kept.

    Spacing, punctuation and capitals don't count, and neither do decimal points and brackets: ``1.5`` and ``15``
    give one key. That errs on the safe side (a problem too many is called a repetition, never one too few).
    """
    plain = unicodedata.normalize("NFKC", text).lower()
    kept = "".join(sign for sign in plain if sign.isalnum() or sign in _KEPT_SIGNS)
    return hashlib.sha1((kept or plain).encode()).hexdigest()  # a text of other signs alone keeps a key of its own


def assign_split(key: str, fractions: Sequence[float]) -> Split:
    """The split of a ``normalised_key``.

    Args:
        key: hex digits; the first 13 (52 bits) are read as a number in [0, 1).
        fractions: shares of train, validation and test; they sum to 1.

    Raises:
        DataError: for fractions that are not three shares.
    """
    check_fractions(fractions)
    position = int(key[:13], 16) / 16**13
    if position < fractions[0]:
        return "train"
    if position < fractions[0] + fractions[1]:
        return "validation"
    # Rounding may leave a sliver above the sum: it belongs to the last split that has a share at all.
    return "test" if fractions[2] > 0 else "validation" if fractions[1] > 0 else "train"


def check_fractions(fractions: Sequence[float]) -> None:
    """Raises DataError unless ``fractions`` are three shares >= 0 with sum 1 (to 1e-6)."""
    sound = len(fractions) == len(SPLITS) and all(share >= 0 for share in fractions)
    if not sound or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
        raise DataError(f"Expected the shares of train, validation and test with sum 1, got {list(fractions)}.")


def deduplicate(examples: Iterable[Example]) -> tuple[list[Example], list[tuple[Example, Example]]]:
    """Keep the first example of each ``normalised_key``, in order.

    Returns:
        The examples kept, and a pair (kept, dropped) for each one dropped.
    """
    first: dict[str, Example] = {}
    dropped: list[tuple[Example, Example]] = []
    for example in examples:
        kept = first.setdefault(normalised_key(example.problem), example)
        if kept is not example:
            dropped.append((kept, example))
    return list(first.values()), dropped


def subset(examples: list[Example], n: int | None, seed: int = 0) -> list[Example]:
    """At most ``n`` examples, chosen by a hash of ``seed`` and the problem, in their old order; None keeps all.

    Not the first rows: files are often sorted by source or difficulty.
    """
    if n is not None and n < 1:
        raise DataError(f"The number of problems must be at least 1 (or null for all), got {n}.")
    if n is None or len(examples) <= n:
        return examples
    digests = [hashlib.sha1(f"{seed}:{normalised_key(e.problem)}".encode()).digest() for e in examples]
    order = sorted(range(len(examples)), key=lambda index: digests[index])
    return [examples[index] for index in sorted(order[:n])]
