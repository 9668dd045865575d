"""pass@k and maj@k against enumeration and hand-counted votes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from steerkit.errors import SteerkitError
from steerkit.evaluation.at_k import maj_at_k, normalised_answer, pass_at_k

NAN = math.nan


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_all_draws_of_k_samples(k: int) -> None:
    table = (np.random.default_rng(0).random((30, 5)) < 0.3).astype(float)
    expected = [np.mean([any(row[list(draw)]) for draw in itertools.combinations(range(5), k)]) for row in table]
    np.testing.assert_allclose(pass_at_k(table, k), expected, atol=1e-12)


def test_pass_at_1_is_avg_at_k_and_pass_at_n_is_any() -> None:
    table = [[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    np.testing.assert_allclose(pass_at_k(table, 1), [0.25, 0, 1])
    np.testing.assert_allclose(pass_at_k(table, 4), [1, 0, 1])


def test_pass_at_k_is_unbiased() -> None:
    rng = np.random.default_rng(1)
    chance, k = 0.2, 4
    estimates = pass_at_k(rng.random((20000, 8)) < chance, k)
    assert estimates.mean() == pytest.approx(1 - (1 - chance) ** k, abs=0.006)
    # The estimate from avg@k alone is biased: that is what the estimator is for.
    plugged = 1 - (1 - (rng.random((20000, 8)) < chance).mean(axis=1)) ** k
    assert abs(plugged.mean() - (1 - (1 - chance) ** k)) > 0.03


def test_pass_at_k_leaves_faults_and_short_rows_out() -> None:
    np.testing.assert_allclose(pass_at_k([[1, NAN, 0], [1, NAN, NAN], [NAN] * 3], 2), [1, NAN, NAN])
    large = pass_at_k(np.array([[1.0] + [0.0] * 999]), 500)
    assert large[0] == pytest.approx(0.5)  # large numbers stay exact
    with pytest.raises(SteerkitError, match="k of at least 1"):
        pass_at_k([[1]], 0)
    with pytest.raises(SteerkitError, match="problems, samples"):
        pass_at_k([1, 0], 1)


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        (["7", "7", "8"], [1, 1, 0], 1.0),
        (["7", "8", "8"], [1, 0, 0], 0.0),
        # Two texts that the verifier called right are one class: 2 votes against 1 and 1.
        (["1/2", "0.5", "3", "4"], [1, 1, 0, 0], 1.0),
        # Wrong answers are one class by their normalised text.
        (["1/2", "3", " 3.", "$3$"], [1, 0, 0, 0], 0.0),
        (["1/2", "0.5", r"\dfrac{1}{3}", r"\frac{1}{3}"], [1, 1, 0, 0], 0.5),
        # A tie counts as its share, whatever comes first.
        (["7", "8"], [1, 0], 0.5),
        (["8", "7"], [0, 1], 0.5),
        (["7", "8", "9"], [1, 0, 0], 1 / 3),
        (["8", "9"], [0, 0], 0.0),
        # No answer has no vote.
        ([None, "", "7"], [0, 0, 1], 1.0),
        ([None, ""], [0, 0], 0.0),
        # A fault has no vote; faults alone tell nothing.
        (["7", "8", "8"], [1, NAN, NAN], 1.0),
        (["7", "8"], [NAN, NAN], NAN),
    ],
)
def test_majority(answers: list[str | None], correct: list[float], expected: float) -> None:
    np.testing.assert_allclose(maj_at_k([answers], [correct]), [expected])


def test_majority_does_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        answers = list(rng.choice(["1", "2", "3", ""], size=6))
        correct = [float(answer == "2") for answer in answers]
        order = rng.permutation(6)
        first = maj_at_k([answers], [correct])
        assert first == maj_at_k([[answers[i] for i in order]], [[correct[i] for i in order]])


def test_majority_needs_one_answer_a_sample() -> None:
    with pytest.raises(SteerkitError, match="one answer a sample"):
        maj_at_k([["1"], ["1", "2"]], [[1.0, 0.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("1,000", "1000"),
        ("+5", "5"),
        ("007", "7"),
        ("5.", "5"),
        ("2.50", "2.5"),
        ("-0.50", "-0.5"),
        ("0", "0.0"),
        (r"\left( 1 , 2 \right)", "(1,2)"),
        (r"$\dfrac{1}{2}$", r"\frac{1}{2}"),
        (r"10\,000", "10000"),
    ],
)
def test_equal_after_normalising(text: str, same: str) -> None:
    assert normalised_answer(text) == normalised_answer(same)


@pytest.mark.parametrize(
    ("text", "other"), [("10", "1"), ("100", "1"), ("1,2", "12"), (r"a\leftarrow b", "ab"), ("x", "X"), ("0.05", "0.5")]
)
def test_different_after_normalising(text: str, other: str) -> None:
    assert normalised_answer(text) != normalised_answer(other)
