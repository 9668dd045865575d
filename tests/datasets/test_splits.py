"""Keys, splits and duplicates: hand-computed values and the properties that keep test problems out of training."""

from __future__ import annotations

import hashlib
import random

import pytest

from steerkit.datasets import assign_split, deduplicate, normalised_key
from steerkit.errors import DataError
from steerkit.types import Example

FRACTIONS = (0.8, 0.1, 0.1)


def example(number: int, problem: str, answer: str = "1") -> Example:
    return Example(id=str(number), problem=problem, answer=answer)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("What is 2 + 3?", "whatis2+3"),
        ("WHAT  is\n2+3 ?!", "whatis2+3"),
        ("x\u00b2 \u2264 \uff11", "x21"),  # NFKC: superscript two, fullwidth one
        ("a < b > c = d ^ e * f / g - h", "a<b>c=d^e*f/g-h"),
        ("\u00c9T\u00c9, \u03c0", "\u00e9t\u00e9\u03c0"),
    ],
)
def test_normalised_key_is_the_sha1_of_what_is_kept(text: str, kept: str) -> None:
    assert normalised_key(text) == hashlib.sha1(kept.encode()).hexdigest()


def test_texts_of_other_signs_keep_apart() -> None:
    assert normalised_key("?") != normalised_key("!")


@pytest.mark.parametrize(
    ("key", "fractions", "split"),
    [
        ("0" * 40, FRACTIONS, "train"),
        ("cccccccccccca" + "0" * 27, FRACTIONS, "train"),  # 0.7999...
        ("ccccccccccccd" + "0" * 27, FRACTIONS, "validation"),  # 0.8 and a bit
        ("d" + "0" * 39, FRACTIONS, "validation"),  # 13/16 = 0.8125
        ("e6" + "0" * 38, FRACTIONS, "validation"),  # 0.8984
        ("e7" + "0" * 38, FRACTIONS, "test"),  # 0.9023
        ("f" * 40, FRACTIONS, "test"),
        ("f" * 40, (0.9, 0.1, 0.0), "validation"),
        ("f" * 40, (1.0, 0.0, 0.0), "train"),
        ("0" * 40, (0.0, 0.0, 1.0), "test"),
    ],
)
def test_assign_split_by_hand(key: str, fractions: tuple[float, ...], split: str) -> None:
    assert assign_split(key, fractions) == split


@pytest.mark.parametrize("fractions", [(0.8, 0.2), (0.8, 0.1, 0.2), (1.2, -0.1, -0.1), ()])
def test_fractions_are_checked(fractions: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="shares of train, validation and test with sum 1"):
        assign_split("0" * 40, fractions)


def test_shares_come_out_as_asked() -> None:
    splits = [assign_split(normalised_key(f"problem {n}"), FRACTIONS) for n in range(5000)]
    # Three standard deviations of a binomial share: 0.017 at 0.8, 0.013 at 0.1.
    assert splits.count("train") / 5000 == pytest.approx(0.8, abs=0.017)
    assert splits.count("validation") / 5000 == pytest.approx(0.1, abs=0.013)


def test_a_problem_stays_in_its_split_when_rows_are_added_or_shuffled() -> None:
    draw = random.Random(0)
    first = [f"Add {draw.randrange(999)} and {draw.randrange(999)}." for _ in range(300)]
    more = first + [f"Take {draw.randrange(999)} from {draw.randrange(999)}." for _ in range(300)]
    draw.shuffle(more)

    def division(problems: list[str]) -> dict[str, str]:
        kept, _ = deduplicate([example(n, text) for n, text in enumerate(problems)])
        return {normalised_key(e.problem): assign_split(normalised_key(e.problem), FRACTIONS) for e in kept}

    before, after = division(first), division([text.upper() for text in more])
    assert before.items() <= after.items()


def test_deduplicate_keeps_the_first_and_tells_what_went() -> None:
    rows = [example(0, "2 + 2?"), example(1, "3 + 3?"), example(2, "2+2", "5"), example(3, "2 +2!")]
    kept, dropped = deduplicate(rows)
    assert kept == rows[:2]
    assert dropped == [(rows[0], rows[2]), (rows[0], rows[3])]
    assert deduplicate([]) == ([], [])
