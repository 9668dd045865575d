import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from steerkit.errors import SteerkitError
from steerkit.rewards import Rubric, Verifiable
from steerkit.types import Example, Rollout, RolloutGroup, Verdict
from steerkit.verifiers import ExactVerifier, Verifier

NAN = math.nan


def group(answer: str, *texts: str, **columns: Any) -> RolloutGroup:
    rollouts = tuple(Rollout((7, 8), (-0.1, -0.2), "stop", text) for text in texts)
    return RolloutGroup(Example(f"id-{answer}", "What?", answer, "toy", columns), "User: What?", (1, 2, 3), rollouts)


GROUPS = [group("5", "5", "six"), group("7", "7", "7")]


def length(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def same(actual: torch.Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float32), equal_nan=True)


class Flaky(Verifier):
    def verify(self, completion: str, answer: str) -> Verdict:
        return Verdict("fault", "timeout") if completion == "six" else Verdict("correct", "equal")


def test_weighted_sum_with_breakdown() -> None:
    def bonus(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **c: Any) -> list[float]:
        assert prompts == ["User: What?"] * 4
        assert completion_ids == [[7, 8]] * 4
        assert c["answer"] == ["5", "5", "7", "7"]
        assert c["id"] == ["id-5", "id-5", "id-7", "id-7"]
        assert c["finish_reason"] == ["stop"] * 4
        assert c["problem"] == ["What?"] * 4
        assert c["source"] == ["toy"] * 4
        return [0, 1, 2, 3]

    scores = Rubric([bonus, length]).score(GROUPS)
    same(scores.breakdown["bonus"], [[0, 1], [2, 3]])
    same(scores.breakdown["length"], [[1, 3], [1, 1]])
    same(scores.total, [[1, 4], [3, 4]])
    assert scores.total.dtype == torch.float32
    assert scores.valid.all()
    assert scores.verdicts is None


def test_names_weights_labels_and_files(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def one(completions, **kwargs):\n    return [1.0] * len(completions)\n"
        "class Many:\n    def __init__(self, n): self.n = n\n"
        "    def __call__(self, completions, **kwargs): return [self.n] * len(completions)\n"
    )
    file = f"{tmp_path}/mine.py"
    rubric = Rubric([{"name": f"{file}:one", "weight": 0.5}, {"name": f"{file}:Many", "n": 3, "label": "three"}])
    assert rubric.names == ["one", "three"]
    assert rubric.weights == {"one": 0.5, "three": 1.0}
    same(rubric.score(GROUPS).total, [[3.5, 3.5], [3.5, 3.5]])
    same(Rubric({f"{file}:one": 2.0}).score(GROUPS).total, [[2, 2], [2, 2]])
    with pytest.raises(SteerkitError, match="takes no settings"):
        Rubric([{"name": f"{file}:one", "n": 3}])
    with pytest.raises(SteerkitError, match="Two rewards are called 'one'"):
        Rubric([f"{file}:one", f"{file}:one"])


def test_a_fault_drops_its_sample_even_if_another_reward_has_an_opinion() -> None:
    scores = Rubric([Verifiable(Flaky()), length]).score(GROUPS)
    same(scores.total, [[2, NAN], [2, 2]])
    assert scores.valid.tolist() == [[True, False], [True, True]]
    same(scores.breakdown["Verifiable"], [[1, NAN], [1, 1]])
    assert scores.verdicts is not None
    assert [[verdict.reason for verdict in row] for row in scores.verdicts] == [["equal", "timeout"], ["equal"] * 2]


def test_a_fault_that_counts_as_wrong_stays() -> None:
    scores = Rubric([Verifiable(Flaky(), on_fault="wrong")]).score(GROUPS)
    same(scores.total, [[1, -1], [1, 1]])


