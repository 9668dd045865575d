"""The contract of a reward (``rewards/base.py``): TRL's signature, and numbers that a run can be repeated by."""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from steerkit.errors import SteerkitError
from steerkit.rewards import Rubric
from steerkit.rewards.call import call_reward
from steerkit.testing.checks import Check, assert_all, label, made
from steerkit.types import Example, FinishReason, Rollout, RolloutGroup

EXAMPLES = (
    Example("check/0", "Tom has 12 pens and buys 3 more. How many?", "15", "check"),
    Example("check/1", "What is 6 times 7?", "42", "check"),
)
"""Problems for a reward that needs no special columns."""


def check_reward(
    target: Any,
    *,
    examples: Sequence[Example] | None = None,
    deterministic: bool = True,
    **settings: Any,
) -> None:
    """The reward contract.

    Args:
        target: a function of TRL's signature (sync or async), a class, an object, or a plugin's name.
        examples: problems with the columns that it reads; None takes two plain ones with the answers 15 and 42.
        deterministic: False (a language model as judge, say) leaves out that the same samples get the same numbers.
        settings: of a class.

    Raises:
        AssertionError: naming the promise that is broken.
    """
    assert_all(label(target), reward_checks(target, examples=examples, deterministic=deterministic, **settings))


def reward_checks(
    target: Any,
    *,
    examples: Sequence[Example] | None = None,
    deterministic: bool = True,
    **settings: Any,
) -> list[Check]:
    """The promises, for ``check_reward`` and for the shell."""
    contract = _Contract(made("rewards", target, settings), examples or EXAMPLES)
    checks = [
        Check("a finite number or None for each completion", contract.numbers),
        Check("an opinion on some completion", contract.opinion),
        Check("an empty batch gives an empty list", contract.empty),
        Check("its arguments stay as they were", contract.untouched),
        Check("TRL can call it: every column and trainer_state, log_extra, log_metric by keyword", contract.trl),
    ]
    if deterministic:
        checks.append(Check("the same batch gives the same numbers", contract.repeatable))
        checks.append(Check("a number depends on the samples of its own prompt alone", contract.alone))
    return [*checks, Check("works again after warm() and close()", contract.reopened)]


class _Contract:
    def __init__(self, reward: Any, examples: Sequence[Example]) -> None:
        self.reward = reward
        self.groups = [made_up_group(example) for example in examples[:4]]
        self.arguments = _arguments(self.groups)

    def score(self, arguments: dict[str, list[Any]], fresh: bool = True) -> list[float | None]:
        columns = copy.deepcopy(arguments) if fresh else dict(arguments)
        prompts, completions, ids = (columns.pop(key) for key in ("prompts", "completions", "completion_ids"))
        return call_reward("checked", self.reward, prompts, completions, ids, columns)

    def numbers(self) -> None:
        self.score(self.arguments)

    def opinion(self) -> None:
        numbers = self.score(self.arguments)
        assert any(number is not None for number in numbers), (
            f"None for all of {len(numbers)} completions: pass problems with the columns that it reads "
            "(examples=..., in the shell --data)"
        )

    def empty(self) -> None:
        assert self.score({key: [] for key in self.arguments}) == []

    def untouched(self) -> None:
        given = copy.deepcopy(self.arguments)
        with suppress(SteerkitError):  # another promise
            self.score(given, fresh=False)
        changed = [key for key in given if given[key] != self.arguments[key]]
        assert not changed, f"it changed {', '.join(changed)}, which other rewards read too"

    def trl(self) -> None:
        """As GRPOTrainer calls it (TRL 1.16): by keyword, all columns, a trainer state, two functions to log with."""
        kinds = {parameter.kind for parameter in inspect.signature(self.reward).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD in kinds, "add **columns (or **kwargs) to its parameters"
        logging: dict[str, Any] = {
            "trainer_state": None,
            "log_extra": lambda column, values: None,
            "log_metric": lambda name, value: None,
        }
        values = self.reward(**copy.deepcopy(self.arguments), **logging)
        if inspect.isawaitable(values):
            values = asyncio.run(_result(values))
        got, expected = len(list(values)), len(self.arguments["completions"])
        assert got == expected, f"expected {expected} items, got {got}"

    def repeatable(self) -> None:
        first, second = self.score(self.arguments), self.score(self.arguments)
        assert first == second, f"first {first}, then {second}; a random reward should draw by (id, completion_ids)"

    def alone(self) -> None:
        """Samples of one prompt may be compared with each other; other prompts come and go with the batch."""
        together = self.score(self.arguments)
        for group in self.groups:
            expected, together = together[: len(group.rollouts)], together[len(group.rollouts) :]
            alone = self.score(_arguments([group]))
            assert alone == expected, f"{group.example.id}: {expected} among {len(self.groups)} prompts, {alone} alone"

    def reopened(self) -> None:
        before = self.score(self.arguments)
        for method in ("warm", "close"):
            if hasattr(self.reward, method):
                getattr(self.reward, method)()
        after = self.score(self.arguments)
        if hasattr(self.reward, "close"):
            self.reward.close()
        assert len(after) == len(before), f"expected {len(before)} numbers, got {len(after)}"


async def _result(values: Any) -> Any:
    return await values


def made_up_group(example: Example) -> RolloutGroup:
    """What a model may say: right, wrong, nothing, broken, foreign, long, and cut off."""
    texts = [
        f"The answer is \\boxed{{{example.answer}}}.",
        "The answer is \\boxed{0}.",
        example.answer,
        "",
        "\\boxed{",
        "数字 \u200b\x00 🙂 ÷ \\frac{1}{2}",
        "and so on " * 200,
        f"The answer is \\boxed{{{example.answer}}}, because",
    ]
    rollouts = []
    for index, text in enumerate(texts):
        ids = (*text.encode()[:100], 1)  # a completion has at least its end-of-sequence token
        reason: FinishReason = "length" if index == len(texts) - 1 else "stop"
        rollouts.append(Rollout(ids, (-1.0,) * len(ids), reason, text))
    return RolloutGroup(example, f"User: {example.problem}\nAssistant:", (2, 3, 4), tuple(rollouts))


def _arguments(groups: Sequence[RolloutGroup]) -> dict[str, list[Any]]:
    """What a rubric hands to a reward that takes everything."""
    seen: dict[str, list[Any]] = {}

    def spy(**arguments: list[Any]) -> list[float]:
        seen.update(arguments)
        return [0.0] * len(arguments["completions"])

    Rubric([spy]).score(groups)
    return seen
