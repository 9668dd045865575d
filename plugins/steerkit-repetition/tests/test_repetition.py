"""The share of repeated n-grams by hand and by a count, and the reward's contract."""

from __future__ import annotations

import random

import pytest
from steerkit_repetition import Repetition, repeated_share

from steerkit.errors import SteerkitError
from steerkit.rewards import Rubric
from steerkit.testing import check_reward
from steerkit.types import Example, Rollout, RolloutGroup


def test_contract() -> None:
    check_reward(Repetition)
    check_reward(Repetition, n=1)


@pytest.mark.parametrize(
    ("tokens", "n", "share"),
    [
        ([1, 2, 3, 4], 2, 0.0),
        ([5, 5, 5, 5, 5], 2, 0.75),
        ([1, 2, 1, 2, 1], 2, 0.5),
        ([1, 2, 3, 1, 2, 4], 3, 0.0),
        ([1, 2, 3, 9, 1, 2, 3], 3, 0.2),
        ([7] * 100, 4, 96 / 97),
        ([1, 1], 3, 0.0),
        ([], 1, 0.0),
    ],
)
def test_by_hand(tokens: list[int], n: int, share: float) -> None:
    assert repeated_share(tokens, n) == pytest.approx(share, abs=1e-12)


def test_counts_the_grams_seen_before() -> None:
    """The same number another way: walk through the text and count the n-grams that stood there already."""
    rng = random.Random(0)
    for _ in range(200):
        tokens, n = [rng.randint(0, 3) for _ in range(rng.randint(0, 30))], rng.randint(1, 4)
        grams = [str(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        again = sum(gram in grams[:i] for i, gram in enumerate(grams))
        assert repeated_share(tokens, n) == pytest.approx(again / len(grams) if grams else 0)


def test_in_a_rubric() -> None:
    ids = [(1, 2, 3, 4, 5), (8, 8, 8, 8, 8)]
    rollouts = tuple(Rollout(tokens, (0.0,) * 5, "stop", "text") for tokens in ids)
    group = RolloutGroup(Example("p", "What?", "5"), "What?", (1,), rollouts)
    rubric = Rubric([{"name": "steerkit_repetition:Repetition", "n": 2, "weight": 0.5}])
    assert rubric.names == ["Repetition"]
    assert rubric.score([group]).total.tolist() == [[0.0, -0.375]]


def test_bad_setting() -> None:
    with pytest.raises(SteerkitError, match="n must be at least 1, got 0"):
        Repetition(n=0)