def test_no_opinion_adds_nothing_and_no_opinion_at_all_drops() -> None:
    def shy(completions: list[str], **columns: Any) -> list[float | None]:
        return [None if text == "7" else 1.0 for text in completions]

    same(Rubric([shy, length]).score(GROUPS).total, [[2, 4], [1, 1]])
    scores = Rubric([shy]).score(GROUPS)
    same(scores.total, [[1, 1], [NAN, NAN]])
    assert scores.valid.tolist() == [[True, True], [False, False]]


def test_weight_zero_only_measures() -> None:
    shown = [{"name": "steerkit.rewards.verifiable:Verifiable", "weight": 0, "verifier": Flaky()}, length]
    scores = Rubric(shown).score(GROUPS)
    same(scores.total, [[1, 3], [1, 1]])
    assert scores.valid.all()
    assert scores.verdicts is not None


def test_async_rewards_also_where_a_loop_runs_already() -> None:
    async def slow(completions: list[str], **columns: Any) -> list[float]:
        await asyncio.sleep(0)
        return [2.0] * len(completions)

    async def notebook() -> torch.Tensor:
        return Rubric([slow]).score(GROUPS).total

    same(Rubric([slow]).score(GROUPS).total, [[2, 2], [2, 2]])
    same(asyncio.run(notebook()), [[2, 2], [2, 2]])


def test_data_set_columns_reach_a_function_and_none_stands_for_a_gap() -> None:
    def level(completions: list[str], level: list[int | None]) -> list[float | None]:
        return [None if item is None else float(item) for item in level]

    scores = Rubric([level]).score([group("5", "5", "6", level=3), group("7", "7", "7")])
    same(scores.total, [[3, 3], [NAN, NAN]])
    with pytest.raises(SteerkitError, match="'level' asks for 'level', which is not there; available: answer"):
        Rubric([level]).score(GROUPS)


@pytest.mark.parametrize(
    ("returned", "lesson"),
    [
        ([1.0], "'broken' returned 1 items for 4 completions"),
        ([1.0, "good", 1.0, 1.0], "'broken' returned 'good' for completion 1"),
        ([1.0, 1.0, math.nan, 1.0], "'broken' returned nan for completion 2"),
        (1.0, "'broken' must return a list"),
        ("abcd", "'broken' must return a list"),
    ],
)
def test_broken_rewards_are_named(returned: Any, lesson: str) -> None:
    def broken(**columns: Any) -> Any:
        return returned

    with pytest.raises(SteerkitError, match=lesson):
        Rubric([broken]).score(GROUPS)


def test_an_error_inside_a_reward_names_it() -> None:
    def broken(**columns: Any) -> list[float]:
        raise KeyError("nope")

    with pytest.raises(SteerkitError, match=r"'broken' raised KeyError: 'nope' \(test_rubric.py, line \d+\)"):
        Rubric([broken]).score(GROUPS)


def test_tensors_and_bools_are_numbers() -> None:
    def mixed(**columns: Any) -> list[Any]:
        return [torch.tensor(1.5), True, 2, None]

    same(Rubric([mixed]).score(GROUPS).total, [[1.5, 1], [2, NAN]])


def test_bad_rubrics() -> None:
    with pytest.raises(SteerkitError, match="at least one reward"):
        Rubric([])
    with pytest.raises(SteerkitError, match="needs a 'name'"):
        Rubric([{"weight": 1}])
    with pytest.raises(SteerkitError, match="must be a finite number, got 'much'"):
        Rubric([{"name": "verifiable", "weight": "much"}])
    with pytest.raises(SteerkitError, match="same number of rollouts"):
        Rubric([length]).score([group("5", "5"), group("7", "7", "7")])


def test_lookup_and_no_groups() -> None:
    reward = Verifiable(ExactVerifier())
    rubric = Rubric([reward])
    assert rubric["Verifiable"] is reward
    with pytest.raises(SteerkitError, match="it has Verifiable"):
        rubric["other"]
    assert rubric.score([]).total.shape == (0, 0)
    rubric.warm()
    rubric.close()
