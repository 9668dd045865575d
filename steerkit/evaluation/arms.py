"""Accuracy of a base model and of its vectors on one set of problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from steerkit import registry
from steerkit.datasets import PromptTemplate
from steerkit.errors import SteerkitError
from steerkit.evaluation.metrics import accuracy_interval
from steerkit.models import LoadedModel, SteeredModel
from steerkit.rewards.verifiable import Verifiable
from steerkit.rollouts import EncodedPrompt, Sampler, SamplingParams, encode_prompts
from steerkit.types import Example, RolloutGroup, Verdict

if TYPE_CHECKING:
    from steerkit.vectors import SteeringVector

Progress = Callable[[str, int, int], None]
"""Called with (what is running, problems done, problems in all)."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the comparison: a vector (None is the base) and what is known of it."""

    name: str
    vector: SteeringVector | None = None
    assistant_prefix: str = ""
    """Prefilled opening of the completion, after the prompt template's own."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Columns for the result row: ``lr``, ``train_seed``, ``trainable_params``..."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How arms are measured."""

    temperatures: tuple[float, ...] = (0.0, 1.0)
    k: int = 1
    """Samples a problem at temperatures above 0; greedy decoding needs one."""
    max_tokens: int = 128
    seed: int = 0
    """Of the samples and of the bootstrap."""
    verifier: str | Mapping[str, Any] = "math"
    sampler: str | Mapping[str, Any] = "transformers"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise SteerkitError(f"k must be at least 1, got {self.k}.")
        if not self.temperatures:
            raise SteerkitError("Give at least one temperature, for example 0 and 1.")


FACTS: dict[str, Any] = {
    "train_seed": None,
    "lr": None,
    "trainable_params": 0,
    "optimizer_bytes": 0,
    "seconds_per_step": None,
}
"""Columns that an arm may fill; the rest of a row is measured."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Result rows (``results.json``) and every sample behind them (``samples.parquet``)."""

    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]]


def evaluate(
    loaded: LoadedModel,
    arms: Sequence[Arm],
    examples: Sequence[Example],
    protocol: Protocol | None = None,
    prompt: PromptTemplate | None = None,
    set_name: str = "",
    progress: Progress | None = None,
    judge: Verifiable | None = None,
) -> Evaluation:
    """Measure every arm at every temperature on the same problems with the same random numbers.

    A cut-off answer is wrong, and counted (``truncated``); a verifier's fault is neither right nor wrong, and counted.

    Args:
        judge: a verifier that is already running (it stays open); None starts the protocol's and closes it.

    Raises:
        DataError: if there is no problem, or one doesn't fit the context.
        VectorError: if a vector doesn't fit the model.
    """
    protocol, prompt = protocol or Protocol(), prompt or PromptTemplate()
    sampler: Sampler = registry.build("samplers", protocol.sampler)
    own = None if judge else Verifiable(protocol.verifier)
    judge = judge or own
    assert judge is not None
    rows: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    try:
        examples = _fitting(loaded, arms, examples, protocol, prompt)
        for arm in arms:
            model = (
                arm.vector.steer(loaded.base, loaded.layout)
                if arm.vector
                else SteeredModel(loaded.base, {}, loaded.layout)
            )
            template = prompt.with_opening(arm.assistant_prefix)
            prompts = encode_prompts(loaded.base, loaded.tokenizer, template, examples, protocol.max_tokens, "refuse")
            for temperature in protocol.temperatures:
                label = f"{arm.name}, temperature {temperature:g}"
                groups = _sample(model, loaded, sampler, prompts, protocol, temperature, label, progress)
                verdicts = judge_groups(judge, groups)
                facts = {"arm": arm.name, "set": set_name, "temperature": temperature}
                rows.append({**facts, **summarise(groups, verdicts, protocol.seed), **FACTS, **arm.facts})
                rows[-1]["sample_seed"] = protocol.seed
                samples += sample_records(groups, verdicts, facts)
    finally:
        if own is not None:
            own.close()
    return Evaluation(rows, samples)


def _fitting(
    loaded: LoadedModel, arms: Sequence[Arm], examples: Sequence[Example], protocol: Protocol, prompt: PromptTemplate
) -> list[Example]:
    """The problems whose prompt fits the context in every arm, so that all arms answer the same ones."""
    kept = list(examples)
    for opening in dict.fromkeys(arm.assistant_prefix for arm in arms):
        template = prompt.with_opening(opening)
        fitting = encode_prompts(loaded.base, loaded.tokenizer, template, kept, protocol.max_tokens, "drop")
        kept = [encoded.example for encoded in fitting]
    return kept


def _sample(
    model: SteeredModel,
    loaded: LoadedModel,
    sampler: Sampler,
    prompts: Sequence[EncodedPrompt],
    protocol: Protocol,
    temperature: float,
    label: str,
    progress: Progress | None,
) -> list[RolloutGroup]:
    k = 1 if temperature == 0 else protocol.k
    params = SamplingParams(temperature, protocol.max_tokens)
    groups: dict[int, RolloutGroup] = {}
    for index, group in sampler.stream(model, loaded.tokenizer, prompts, k, params, protocol.seed):
        groups[index] = group
        if progress is not None:
            progress(label, len(groups), len(prompts))
    return [groups[index] for index in range(len(prompts))]


def judge_groups(judge: Verifiable, groups: Sequence[RolloutGroup]) -> list[list[Verdict]]:
    """[N][K] verdicts, by the same path as the training reward."""
    flat = [(group, rollout) for group in groups for rollout in group.rollouts]
    verdicts = judge.verdicts(
        [rollout.text for _, rollout in flat],
        [group.example.answer for group, _ in flat],
        [rollout.finish_reason for _, rollout in flat],
    )
    remaining = iter(verdicts)
    return [[next(remaining) for _ in group.rollouts] for group in groups]


def correct_table(verdicts: Sequence[Sequence[Verdict]]) -> np.ndarray:
    """[N, K] of 1 (correct), 0 (wrong), NaN (fault)."""
    values = {"correct": 1.0, "wrong": 0.0, "fault": np.nan}
    return np.array([[values[verdict.status] for verdict in row] for row in verdicts])


def summarise(groups: Sequence[RolloutGroup], verdicts: Sequence[Sequence[Verdict]], seed: int) -> dict[str, Any]:
    """The measured columns of one result row."""
    table = correct_table(verdicts)
    interval = accuracy_interval(table, seed)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return {
        "k": table.shape[1],
        "n": table.shape[0],
        "accuracy": interval.mean,
        "ci95": [interval.low, interval.high],
        "mean_tokens": float(np.mean([len(rollout.token_ids) for rollout in rollouts])),
        "faults": int(np.isnan(table).sum()),
        "truncated": sum(rollout.finish_reason == "length" for rollout in rollouts),
        "no_box": sum(verdict.reason == "no_box" for row in verdicts for verdict in row),
    }


def sample_records(
    groups: Sequence[RolloutGroup], verdicts: Sequence[Sequence[Verdict]], facts: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One flat record a sample."""
    return [
        {
            **facts,
            "id": group.example.id,
            "source": group.example.source,
            "problem": group.example.problem,
            "sample": index,
            "answer": group.example.answer,
            "completion": rollout.text,
            "verdict": verdict.status,
            "reason": verdict.reason,
            "extracted": verdict.extracted,
            "finish_reason": rollout.finish_reason,
            "tokens": len(rollout.token_ids),
            "logprob": float(sum(rollout.logprobs)),
        }
        for group, row in zip(groups, verdicts, strict=True)
        for index, (rollout, verdict) in enumerate(zip(group.rollouts, row, strict=True))
    ]
