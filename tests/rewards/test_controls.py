"""The control rewards: the random one's odds and independence, the format one against the verifier."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from steerkit.errors import SteerkitError
from steerkit.rewards import Format, Random, Rubric
from steerkit.testing import check_reward
from steerkit.types import Example, Rollout, RolloutGroup
from steerkit.verifiers.math import MathVerifier


def group(name, texts, reasons=None, ids=None):
    rollouts = [
        Rollout(tuple(ids[k]) if ids else (k, *text.encode()), (-1.0,), (reasons or ["stop"] * len(texts))[k], text)
        for k, text in enumerate(texts)
    ]
    return RolloutGroup(Example(name, f"problem {name}", "5"), f"prompt {name}", (1,), tuple(rollouts))


def random_groups(n, k, generator):
    """Groups as a converged policy samples them: few different completions, many repeats, all of one problem set."""
    return [group(f"p{g % 7}", ["a"] * k, ids=torch.randint(3, (k, 4), generator=generator).tolist()) for g in range(n)]


def test_contracts():
    check_reward("random")
    check_reward("random", probability=0.2, seed=3)
    check_reward("format")


@pytest.mark.parametrize("probability", [0.5, 0.1])
def test_odds(probability):
    scores = Rubric([{"name": "random", "probability": probability}]).score(
        random_groups(600, 16, torch.Generator().manual_seed(0))
    )
    right = (scores.total == 1).float()
    assert set(scores.total.unique().tolist()) == {-1.0, 1.0} and bool(scores.valid.all())
    sigma = math.sqrt(probability * (1 - probability))
    n = right.numel()
    assert abs(float(right.mean()) - probability) < 4 * sigma / math.sqrt(n)
    # Each place of a group has the same odds, and neighbours are not related.
    assert float((right.mean(0) - probability).abs().max()) < 4 * sigma / math.sqrt(len(right))
    centred = right - probability
    assert abs(float((centred[:, 1:] * centred[:, :-1]).mean())) < 4 * sigma**2 / math.sqrt(n)


def test_a_completion_has_no_reward_of_its_own():
    """The same completion of the same problem is right as often as not: within a group, and over steps."""
    generator = torch.Generator().manual_seed(1)
    rubric = Rubric("random")
    same = rubric.score([group("p", ["x"] * 16, ids=[[5, 6]] * 16)]).total
    assert set(same.flatten().tolist()) == {-1.0, 1.0}
    seen: dict[tuple, list[float]] = {}
    for _step in range(60):
        groups = random_groups(7, 16, generator)
        total = rubric.score(groups).total
        for g, item in enumerate(groups):
            for k, rollout in enumerate(item.rollouts):
                seen.setdefault((item.example.id, rollout.token_ids), []).append(float(total[g, k]))
    assert len(seen) == 7 * 3**4
    # The completions' mean rewards scatter as means of fair coins do: chi-square with one degree each.
    chi = sum(len(v) * (sum(v) / len(v)) ** 2 for v in seen.values())
    assert abs(chi - len(seen)) < 4 * math.sqrt(2 * len(seen))


def test_resumed_and_rebatched_runs_agree_and_seeds_differ():
    groups = random_groups(12, 8, torch.Generator().manual_seed(2))
    whole = Rubric("random").score(groups).total
    pieces = torch.cat([Rubric("random").score([g]).total for g in groups])
    backwards = Rubric("random").score(groups[::-1]).total.flip(0)
    # Neighbours of one problem would count as one group: no two are neighbours here.
    assert all(a.example.id != b.example.id for a, b in itertools.pairwise(groups))
    assert torch.equal(whole, pieces) and torch.equal(whole, backwards)
    other = Rubric([{"name": "random", "seed": 1}]).score(groups).total
    assert 0.3 < float((whole == other).float().mean()) < 0.7


def test_random_in_trl_takes_the_step_into_account():
    reward = Random()
    arguments = {"prompts": ["p"] * 64, "completions": ["x"] * 64, "completion_ids": [[1]] * 64}
    draws = [reward(**arguments, trainer_state=SimpleNamespace(global_step=step)) for step in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("probability", [-0.1, 1.5, math.nan])
def test_random_refuses_a_probability_that_is_none(probability):
    with pytest.raises(SteerkitError, match="from 0 to 1"):
        Random(probability)


TEXTS = [
    (r"The answer is \boxed{7}.", 1.0),
    (r"Ответ: \boxed{\frac{1}{2}}", 1.0),
    (r"\boxed{}", -1.0),
    (r"\boxed{ }", -1.0),
    (r"\boxed{7", -1.0),
    ("7", -1.0),
    ("", -1.0),
    (r"\boxed{7} or \boxed{", -1.0),
    (r"\boxedminipage{7}", -1.0),
]


@pytest.mark.parametrize(("text", "expected"), TEXTS)
def test_format(text, expected):
    assert Rubric("format").score([group("p", [text, text], ["stop", "length"])]).total.tolist() == [[expected, -1.0]]


def test_format_does_not_know_the_answer_but_covers_it():
    columns = {"prompts": ["p"], "completion_ids": [[1]], "answer": ["5"]}
    for text, expected in TEXTS:
        for gold in ("5", "7", None):
            assert Format()(**(columns | {"answer": [gold]}), completions=[text]) == [expected]
    verifier = MathVerifier(workers=1)
    try:
        for text, value in TEXTS:
            assert not (verifier.verify(text, "7").correct and value < 0), text
    finally:
        verifier.close()
