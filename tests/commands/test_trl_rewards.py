"""Reward functions written for TRL work unchanged: the shapes in its documentation and in ``trl.rewards`` (1.16).

What TRL does with them (``GRPOTrainer._calculate_rewards``): all by keyword, each data set column as a list with one
item a completion, None for "no opinion".
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from steerkit.errors import SteerkitError
from steerkit.rewards import Rubric
from steerkit.types import Example, Rollout, RolloutGroup

FUNCTIONS = r'''
import asyncio
import functools
import re


def token_length(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


def letter_length(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def reference(completions, ground_truth, **kwargs):
    matches = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    contents = [match.group(1) if match else "" for match in matches]
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth)]


def math_only(prompts, completions, task, **kwargs):
    assert len(prompts) == len(completions) == len(task)
    return [1.0 if t == "math" else None for t in task]


async def remote(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    return [1.0 if completion else 0.0 for completion in completions]


def logs(completions, log_extra=None, log_metric=None, **kwargs):
    if log_extra is not None:
        log_extra("lengths", [len(completion) for completion in completions])
    return [0.5] * len(completions)


class RepetitionPenalty:
    """trl.rewards.get_repetition_penalty_reward returns such an object."""

    __name__ = "repetition_penalty_reward"

    def __init__(self, ngram_size=2):
        self.ngram_size = ngram_size

    def __call__(self, completion_ids, **kwargs):
        rewards = []
        for ids in completion_ids:
            ngrams = list(zip(*[ids[i:] for i in range(self.ngram_size)]))
            rewards.append(len(set(ngrams)) / len(ngrams) - 1 if ngrams else 0.0)
        return rewards


class AsyncJudge:
    async def __call__(self, completions, **kwargs):
        return [2.0] * len(completions)


repetition = RepetitionPenalty()
judge = AsyncJudge()
partial = functools.partial(letter_length)


def wants_state(completions, trainer_state, **kwargs):
    return [float(trainer_state.global_step)] * len(completions)


def conversational(completions, **kwargs):
    return [float(len(completion[0]["content"])) for completion in completions]


def roles(prompts, completions, **kwargs):
    ask, answer = {"role": "user", "content": "What?"}, "assistant"
    return [float(p == [ask] and c[0]["role"] == answer) for p, c in zip(prompts, completions)]


def must_log(completions, log_extra, log_metric, **kwargs):
    log_extra("lengths", [len(completion) for completion in completions])
    log_metric("longest", max(map(len, completions)))
    return [0.5] * len(completions)
'''

ROLLOUTS = ((r"so \boxed{5}", (7, 8, 9)), ("", (1,)), ("5", (4, 4, 4, 1)))


def group(answer: str, task: str) -> RolloutGroup:
    rollouts = tuple(Rollout(ids, (-0.1,) * len(ids), "stop", text) for text, ids in ROLLOUTS)
    example = Example(f"id-{task}", "What?", answer, "toy", {"ground_truth": answer, "task": task})
    return RolloutGroup(example, "User: What?", (1, 2, 3), rollouts)


GROUPS = [group("5", "math"), group("7", "code")]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The functions as a file, as a module, and two of them as plugins."""
    (tmp_path / "trl_style.py").write_text(FUNCTIONS)
    info = tmp_path / "trl_style-1.0.dist-info"
    info.mkdir()
    names = ("remote", "reference", "repetition")
    lines = "\n".join(f"trl_{name} = trl_style:{name}" for name in names)
    (info / "entry_points.txt").write_text(f"[steerkit.rewards]\n{lines}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "trl_style", raising=False)
    return str(tmp_path / "trl_style.py")


def score(reward: Any) -> list[list[float | None]]:
    values = next(iter(Rubric([reward]).score(GROUPS).breakdown.values()))
    return [[None if bool(value.isnan()) else float(value) for value in row] for row in values]


EXPECTED: dict[str, list[list[float | None]]] = {
    "token_length": [[3, 1, 4]] * 2,
    "letter_length": [[12, 0, 1]] * 2,
    "reference": [[1, 0, 0], [0, 0, 0]],
    "math_only": [[1, 1, 1], [None, None, None]],
    "remote": [[1, 0, 1]] * 2,
    "logs": [[0.5] * 3] * 2,
    "repetition": [[0, 0, pytest.approx(-1 / 3)]] * 2,
    "judge": [[2] * 3] * 2,
    "partial": [[12, 0, 1]] * 2,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_by_file_and_by_module(file: str, name: str) -> None:
    assert score(f"{file}:{name}") == EXPECTED[name]
    assert score(f"trl_style:{name}") == EXPECTED[name]


@pytest.mark.parametrize("name", ["remote", "reference", "repetition"])
def test_by_plugin_name(file: str, name: str) -> None:
    assert score(f"trl_{name}") == EXPECTED[name]
    assert Rubric([f"trl_{name}"]).names == [f"trl_{name}"]


def test_mixed_in_one_rubric_with_weights(file: str) -> None:
    """TRL sums weighted rewards without those that are None; a sample without any opinion is left out here."""
    rubric = Rubric([{"name": f"{file}:math_only", "weight": 2.0}, {"name": f"{file}:remote", "weight": 0.5}])
    assert rubric.score(GROUPS).total.tolist() == [[2.5, 2.0, 2.5], [0.5, 0.0, 0.5]]
    alone = Rubric([f"{file}:math_only"]).score(GROUPS)
    assert alone.valid.tolist() == [[True] * 3, [False] * 3] and bool(torch.isnan(alone.total[1]).all())


def test_objects_and_partials_in_python(file: str) -> None:
    import trl_style

    assert score(trl_style.RepetitionPenalty(2)) == EXPECTED["repetition"]
    assert score(functools.partial(trl_style.letter_length)) == EXPECTED["partial"]


def test_conversational_format(file: str) -> None:
    """`trl.rewards.accuracy_reward` and `think_format_reward` read completions like this."""
    assert score({"name": f"{file}:conversational", "conversational": True}) == [[12, 0, 1]] * 2
    assert score({"name": f"{file}:roles", "conversational": True}) == [[1, 1, 1]] * 2
    with pytest.raises(SteerkitError, match="must be true or false, got 'yes'"):
        Rubric([{"name": f"{file}:conversational", "conversational": "yes"}])


def test_functions_to_log_with_may_be_required(file: str) -> None:
    assert score(f"{file}:must_log") == [[0.5] * 3] * 2


@pytest.mark.parametrize(
    ("name", "lesson"),
    [
        ("wants_state", "Reward 'wants_state' asks for 'trainer_state', which is not there"),
        ("conversational", "Reward 'conversational' raised TypeError"),
    ],
)
def test_what_is_not_supported_is_named(file: str, name: str, lesson: str) -> None:
    """The second for want of `conversational: true`."""
    with pytest.raises(SteerkitError, match=lesson):
        score(f"{file}:{name}")
