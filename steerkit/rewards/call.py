"""Calls any reward, one of ours or a TRL function, and checks what it returns."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from steerkit.errors import SteerkitError

RewardFunction = Callable[..., Any]


Message = dict[str, str]
"""``{"role": ..., "content": ...}``"""

_LOGGERS: dict[str, Callable[..., None]] = {
    "log_extra": lambda column, values: None,
    "log_metric": lambda name, value: None,
}
"""What TRL's trainer hands over to log with; steerkit logs each reward by itself."""


def as_messages(texts: Sequence[str], role: str) -> list[list[Message]]:
    """TRL's conversational format: each text as a conversation of one message."""
    return [[{"role": role, "content": text}] for text in texts]


def call_reward(
    name: str,
    reward: RewardFunction,
    prompts: Sequence[str] | Sequence[list[Message]],
    completions: Sequence[str] | Sequence[list[Message]],
    completion_ids: list[list[int]],
    columns: Mapping[str, Sequence[Any]],
) -> list[float | None]:
    """The reward's numbers, one per completion; arguments that its signature has no place for are left out.

    Raises:
        SteerkitError: named after the reward: a column is missing, the function raised, the number of items is
            wrong, or an item is neither a finite number nor None.
    """
    arguments = {**columns, "prompts": prompts, "completions": completions, "completion_ids": completion_ids}
    try:
        values = reward(**_accepted(name, reward, arguments))
        if inspect.isawaitable(values):
            values = _wait(values)
    except SteerkitError:
        raise
    except Exception as error:
        raise SteerkitError(f"Reward '{name}' raised {type(error).__name__}: {error}{_where(error)}") from error
    if not hasattr(values, "__iter__") or isinstance(values, (str, bytes, Mapping)):
        raise SteerkitError(f"Reward '{name}' must return a list, one number per completion, got {values!r:.80}.")
    items = list(values)
    if len(items) != len(completions):
        raise SteerkitError(f"Reward '{name}' returned {len(items)} items for {len(completions)} completions: return "
                            "one number (or None) for each.")  # fmt: skip
    return [_number(name, index, item) for index, item in enumerate(items)]


def _where(error: Exception) -> str:
    """The line of the innermost call, which for most rewards is the author's own."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if len(frames) > 1 else ""


def _accepted(name: str, reward: RewardFunction, arguments: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(reward).parameters.values()
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    arguments = {**{key: log for key, log in _LOGGERS.items() if key in needed}, **arguments}
    missing = [parameter for parameter in needed if parameter not in arguments]
    if missing:
        raise SteerkitError(
            f"Reward '{name}' asks for '{missing[0]}', which is not there; available: {', '.join(sorted(arguments))}."
        )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    names = {parameter.name for parameter in parameters}
    return {key: value for key, value in arguments.items() if key in names}


def _wait(values: Awaitable[Any]) -> Any:
    """The result of an async reward. In a thread of its own, since a notebook's thread runs a loop already."""
    outcome: list[Any] = []
    errors: list[Exception] = []

    async def finish() -> Any:
        return await values

    def run() -> None:
        try:
            outcome.append(asyncio.run(finish()))
        except Exception as error:  # raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]


def _number(name: str, index: int, item: Any) -> float | None:
    if item is None:
        return None
    if hasattr(item, "item"):  # a number out of a tensor or an array
        item = item.item()
    if not isinstance(item, Real) or not math.isfinite(item):
        raise SteerkitError(f"Reward '{name}' returned {item!r:.80} for completion {index}; expected a number or None.")
    return float(item)
