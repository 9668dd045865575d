"""A named weighted sum of rewards over rollout groups, with each reward's own numbers kept."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from steerkit import registry
from steerkit.errors import SteerkitError
from steerkit.rewards.call import RewardFunction, as_messages, call_reward
from steerkit.types import RolloutGroup, Verdict


@dataclass(frozen=True, slots=True)
class RubricScores:
    """What a rubric says of G groups of K rollouts."""

    total: torch.Tensor
    """[G, K] float32: the weighted sum; NaN where ``valid`` is False."""
    breakdown: dict[str, torch.Tensor]
    """name -> [G, K] float32: the reward without its weight; NaN where it has no opinion."""
    valid: torch.Tensor
    """[G, K] bool: False where the sample must leave its group."""
    verdicts: list[list[Verdict]] | None
    """``[G][K]`` verdicts of the first reward that has any (``verifiable``), else None."""


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    weight: float
    reward: RewardFunction
    conversational: bool = False


class Rubric:
    """The weighted sum of named rewards.

    A reward without an opinion (None) adds nothing to the sum. A sample is valid if at least one reward with a
    weight other than 0 has an opinion on it and none of these dropped it for a verifier's fault: a format bonus
    alone must not stand in for a correctness that nobody could judge. Weight 0 only measures.

    Args:
        rewards: ``{name: weight}``, or a list of names, of ``{name: ..., weight: 1, label: ..., **settings}`` and
            of functions. A name is a plugin's, ``package.module:f`` or ``file.py:f``; a class is made with the
            settings, a function (sync or async, TRL's signature) is used as it is. ``label`` is the name in
            metrics, by default the part behind the last colon. ``conversational: true`` hands prompts and completions
            over as lists of messages (TRL's conversational format), the prompt being the problem.

    Raises:
        SteerkitError: no rewards, two of one label, settings for a plain function, or a weight that is no number.
    """

    def __init__(
        self, rewards: Mapping[str, float] | Sequence[str | Mapping[str, Any] | Callable[..., Any]] = ("verifiable",)
    ) -> None:
        if isinstance(rewards, str):
            rewards = [rewards]
        items: list[Any] = (
            [{"name": name, "weight": weight} for name, weight in rewards.items()]
            if isinstance(rewards, Mapping)
            else list(rewards)
        )
        if not items:
            raise SteerkitError("A rubric needs at least one reward, for example {verifiable: 1.0}.")
        self._entries = [_entry(item) for item in items]
        labels = self.names
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise SteerkitError(f"Two rewards are called '{twice}'; give one of them another 'label'.")

    @property
    def names(self) -> list[str]:
        """The labels, in the order of the rewards."""
        return [entry.name for entry in self._entries]

    @property
    def weights(self) -> dict[str, float]:
        return {entry.name: entry.weight for entry in self._entries}

    def __getitem__(self, name: str) -> RewardFunction:
        """The reward of that label."""
        for entry in self._entries:
            if entry.name == name:
                return entry.reward
        raise SteerkitError(f"No reward called '{name}' in this rubric; it has {', '.join(self.names)}.")

    def score(self, groups: Sequence[RolloutGroup]) -> RubricScores:
        """Scores G groups of K rollouts each; every reward is called once for all of them.

        Raises:
            SteerkitError: the groups differ in K, or a reward breaks its contract (the message names it).
        """
        sizes = {len(group.rollouts) for group in groups}
        if len(sizes) > 1:
            raise SteerkitError(f"All groups of a batch must have the same number of rollouts, got {sorted(sizes)}.")
        shape = (len(groups), sizes.pop() if sizes else 0)
        samples = [(group, rollout) for group in groups for rollout in group.rollouts]
        prompts = [group.prompt for group, _ in samples]
        completions = [rollout.text for _, rollout in samples]
        ids = [list(rollout.token_ids) for _, rollout in samples]
        columns = _columns(groups)

        total = torch.zeros(len(samples))
        opinion = torch.zeros(len(samples), dtype=torch.bool)
        dropped = torch.zeros(len(samples), dtype=torch.bool)
        breakdown: dict[str, torch.Tensor] = {}
        verdicts: list[Verdict] | None = None
        for entry in self._entries:
            spoken: tuple[Any, Any] = (prompts, completions)
            if entry.conversational:
                spoken = as_messages(columns["problem"], "user"), as_messages(completions, "assistant")
            values = call_reward(entry.name, entry.reward, *spoken, ids, columns)
            own = torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32)
            breakdown[entry.name] = own.reshape(shape)
            said: list[Verdict] | None = getattr(entry.reward, "last_verdicts", None)
            verdicts = said if verdicts is None else verdicts
            if entry.weight == 0:
                continue
            opinion |= ~own.isnan()
            total += entry.weight * own.nan_to_num()
            if said is not None:
                fault = torch.tensor([verdict.status == "fault" for verdict in said], dtype=torch.bool)
                dropped |= fault & own.isnan()
        valid = opinion & ~dropped
        total[~valid] = math.nan
        nested = None if verdicts is None else [verdicts[g * shape[1] : (g + 1) * shape[1]] for g in range(shape[0])]
        return RubricScores(total.reshape(shape), breakdown, valid.reshape(shape), nested)

    def record_faults(self, path: str | Path) -> None:
        """Keep the pairs that a verifier fails on in ``path``; a second verifier's in ``faults.LABEL.jsonl``."""
        target = Path(path)
        for index, entry in enumerate(entry for entry in self._entries if hasattr(entry.reward, "faults")):
            name = target.name if index == 0 else f"{target.stem}.{entry.name}{target.suffix}"
            entry.reward.faults.path = target.with_name(name)  # type: ignore[attr-defined]

    @property
    def fault_counts(self) -> Counter[str]:
        """Faults by cause over the whole life, of all verifiers."""
        total: Counter[str] = Counter()
        for entry in self._entries:
            total.update(getattr(entry.reward, "fault_counts", {}))
        return total

    def state_dict(self) -> dict[str, Any]:
        """Label -> state of the rewards that have one (``state_dict`` and ``load_state_dict``, as modules do): what a
        resumed run must know. It goes into checkpoints, so it must be made of numbers, texts, lists, dicts and tensors.
        """
        found = {entry.name: getattr(entry.reward, "state_dict", None) for entry in self._entries}
        return {name: function() for name, function in found.items() if function is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hands each reward its state; rewards that are not in it keep theirs."""
        for entry in self._entries:
            if entry.name in state and hasattr(entry.reward, "load_state_dict"):
                entry.reward.load_state_dict(state[entry.name])

    def warm(self) -> None:
        """Starts what the rewards need (worker processes) without waiting."""
        self._each("warm")

    def close(self) -> None:
        """Releases what the rewards hold."""
        self._each("close")

    def _each(self, method: str) -> None:
        for entry in self._entries:
            function = getattr(entry.reward, method, None)
            if function is not None:
                function()


def _entry(item: str | Mapping[str, Any] | Callable[..., Any]) -> _Entry:
    if callable(item):
        return _Entry(getattr(item, "__name__", type(item).__name__), 1.0, item)
    settings = {"name": item} if isinstance(item, str) else dict(item)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise SteerkitError(f"A reward needs a 'name', got {item!r:.80}.")
    weight = settings.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise SteerkitError(f"The weight of reward '{name}' must be a finite number, got {weight!r}.")
    label = str(settings.pop("label", name.rsplit(":", 1)[-1]))
    conversational = settings.pop("conversational", False)
    if not isinstance(conversational, bool):
        raise SteerkitError(f"'conversational' of reward '{name}' must be true or false, got {conversational!r}.")
    found = registry.resolve("rewards", name)
    if inspect.isclass(found):
        reward: Any = registry.build("rewards", {"name": name, **settings})
    elif settings:
        raise SteerkitError(f"Reward '{name}' is a plain function and takes no settings, got {', '.join(settings)}.")
    else:
        reward = found
    if not callable(reward):
        raise SteerkitError(f"Reward '{name}' is a {type(reward).__name__}, which can't be called.")
    return _Entry(label, float(weight), reward, conversational)


def _columns(groups: Sequence[RolloutGroup]) -> dict[str, list[Any]]:
    """One item per completion, in group order. steerkit's own columns win over a data set's of the same name."""
    columns: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for group in groups for key in group.example.columns):
        columns[key] = [group.example.columns.get(key) for group in groups for _ in group.rollouts]
    for key in ("id", "problem", "answer", "source"):
        columns[key] = [getattr(group.example, key) for group in groups for _ in group.rollouts]
    columns["finish_reason"] = [rollout.finish_reason for group in groups for rollout in group.rollouts]
    return columns
